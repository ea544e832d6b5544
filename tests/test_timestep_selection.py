"""Selection rules against published figures, closed formulas and their own promises."""

import functools
import inspect
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taqdit import timestep_selection as rules
from taqdit.errors import ConfigError
from taqdit.selection import Selection
from taqdit.timestep_selection import default_count

BUDGET = (
    "paper_uniform",
    "midpoint",
    "interleaved",
    "stratified_random",
    "random_per_trajectory",
    "sigma_uniform",
    "normal",
)
OTHERS = {
    "paper_stride": {},
    "dense_middle": {},
    "all": {},
    "explicit": {"steps": [0, -1]},
    "every_nth": {"stride": 1},
}
RANDOM = ("stratified_random", "random_per_trajectory")


def grid(num_steps: int) -> np.ndarray:
    """SD3's sigmas at shift 3 in closed form, 0 appended."""
    u = np.linspace(1, 0.0029940, num_steps)
    return np.append(3 * u / (1 + 2 * u), 0).astype(np.float32)


def select(name: str, num_steps: int, trajectory: int = 0, seed: int = 0, **options) -> Selection:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(rules, name)(
            num_steps=num_steps,
            sigmas=grid(num_steps),
            trajectory=trajectory,
            seed=seed,
            **options,
        )


def steps(name: str, num_steps: int, **options) -> list[int]:
    return select(name, num_steps, **options).indices.tolist()


def test_every_public_rule_is_tested_here():
    public = {n for n in rules.__all__ if inspect.isfunction(getattr(rules, n))}
    assert public == {*BUDGET, *OTHERS}


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
    from taqdit.selection import refilled

    assert sorted(refilled([0, 9], np.arange(10.0), 3)) == [0, 5, 9]  # 4 and 5 tie
    assert sorted(refilled([0, 9, 9], np.arange(10.0), 4)) == [0, 5, 7, 9]  # 2, 3 and 7 tie
    flat = refilled([2], np.zeros(4), 4)  # no gap at all: still four different steps
    assert sorted(flat) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", [*BUDGET, "paper_stride"])
@given(data=st.data())
def test_budget_rules_give_exactly_count_steps(name, data):
    num_steps = data.draw(st.integers(1, 120))
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
def test_all_steps_when_the_budget_is_all_of_them_with_one_warning(name, caplog):
    rules._note_all.cache_clear()
    rule = getattr(rules, name)
    for trajectory in range(3):
        chosen = rule(num_steps=7, sigmas=grid(7), trajectory=trajectory, seed=1, count=7)
        assert chosen.indices.tolist() == list(range(7))
    assert caplog.messages == ["timestep_selection.count=7 selects all 7 steps"]


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


@pytest.mark.parametrize("name", [*BUDGET, *OTHERS])
@pytest.mark.parametrize("num_steps", [0, -1, True])
def test_no_steps_to_select_from(name, num_steps):
    with pytest.raises(ConfigError, match="num_steps="):
        getattr(rules, name)(
            num_steps=num_steps,
            sigmas=np.zeros(1),
            trajectory=0,
            seed=0,
            **OTHERS.get(name, {}),
        )


def test_sigma_uniform_wants_the_grid_with_its_final_zero():
    rule = functools.partial(rules.sigma_uniform, num_steps=20, trajectory=0, seed=0, count=5)
    with pytest.raises(ConfigError, match="must be"):
        rule(sigmas=grid(20)[:-1])
    with pytest.raises(ConfigError, match="finite"):
        rule(sigmas=np.full(21, np.nan))


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
