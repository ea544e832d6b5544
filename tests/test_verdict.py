"""The analysis in ten lines, and as tables: on numbers that are known."""

import json
import warnings
from functools import partial

import numpy as np
import pytest
from made_statistics import TOKENS, gaussian, made

from taqdit.activations.overview import overview
from taqdit.analysis.analyse import analyse
from taqdit.analysis.options import full
from taqdit.analysis.scores import Losses, Scores
from taqdit.analysis.tables import SCORES, SITES, as_json, score_rows, site_rows
from taqdit.analysis.verdict import difference, verdict
from taqdit.timestep_selection.data_driven import coverage_optimal
from taqdit.timestep_selection.rules import paper_uniform

RULES = ("midpoint", "paper_uniform", "dense_middle")


@pytest.fixture(scope="module")
def analysis():
    """Twelve steps of two sites; the values of the second grow at the end and hold an outlier."""

    def values(rng, site, step, _trajectory):
        x = rng.normal(size=(TOKENS, 8)) * (1 + 3 * (site and step > 7))
        x[:, 2] *= 20 if site else 1
        return x

    statistics = made(values, num_steps=12, sites=2)
    return analyse(
        statistics,
        overview(statistics),
        full(compare=RULES, budget=4),
        own=("paper_uniform", partial(paper_uniform, count=3)),
        seed=0,
        readers={"mm_00_img.fc1": "mm_00_img.fc1_in", "mm_01_img.fc1": "mm_01_img.fc1_in"},
        entries={},
        weights=None,
    )


def test_the_verdict_says_it_in_ten_lines(analysis):
    said = verdict(analysis)
    assert sum(map(len, said.values())) <= 10
    assert list(said) == ["selections", "this run", "enough", "worst sites", "phases", "bits"]
    heading, best, *_ = said["selections"]
    assert heading.startswith("4 of 12 steps, 8-bit static quantizers, judged on all steps")
    assert best.startswith(f"best: {RULES[analysis.comparison.ranking[0]]}")
    assert said["this run"][0].startswith("paper_uniform, 3 points per trajectory, loses")
    assert said["worst sites"][0].startswith("mm_01_img.fc1_in")
    assert "channel outliers" in said["worst sites"][0]
    assert said["phases"][0].startswith("phase 1 0-7, phase 2 8-11")
    assert "mm_01_img.fc1_in drifts most" in said["phases"][0]
    assert said["bits"][0].startswith("activations:")


def scores(loss, spread, *, folds=8):
    """Two selections, each with its loss at 8 bits, whose difference varies by `spread`."""
    rules = ("paper_uniform", "dense_middle")
    replicates = np.zeros((100, 2, 3)) + np.array(loss)[:, None]
    replicates[:, 0] += spread * np.resize([1, -1], 100)[:, None]
    losses = Losses(np.array(loss)[:, None] * np.ones(3), replicates, folds)
    nothing = np.zeros((2, 1))
    return Scores(
        (), rules, np.array([4, 4]), ((0,), (1,)), *[nothing] * 5, *[np.zeros((2, 1, 3))] * 2,
        np.zeros((1, 3)), np.zeros((1, 3)), losses, np.zeros(2, bool), np.ones(2, bool),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "spread", "text"),
    [
        ((0.1, 0.3), 0.01, "paper_uniform is better than dense_middle by 0.200 dB"),
        ((0.3, 0.1), 0.01, "dense_middle is better than paper_uniform by 0.200 dB"),
        (
            (0.1, 0.12),
            0.05,
            "paper_uniform and dense_middle do not differ beyond their interval: 0.020",
        ),
        (
            (0.1, 0.1),
            0.0,
            "paper_uniform and dense_middle do not differ beyond their interval: 0.000",
        ),
    ],
)
def test_a_difference_is_called_one_or_not(loss, spread, text):
    assert difference(scores(loss, spread), 0, 1).startswith(text)


def test_without_an_interval_no_difference_is_called():
    said = difference(scores((0.1, 0.3), 0.0, folds=1), 0, 1)
    assert said == (
        "paper_uniform and dense_middle: 0.200 dB apart, too few folds of trajectories for an"
        " interval"
    )


def test_selections_are_ranked_among_equal_budgets(analysis):
    """dense_middle gives eight steps of twelve where four are compared."""
    found = analysis.comparison
    assert found.scores.counts.tolist() == [4, 4, 8, 3]
    assert set(found.ranking) == {0, 1}
    (ranked,) = verdict(analysis)["selections"][1:]
    best, other = (RULES[place] for place in found.ranking)
    differ = found.scores.losses.differ(*found.ranking, 8)
    assert ranked.startswith(f"best: {best} loses")
    assert f"{'worse' if differ else 'not told apart'}: {other} " in ranked
    assert "other budgets: dense_middle " in ranked


def test_what_was_chosen_from_the_data_is_marked():
    statistics = made(gaussian(lambda step: 1 + step), num_steps=9)
    found = analyse(
        statistics,
        overview(statistics),
        full(compare=["regret_optimal", "midpoint", "interleaved"], budget=2),
        own=("coverage_optimal", coverage_optimal),
        seed=0,
        readers={},
        entries={},
        weights=None,
    )
    said = verdict(found)
    heading, ranked = said["selections"]
    assert heading.endswith("; † steps chosen from these statistics; ~ trajectories share folds")
    assert "regret_optimal†" in ranked
    assert "interleaved~" in ranked
    assert "midpoint " in ranked
    assert said["this run"][0].startswith("coverage_optimal†")
    assert "regret_optimal" not in said["enough"][0]
    rows = {
        row[0]: dict(zip(SCORES, row[1:], strict=True))
        for row in score_rows(found.comparison.scores)
    }
    assert rows["regret_optimal"]["Chosen"] == "from these statistics"
    assert rows["midpoint"]["Chosen"] == "by rule"
    assert rows["interleaved"]["Cells"] == "shared"


def test_a_silent_model_is_said_without_nan():
    statistics = made(lambda *_: np.zeros((TOKENS, 8)), num_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = analyse(
            statistics,
            overview(statistics),
            full(compare=["midpoint"], budget=1),
            own=None,
            seed=0,
            readers={"x.fc1": "mm_00_img.fc1_in"},
            entries={},
            weights=None,
        )
        said = json.dumps(verdict(found))
        score_rows(found.comparison.scores)
    assert "worst sites" not in said
    assert "drifts" not in said
    json.dumps(as_json(found), allow_nan=False)


def test_rows_have_the_cells_of_their_columns(analysis):
    rows = score_rows(analysis.comparison.scores)
    assert {len(row) for row in rows} == {1 + len(SCORES)}
    assert [row[0] for row in rows] == [*RULES, "paper_uniform"]
    named = dict(zip(SCORES, rows[0][1:], strict=True))
    found = analysis.comparison.scores
    assert named["Points"] == 4
    assert named["Loss 8"] == found.loss[0, 0]
    assert named["+- 4"] == found.losses.half_width[0, 2]
    assert named["%Range"] == pytest.approx(100 * found.range_coverage[0].mean())
    assert named["Steps"] == " ".join(map(str, found.steps[0]))
    sites = site_rows(analysis)
    assert {len(row) for row in sites} == {1 + len(SITES)}
    assert dict(zip(SITES, sites[1][1:], strict=True))["SQNR 6"] == found.oracle[1, 1]
    assert dict(zip(SITES, sites[1][1:], strict=True))["Borders"] == "8"


def test_json_holds_it_all_and_nothing_that_json_lacks(analysis):
    plain = as_json(analysis)
    text = json.dumps(plain, allow_nan=False)
    found = json.loads(text)["comparison"]
    scores = analysis.comparison.scores
    assert [each["rule"] for each in found["selections"]] == list(scores.rules)
    assert found["selections"][0]["loss_db"] == scores.loss[0].tolist()
    assert found["oracle_db"] == scores.oracle.tolist()
    assert found["ranking"][0] == scores.rules[analysis.comparison.ranking[0]]
    assert [each["rule"] for each in found["curves"]] == list(RULES)
    assert json.loads(text)["drift"]["phases"] == [8]
    assert json.loads(text)["outliers"]["mm_01_img.fc1_in"]["kind"] == "channel"


def test_a_single_fold_and_a_single_rule_are_said_without_intervals():
    statistics = made(gaussian(), num_steps=4, folds=1)
    table = overview(statistics)
    found = analyse(
        statistics,
        table,
        full(compare=["midpoint"], budget=2),
        own=None,
        seed=0,
        readers={},
        entries={},
        weights=None,
    )
    said = verdict(found)
    assert "this run" not in said
    assert len(said["selections"]) == 2
    assert "nan" not in json.dumps(said)
    assert "[" not in said["selections"][1]
    assert None in as_json(found)["comparison"]["selections"][0]["half_width_db"]
