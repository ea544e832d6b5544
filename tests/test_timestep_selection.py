"""Selection rules against published figures, closed formulas and their own promises."""

import dataclasses
import functools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from objectives import medoid_cost, static_error

from taqdit import timestep_selection
from taqdit.analysis.options import full
from taqdit.errors import ConfigError
from taqdit.timestep_selection import data_driven, rules
from taqdit.timestep_selection.catalogue import COMPARABLE, COMPARED, RULES
from taqdit.timestep_selection.evidence import Evidence, from_evidence, needs_evidence
from taqdit.timestep_selection.selection import Selection, cells, refuse_other_forms
from taqdit.timestep_selection.steps import TrajectorySteps, default_count

OTHERS = {  # without a budget that they keep, or with an argument of their own
    "paper_stride": {},
    "dense_middle": {},
    "all": {},
    "explicit": {"steps": [0, -1]},
    "every_nth": {"stride": 1},
}
BUDGET = tuple(name for name in RULES if name not in OTHERS)
DRIVEN = tuple(name for name in BUDGET if needs_evidence(RULES[name]))
FIXED = tuple(name for name in BUDGET if name not in DRIVEN)
RANDOM = ("stratified_random", "random_per_trajectory")


def grid(num_steps: int) -> np.ndarray:
    """SD3's sigmas at shift 3 in closed form, 0 appended."""
    u = np.linspace(1, 0.0029940, num_steps)
    return np.append(3 * u / (1 + 2 * u), 0).astype(np.float32)


def select(name: str, num_steps: int, trajectory: int = 0, seed: int = 0, **options) -> Selection:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = evidence(num_steps) if name in DRIVEN else None
        return RULES[name](TrajectorySteps(grid(num_steps), trajectory, seed, known), **options)


@functools.cache
def evidence(num_steps: int, *, sites: int = 3) -> Evidence:
    """Three sites whose spread changes along the trajectory, fastest near the image."""
    sigmas = grid(num_steps).astype(np.float64)
    speed = np.arange(1, sites + 1)[:, None]
    spread = 1 + speed * (1 - sigmas[:-1]) ** 2  # (sites, n)
    distances = np.abs(spread[:, :, None] - spread[:, None]).mean(axis=0)
    weights = -np.diff(sigmas) / sigmas[0]
    errors = {}
    for bits in (8, 6, 4):
        clip = np.geomspace(0.5, 6, 24)
        error = clip**2 / 4**bits + np.maximum(0, spread[..., None] - clip) ** 2 / 10
        least = np.einsum("sic,i->sc", error, weights).min(axis=1)
        errors[bits] = error / least[:, None, None]
    return Evidence(distances, weights, errors)


def steps(name: str, num_steps: int, **options) -> list[int]:
    return select(name, num_steps, **options).indices.tolist()


def test_every_public_rule_is_in_the_catalogue():
    assert set(RULES) == set(timestep_selection.__all__) >= {*OTHERS, *RANDOM}


def test_what_is_compared_where_nobody_says_what():
    """In this order: figures and tables list the rules so. A new rule is compared, too."""
    published = (
        *("paper_uniform", "paper_stride", "midpoint", "dense_middle", "interleaved"),
        *("stratified_random", "sigma_uniform", "normal"),
        *("drift_weighted", "coverage_optimal", "regret_optimal"),
    )
    assert tuple(name for name in COMPARED if name in published) == published
    assert set(COMPARABLE) - set(COMPARED) == {"all", "random_per_trajectory"}
    assert {"explicit", "every_nth"}.isdisjoint(COMPARABLE)
    assert full().rules == COMPARED
    assert full(compare=["midpoint"]).rules == ("midpoint",)


@pytest.mark.parametrize(
    "rule",
    [
        lambda *, num_steps, sigmas, trajectory, seed, count=None: Selection.of([0]),
        lambda: Selection.of([0]),
        rules.explicit,
    ],
)
def test_a_rule_that_cannot_be_called_with_the_steps_is_refused(rule):
    with pytest.raises(ConfigError, match=r"^_target_: the rule .* trajectory is a TrajectorySt"):
        refuse_other_forms(rule)
    refuse_other_forms(functools.partial(rules.explicit, steps=[0]))


@pytest.mark.parametrize(
    ("name", "num_steps", "options", "expected"),
    [
        (
            "paper_uniform",
            100,
            {"count": 25},
            "0 4 8 12 16 20 24 28 33 37 41 45 49 53 57 61 66 70 74 78 82 86 90 94 99",
        ),
        ("paper_uniform", 20, {"count": 5}, "0 4 9 14 19"),
        ("dense_middle", 50, {}, "0 5 10 12 15 16 19 22 25 28 31 33 37 38 43 48 49"),
        (
            "normal",
            100,
            {"count": 25},
            "4 11 17 22 27 31 35 38 42 45 49 52 55 58 61 64 67 71 74 77 81 84 88 92 97",
        ),
        ("midpoint", 20, {"count": 5}, "2 6 10 14 18"),
        ("every_nth", 10, {"stride": 4, "offset": 1}, "1 5 9"),
        ("explicit", 50, {"steps": [-1, 7, 0]}, "0 7 49"),
        ("all", 6, {}, "0 1 2 3 4 5"),
        ("sigma_uniform", 20, {"count": 1}, "14"),
    ],
)
def test_published_figures(name, num_steps, options, expected):
    assert steps(name, num_steps, **options) == [int(step) for step in expected.split()]


def test_paper_stride_is_the_published_formula():
    assert steps("paper_stride", 100, count=25) == list(range(0, 97, 4))
    cases = [(50, 25), (51, 25), (50, 20), (28, 25), (28, 10), (100, 30)]
    assert [len(steps("paper_stride", n, count=k)) for n, k in cases] == [25, 26, 25, 28, 14, 34]


@given(st.integers(2, 300), st.data())
def test_paper_stride_count_is_ceil_of_the_quotient(num_steps, data):
    count = data.draw(st.integers(2, num_steps))
    expected = math.ceil(num_steps / (num_steps // count))
    assert len(steps("paper_stride", num_steps, count=count)) == expected


def test_dense_middle_counts():
    assert [len(steps("dense_middle", n)) for n in (20, 28, 50, 100)] == [10, 11, 17, 28]


@given(st.integers(2, 1000), st.data())
def test_paper_uniform_is_the_exact_integer_linspace(num_steps, data):
    count = data.draw(st.integers(2, num_steps))
    exact = [j * (num_steps - 1) // (count - 1) for j in range(count)]
    assert steps("paper_uniform", num_steps, count=count) == exact
    truncated = np.linspace(0, num_steps - 1, count, dtype=int)
    # numpy's float linspace may fall just below an integer; it never differs by more than that
    assert np.abs(truncated - exact).max() <= 1


def test_paper_uniform_equals_numpy_linspace_where_the_older_tools_used_it():
    for num_steps, count in [(100, 25), (20, 5), (50, 25), (50, 10), (28, 7), (30, 8)]:
        old = np.linspace(0, num_steps - 1, count, dtype=int).tolist()
        assert steps("paper_uniform", num_steps, count=count) == old


@pytest.mark.parametrize(
    ("num_steps", "count", "costs"),
    [(50, 10, (0.0401, 0.0320, 0.0236)), (20, 5, (0.0757, 0.0554, 0.0412))],
)
def test_representation_cost_in_sigma(num_steps, count, costs):
    """sum dt_i min_j |sigma_i - sigma_j| of stride, midpoints and sigma midpoints."""
    sigmas = grid(num_steps).astype(np.float64)
    widths = -np.diff(sigmas)
    for name, cost in zip(("paper_stride", "midpoint", "sigma_uniform"), costs, strict=True):
        chosen = sigmas[steps(name, num_steps, count=count)]
        gaps = np.abs(sigmas[:num_steps, None] - chosen).min(axis=1)
        assert float((widths * gaps).sum()) == pytest.approx(cost, abs=6e-5)


@pytest.mark.parametrize(("num_steps", "distinct"), [(28, 19), (50, 24)])
def test_sigma_uniform_keeps_the_nearest_steps_and_fills_up(num_steps, distinct):
    levels = grid(num_steps)[:num_steps].astype(np.float64)
    targets = levels[0] * (1 - (2 * np.arange(25) + 1) / 50)
    nearest = {int(np.abs(levels - target).argmin()) for target in targets}
    chosen = steps("sigma_uniform", num_steps, count=25)
    assert len(nearest) == distinct
    assert nearest < set(chosen)
    assert len(chosen) == 25


def test_refill_takes_the_widest_gap_and_the_later_of_a_tie():
    from taqdit.timestep_selection.selection import refilled

    assert sorted(refilled([0, 9], np.arange(10.0), 3)) == [0, 5, 9]  # 4 and 5 tie
    assert sorted(refilled([0, 9, 9], np.arange(10.0), 4)) == [0, 5, 7, 9]  # 2, 3 and 7 tie
    flat = refilled([2], np.zeros(4), 4)  # no gap at all: still four different steps
    assert sorted(flat) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", [*BUDGET, "paper_stride"])
@given(data=st.data())
def test_budget_rules_give_exactly_count_steps(name, data):
    num_steps = data.draw(st.integers(1, 20 if name in DRIVEN else 120))
    count = data.draw(st.integers(1, num_steps))
    trajectory = data.draw(st.integers(0, 10**6))
    chosen = select(name, num_steps, trajectory, seed=data.draw(st.integers(0, 9)), count=count)
    assert chosen.indices.dtype == np.int64
    assert (np.diff(chosen.indices) > 0).all()
    assert chosen.indices[0] >= 0
    assert chosen.indices[-1] < num_steps
    assert chosen.counts.tolist() == [1] * len(chosen.indices)
    assert chosen.loss_weight.tolist() == [1.0] * len(chosen.indices)
    if name != "paper_stride":
        assert len(chosen.indices) == count


@pytest.mark.parametrize("name", [*BUDGET, "paper_stride"])
def test_all_steps_when_the_budget_is_all_of_them(name):
    for trajectory in range(3):
        chosen = RULES[name](TrajectorySteps(grid(7), trajectory, 1, evidence(7)), count=7)
        assert chosen.indices.tolist() == list(range(7))


def test_one_and_two_steps():
    assert steps("paper_uniform", 50, count=1) == [25]
    assert steps("paper_stride", 50, count=1) == [25]
    assert steps("midpoint", 50, count=1) == [25]
    assert steps("paper_uniform", 50, count=2) == [0, 49]
    assert steps("midpoint", 50, count=2) == [12, 37]
    assert steps("normal", 100, count=1) == [55]  # the median of the cut normal, 0.5539


def test_a_single_sampling_step():
    for name in (*BUDGET, *OTHERS):
        options = {"steps": [0]} if name == "explicit" else OTHERS.get(name, {})
        assert steps(name, 1, **options) == [0]


def test_default_count_is_a_quarter_rounded_half_up_and_at_least_two():
    counts = {n: default_count(n) for n in (1, 2, 3, 5, 9, 10, 14, 20, 28, 30, 50, 100)}
    assert counts == {
        **{1: 1, 2: 2, 3: 2, 5: 2, 9: 2, 10: 3, 14: 4},
        **{20: 5, 28: 7, 30: 8, 50: 13, 100: 25},
    }
    assert len(steps("paper_uniform", 100)) == 25


@pytest.mark.parametrize("name", ["all", "dense_middle", "explicit", "every_nth"])
def test_rules_without_a_budget_ignore_count(name):
    options = OTHERS[name]
    assert steps(name, 20, count=5, **options) == steps(name, 20, **options)


def test_interleaved_is_exact_covers_every_step_and_starts_at_zero():
    assert steps("interleaved", 20, count=5) == [0, 4, 8, 12, 16]
    seen = [steps("interleaved", 100, trajectory=m, count=25) for m in range(8)]
    assert set().union(*seen) == set(range(100))
    counts = np.bincount(np.concatenate(seen), minlength=100)
    assert counts.min() >= 1
    assert counts.max() <= 3  # 2 on average
    for m in (1, 2, 1000):
        offset = m * 0.6180339887 % 1
        expected = [math.floor((j + offset) * 100 / 25) for j in range(25)]
        assert steps("interleaved", 100, trajectory=m, count=25) == expected


def test_stratified_random_draws_one_step_per_bin():
    for trajectory in range(50):
        chosen = steps("stratified_random", 30, trajectory=trajectory, count=8)
        edges = [j * 30 // 8 for j in range(9)]
        assert all(edges[j] <= step < edges[j + 1] for j, step in enumerate(chosen))


@pytest.mark.parametrize("name", RANDOM)
def test_random_rules_reach_every_step_about_equally(name):
    drawn = [steps(name, 20, trajectory=m, count=5) for m in range(2000)]
    frequency = np.bincount(np.concatenate(drawn), minlength=20) / 2000
    assert np.abs(frequency - 0.25).max() < 0.05  # five standard deviations


@pytest.mark.parametrize("name", RANDOM)
def test_random_rules_depend_on_seed_and_trajectory_alone(name):
    first = steps(name, 50, trajectory=3, seed=1, count=10)
    np.random.seed(0)  # noqa: NPY002 - the global state must not matter
    steps(name, 50, trajectory=9, seed=1, count=10)
    assert steps(name, 50, trajectory=3, seed=1, count=10) == first
    assert steps(name, 50, trajectory=4, seed=1, count=10) != first
    assert steps(name, 50, trajectory=3, seed=2, count=10) != first
    # seed + trajectory must not be confused: (1, 3) is not (3, 1)
    assert steps(name, 50, trajectory=1, seed=3, count=10) != first


def test_the_random_streams_do_not_change():
    assert steps("random_per_trajectory", 20, trajectory=7, seed=3, count=5) == [2, 6, 10, 12, 18]
    assert steps("stratified_random", 20, trajectory=7, seed=3, count=5) == [3, 5, 9, 15, 19]


@pytest.mark.parametrize("name", sorted({*BUDGET, *OTHERS} - {*RANDOM, "interleaved"}))
def test_other_rules_are_the_same_for_every_trajectory(name):
    options = OTHERS.get(name, {})
    assert steps(name, 30, **options) == steps(name, 30, trajectory=5, seed=8, **options)


@pytest.mark.parametrize("name", [*BUDGET, "paper_stride"])
@pytest.mark.parametrize("count", [0, -3, 21, 2.5, "5", True])
def test_a_wrong_count_names_itself_the_range_and_the_steps(name, count):
    with pytest.raises(ConfigError, match=r"count=.*\[1, 20\].*num_steps is 20"):
        steps(name, 20, count=count)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("explicit", {"steps": []}, "at least one"),
        ("explicit", {"steps": [20]}, r"steps=20 must be an integer in \[-20, 19\]"),
        ("explicit", {"steps": [-21]}, r"\[-20, 19\]"),
        ("explicit", {"steps": [3.0]}, "steps=3.0 must be an integer"),
        ("explicit", {"steps": [True]}, "integer"),
        ("explicit", {"steps": [1, 5, 1]}, "names step"),
        ("explicit", {"steps": [-1, 19]}, r"step \[19\] more than once"),
        ("every_nth", {"stride": 0}, r"stride=0 .* \[1, 20\]"),
        ("every_nth", {"stride": 21}, "stride=21"),
        ("every_nth", {"stride": 2, "offset": 20}, r"offset=20 .* \[0, 19\]"),
        ("every_nth", {"stride": 2, "offset": -1}, "offset=-1"),
        ("regret_optimal", {"bits": 5}, "bits=5 must be one of 8, 6, 4"),
        ("drift_weighted", {"gamma": -0.1}, r"gamma=-0.1 must lie in \[0, 2\]"),
        ("drift_weighted", {"gamma": math.nan}, "gamma=nan"),
        ("normal", {"mean": 1.5}, "mean=1.5"),
        ("normal", {"mean": math.nan}, "mean=nan"),
        ("normal", {"sd": 0.0}, "sd=0"),
        ("normal", {"sd": math.inf}, "sd=inf"),
        ("interleaved", {"trajectory": -1}, "trajectory=-1"),
        ("random_per_trajectory", {"seed": -1}, "seed=-1"),
    ],
)
def test_parameters_out_of_range(name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        steps(name, 20, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("size", "num_steps"), [(1, 0), (0, -1)])
def test_no_steps_to_select_from(size, num_steps):
    with pytest.raises(ConfigError, match=f"num_steps={num_steps} must be an integer >= 1"):
        TrajectorySteps(np.zeros(size))


@pytest.mark.parametrize("sigmas", [np.full(21, np.nan), np.zeros((3, 7))])
def test_the_grid_is_a_row_of_finite_numbers(sigmas):
    with pytest.raises(ConfigError, match=r"sigmas of shape .* must be \(num_steps \+ 1,\)"):
        TrajectorySteps(sigmas)


_WIDE_AND_EVEN = (("normal", {"sd": 10.0}), ("midpoint", {}))


def test_normal_without_a_bell_is_nearly_uniform_and_a_narrow_one_crowds():
    wide, even = (steps(n, 100, count=10, **o) for n, o in _WIDE_AND_EVEN)
    assert np.abs(np.subtract(wide, even)).max() <= 1
    chosen = steps("normal", 100, count=10, mean=0.5, sd=0.05)
    assert min(chosen) >= 40
    assert max(chosen) <= 60
    assert len(chosen) == 10


@pytest.mark.parametrize(
    ("indices", "counts", "weights"),
    [
        ([3, 2], [1, 1], [1.0, 1.0]),
        ([2, 2], [1, 1], [1.0, 1.0]),
        ([], [], []),
        ([1, 2], [1, 0], [1.0, 1.0]),
        ([1, 2], [1], [1.0, 1.0]),
        ([1, 2], [1, 1], [1.0, -1.0]),
        ([1, 2], [1, 1], [1.0, math.nan]),
        ([1.0, 2.0], [1, 1], [1.0, 1.0]),
        ([[1, 2]], [1, 1], [1.0, 1.0]),
    ],
)
def test_a_malformed_selection_cannot_be_made(indices, counts, weights):
    steps = np.array(indices) if indices else np.array([], np.int64)
    with pytest.raises(ConfigError):
        Selection(steps, np.array(counts, np.int64), np.array(weights, np.float64))


def test_a_selection_is_read_only():
    chosen = select("paper_uniform", 20)
    for array in (chosen.indices, chosen.counts, chosen.loss_weight):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize("name", DRIVEN)
def test_driven_rules_refuse_to_choose_without_evidence(name):
    with pytest.raises(ConfigError, match=rf"^_target_: {name} needs traced statistics; .*tracer"):
        RULES[name](TrajectorySteps(grid(20)))
    with pytest.raises(ConfigError, match="evidence of 19 steps must be of num_steps=20"):
        TrajectorySteps(grid(20), evidence=evidence(19))
    blank = TrajectorySteps(grid(20), evidence=Evidence.blank(20, widths=(8,)))
    assert len(RULES[name](blank, count=6).indices) == 6


@pytest.mark.parametrize("name", DRIVEN)
def test_driven_rules_at_the_ends_of_their_budget(name):
    assert steps(name, 9, count=9) == list(range(9))
    assert len(steps(name, 9, count=1)) == 1
    assert len(steps(name, 30)) == 8  # a quarter


@pytest.mark.parametrize("num_steps", [20, 28, 50])
def test_no_fixed_rule_covers_better_than_coverage_optimal(num_steps):
    known = evidence(num_steps)
    for count in (1, 2, 5, 11, 17):
        best = steps("coverage_optimal", num_steps, count=count)
        cost = medoid_cost(known.distances, known.weights, best)
        for name in FIXED:
            for trajectory in range(3):
                other = steps(name, num_steps, trajectory=trajectory, count=count)
                found = medoid_cost(known.distances, known.weights, other)
                assert cost <= found * (1 + 1e-7), (name, count)


def test_regret_optimal_follows_the_errors_of_its_width():
    known = evidence(20)
    chosen = {bits: steps("regret_optimal", 20, count=2, bits=bits) for bits in (8, 4)}
    for bits in (8, 4):
        errors = known.errors[bits]
        found = {b: static_error(errors, known.weights, chosen[b]) for b in (8, 4)}
        assert found[bits] <= min(found.values())
        middles = static_error(errors, known.weights, steps("midpoint", 20, count=2))
        assert 1 - 1e-9 <= found[bits] <= middles
    assert chosen[8] != chosen[4]


def test_drift_weighted_goes_where_the_steps_differ():
    sigmas = grid(30).astype(np.float64)
    even = np.abs(np.subtract.outer(sigmas[:-1], sigmas[:-1]))
    jump = np.where(np.arange(30) < 8, 0.0, 1.0)
    weights = np.full(30, 1 / 30)
    steady, sudden = (
        TrajectorySteps(grid(30), evidence=Evidence(each, weights, {}))
        for each in (even, np.abs(np.subtract.outer(jump, jump)))
    )
    rule = functools.partial(data_driven.drift_weighted, count=6)
    assert {7, 8} < set(rule(sudden).indices.tolist())  # either side of the only change
    by_sigma = steps("sigma_uniform", 30, count=6)
    assert np.abs(rule(steady).indices - by_sigma).max() <= 1
    assert np.abs(rule(sudden, gamma=0.0).indices - by_sigma).max() <= 1
    with pytest.raises(ConfigError, match="sigmas must strictly decrease"):
        rule(dataclasses.replace(steady, sigmas=np.ones(31)))


def test_a_choice_is_made_once_per_evidence_and_arguments(monkeypatch):
    made = []

    def counted(distances, weights, count):
        made.append(count)
        return list(range(count))

    monkeypatch.setattr(data_driven, "medoids", counted)
    for known in (Evidence.blank(10, widths=(8,)), Evidence.blank(10, widths=(8,))):
        for trajectory in range(4):
            for count in (2, 3):
                steps = TrajectorySteps(grid(10), trajectory, evidence=known)
                data_driven.coverage_optimal(steps, count=count)
    assert made == [2, 3, 2, 3]


def test_widths_do_not_share_a_choice():
    known = Evidence(evidence(20).distances, evidence(20).weights, evidence(20).errors)
    for bits in (8, 4):
        shown = TrajectorySteps(grid(20), evidence=known)
        chosen = data_driven.regret_optimal(shown, bits=bits, count=2).indices.tolist()
        assert chosen == steps("regret_optimal", 20, count=2, bits=bits)


def test_which_rules_need_evidence():
    assert set(DRIVEN) == set(data_driven.__all__)
    assert needs_evidence(functools.partial(data_driven.regret_optimal, count=3, bits=4))
    assert not needs_evidence(functools.partial(rules.every_nth, stride=2))
    assert not needs_evidence(lambda trajectory, *, evidence=None: None)
    assert needs_evidence(from_evidence(lambda trajectory: None))


def _changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("distances", lambda d: d[:-1], r"distances of shape \(5, 6\) must be \(6, 6\)"),
        ("distances", lambda d: _changed(d, (0, 1), 9.0), "symmetric"),
        ("distances", lambda d: _changed(d, (2, 2), 0.1), "diagonal"),
        ("distances", lambda d: -d, "distances must be float64, finite and >= 0"),
        ("distances", lambda d: _changed(d, (0, 1), np.nan), "distances must be .* finite"),
        ("distances", lambda d: d.astype(np.float32), "distances must be float64"),
        ("weights", lambda w: w[:, None], r"weights of shape \(6, 1\) must be \(n,\)"),
        ("weights", lambda w: w * 2, "weights sum to 2 "),
        ("weights", lambda w: _changed(w, 0, 0) / (1 - w[0]), "weights must be > 0"),
        ("weights", lambda w: _changed(w, 0, np.inf), "weights must be .* finite"),
        ("errors", lambda e: {8: e[8][0]}, r"errors\[8\] of shape \(6, 24\)"),
        ("errors", lambda e: {8: e[8][:, 1:]}, r"errors\[8\] .* must be \(sites, 6, ranges\)"),
        ("errors", lambda e: {8: e[8][:0]}, r"errors\[8\] of shape \(0, 6, 24\)"),
        ("errors", lambda e: {8: e[8], 4: -e[4]}, r"errors\[4\] must be .* >= 0"),
        ("errors", lambda e: {8: _changed(e[8], 0, np.inf)}, r"errors\[8\] must be .* finite"),
    ],
)
def test_malformed_evidence_cannot_be_made(name, change, message):
    known = evidence(6)
    parts = {"distances": known.distances, "weights": known.weights, "errors": known.errors}
    with pytest.raises(ConfigError, match=message):
        Evidence(**parts | {name: change(parts[name])})


def test_evidence_is_read_only():
    known = evidence(6)
    for array in (known.distances, known.weights, known.errors[8]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_cells_of_interleaved_by_hand():
    """8 steps, 2 of them from offsets 0, 0.618, 0.236, 0.854, 0.472 of a stride of 4."""
    chosen = [select("interleaved", 8, trajectory=m, count=2) for m in range(5)]
    assert [each.indices.tolist() for each in chosen] == [[0, 4], [2, 6], [0, 4], [3, 7], [1, 5]]
    expected = [
        [2 / 3, 1 / 3, 0, 0, 2 / 3, 1 / 3, 0, 0],  # trajectories 0, 2, 4
        [0, 0, 1 / 2, 1 / 2, 0, 0, 1 / 2, 1 / 2],  # 1, 3
    ]
    found = cells(chosen, folds=2, num_steps=8)
    assert found.dtype == np.float64
    assert found == pytest.approx(np.array(expected))


def test_cells_count_points_and_leave_empty_folds_at_zero():
    twice = Selection(np.array([1, 2]), np.array([3, 1]), np.ones(2))
    found = cells([twice, select("all", 4)], folds=3, num_steps=4)
    assert found.tolist() == [[0, 3, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert cells([], folds=2, num_steps=3).tolist() == [[0, 0, 0], [0, 0, 0]]
