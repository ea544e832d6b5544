"""Whole runs that analyse: what they leave, what they reuse, and that no model answers for it."""

import contextlib
import csv
import dataclasses
import html
import io
import json
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import wandb_stub
from conftest import tree

import taqdit as package
from taqdit.activations.opened import layers_of
from taqdit.analysis.bits import seed_bits
from taqdit.analysis.profile import profile
from taqdit.analysis.quantization_config import quantization_config
from taqdit.analysis.selections import step_weights
from taqdit.errors import InputError
from taqdit.models.diffusionkit import MMDiT
from taqdit.models.linears import linear_paths
from taqdit.models.options import tiny
from taqdit.models.pipeline import PipelineModel
from taqdit.models.spec import ModelSpec
from taqdit.plots.drawing import Of
from taqdit.plots.options import paper
from taqdit.report import figures
from taqdit.runs import outputs as showing
from taqdit.runs.api import open_run
from taqdit.timestep_selection import catalogue
from taqdit.timestep_selection.steps import TrajectorySteps

STEPS, COUNT, BUDGETS = 6, 3, [2, 3, 6]
SITES = 13  # of two of the six blocks: the last one ends its text early
RULES = ("paper_uniform", "dense_middle", "interleaved", "coverage_optimal")
GRID = (
    f"schedule.num_steps={STEPS}",
    "sampler.num_trajectories=4",
    "sampler.batch_size=2",
    "sampler.images=false",
    "calibration.export=false",
)
TRACED = ("tracer=block_inputs", "tracer.folds=4", "tracer.blocks=[mm_00,mm_05]")
COMPARED = (
    f"analysis.compare=[{','.join(RULES)}]",
    f"analysis.budget={COUNT}",
    f"analysis.budgets={BUDGETS}",
)
COVERING = ("timestep_selection=coverage_optimal", f"timestep_selection.count={COUNT}")
QUIET = ("plots=none", "tracking=none")
TABLES = {
    "Selections": "selection_scores.csv",
    "Bit widths": "bit_widths.csv",
    "Outliers": "outliers.csv",
    "Sites": "sites.csv",
    "Weights": "weights.csv",
}
FILES = ["analysis.json", "quantization_config.json", *TABLES.values()]
FIELDS = [
    "suggested_weight_bits",
    "suggested_activation_bits",
    "use_percentile_clipping",
    "clip_percentile",
]


def launched(*overrides):
    """A finished run and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run = package.launch(overrides)
    return run, printed.getvalue()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run from nothing: its selection is made from the statistics that it traces."""
    folder = tmp_path_factory.mktemp("analysed")
    extra = ("statistics.npz=true", "tracking=local", "plots=none", f"output_dir={folder}")
    run, printed = launched(*GRID, *TRACED, *COMPARED, *COVERING, *extra)
    return SimpleNamespace(run=run, folder=run.folder, printed=printed, outputs=folder)


@pytest.fixture
def again(first):
    """Another run over the same store."""

    def go(*overrides, traced=TRACED, compared=COMPARED, selected=COVERING, quiet=QUIET):
        options = (*GRID, *traced, *compared, *selected, *quiet, *overrides)
        return launched(*options, f"output_dir={first.outputs}")[0]

    return go


def no_number(text):
    raise AssertionError(f"{text} is no JSON")


def loaded(folder, name="analysis.json"):
    return json.loads((folder / name).read_text("utf-8"), parse_constant=no_number)


def made(run):
    return {stage["name"]: stage["made"] for stage in run.summary["stages"]}


def analysed(run):
    """What the analysis wrote into a run's folder."""
    return {name: (run.folder / name).read_bytes() for name in FILES}


# --- no model -------------------------------------------------------------------------------


class Called(Exception):
    """The model was asked for something."""


@pytest.fixture
def mute(monkeypatch):
    """No model answers; where `load` is false none is even loaded."""

    def refuse(*_, **__):
        raise Called

    def install(*, load):
        for name in ("denoiser", "encode", "decode", "first_latent"):
            monkeypatch.setattr(PipelineModel, name, refuse)
        monkeypatch.setattr(MMDiT, "__call__", refuse)
        if not load:
            monkeypatch.setattr(ModelSpec, "load", refuse)

    return install


OTHER = (
    "analysis.target=30",
    "analysis.group_size=64",
    "analysis.weighting=equal",
    "analysis.phases=seed",
)


def test_nothing_of_the_analysis_runs_the_model(first, again, mute):
    mute(load=False)
    regret = ("timestep_selection=regret_optimal", "timestep_selection.count=2")
    run = again(*OTHER, selected=regret)
    assert made(run) == {"conditioning": 0, "trajectories": 0, "statistics": 0, "weights": 0}
    assert run.summary["calibration"]["points"] == 8
    found = loaded(run.folder)
    assert (found["comparison"]["weighting"], found["widths"]) == ("equal", [8, 6, 4])
    assert loaded(run.folder, "collection_metadata.json")["quantization"]["target_db"] == 30
    for name in ("analysis.json", "quantization_config.json", "bit_widths.csv"):
        assert (run.folder / name).read_bytes() != (first.folder / name).read_bytes()


def test_the_weights_are_read_and_not_run(first, again, mute):
    mute(load=True)
    run = again("refresh=[weights]")
    assert made(run) == {"conditioning": 0, "trajectories": 0, "statistics": 0, "weights": 89}
    assert analysed(run) == analysed(first)


def test_a_muted_model_is_missed(again, mute):
    """By a run that samples, so that the tests above can fail."""
    mute(load=True)
    with pytest.raises(Called):
        again("sampler.seed=1")


# --- what a run leaves ----------------------------------------------------------------------


def test_a_run_leaves_its_analysis(first):
    found = loaded(first.folder)
    comparison = found["comparison"]
    assert (comparison["count"], comparison["num_steps"]) == (COUNT, STEPS)
    assert [each["rule"] for each in comparison["selections"]] == list(RULES)
    assert sorted(comparison["ranking"]) == sorted(
        each["rule"] for each in comparison["selections"] if each["points"] == COUNT
    )
    fitted = [each["rule"] for each in comparison["selections"] if each["fitted"]]
    assert fitted == ["coverage_optimal"]
    assert len(found["drift"]["distance"][0]) == STEPS - 1
    assert comparison["own"] == RULES.index("coverage_optimal")
    own = comparison["selections"][comparison["own"]]
    assert own["steps"] == first.run.summary["calibration"]["steps"]
    names = [site.name for site in first.run.statistics().sites]
    assert len(names) == SITES
    assert comparison["sites"] == names
    assert sorted(found["outliers"]) == sorted(found["drift"]["borders"]) == sorted(names)
    assert first.run.summary["analysis"]["files"] == FILES


def test_every_linear_of_the_model_gets_its_bits(first):
    found = loaded(first.folder, "quantization_config.json")
    assert list(found) == sorted(linear_paths(tiny()))  # published with sorted keys
    read = {layer for site in first.run.statistics().sites for layer in layers_of(site)}
    assert 0 < len(read) < len(found)
    for layer, entry in found.items():
        assert sorted(entry) == sorted(FIELDS if layer in read else FIELDS[:1])
        assert {entry["suggested_weight_bits"]} < {4, 6, 8}
        if layer in read:
            assert entry["suggested_activation_bits"] in (4, 6, 8)
            assert (entry["clip_percentile"] is not None) is entry["use_percentile_clipping"]
    assert {found[layer]["suggested_weight_bits"] for layer in ("embed.x", "final.linear")} == {8}


def test_the_metadata_say_how_the_bits_were_chosen(first):
    metadata = loaded(first.folder, "collection_metadata.json")
    settings = metadata["quantization"]
    assert loaded(first.folder)["quantization"] == settings
    assert (settings["rule"], settings["target_db"]) == ("sqnr", 20)
    assert settings["weight_granularity"] == "channel"
    assert set(settings["layers"]) == set(loaded(first.folder, "quantization_config.json"))
    assert metadata["config"]["analysis"]["budget"] == COUNT
    assert metadata["statistics"]["fingerprint"] == first.run.statistics().fingerprint


class Tables(HTMLParser):
    """Title -> the rows of each table of a page, heads first; a number is its whole value."""

    def __init__(self, text):
        super().__init__()
        self.found, self.buttons = {}, {}
        self._rows, self._open, self._value, self._text = [], "", None, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag in ("h3", "th", "td"):
            self._open, self._text = tag, ""
            none = "none" in attributes.get("class", "")
            self._value = "" if none else attributes.get("data-value")
        elif tag == "table":
            self._rows = self.found[self._title] = []
            self.buttons[self._title] = 0
        elif tag == "tr":
            self._rows.append([])
        elif tag == "button":
            self.buttons[self._title] += 1

    def handle_data(self, data):
        self._text += data

    def handle_endtag(self, tag):
        if tag == "h3":
            self._title = self._text
        elif tag in ("th", "td"):
            self._rows[-1].append(self._text if self._value is None else self._value)


def same(one, other):
    """Whether two cells hold the same number or text."""
    try:
        return np.array_equal(float(one), float(other), equal_nan=True)
    except ValueError:
        return one == other


def test_the_files_hold_what_the_page_shows(first):
    page = Tables((first.folder / "report.html").read_text("utf-8"))
    for title, name in TABLES.items():
        with (first.folder / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        shown = page.found[title]
        assert len(rows) == len(shown) > 2, title
        for row, cells in zip(rows, shown, strict=True):
            assert all(map(same, row, cells)), (title, row, cells)
            assert len(row) == len(cells) == page.buttons[title]
    assert len(page.found["Weights"]) == len(page.found["Bit widths"]) == 1 + 89


def test_the_verdict_has_ten_lines_at_most_and_is_printed_last(first):
    verdict = first.run.summary["analysis"]["verdict"]
    texts = [text for lines in verdict.values() for text in lines]
    assert 7 <= len(texts) <= 10
    lines = first.printed.splitlines()
    assert lines[0].startswith("layer ")
    places = sorted([line[14:] for line in lines].index(text) for text in texts)
    assert places == list(range(places[0], places[0] + len(texts)))
    said = [topic for place in places if (topic := lines[place][:14].strip())]
    assert said == ["selections", "this run", "enough", "worst sites", "phases", "bits"]
    assert said == sorted(verdict, key=said.index)
    assert lines[places[-1] + 1] == ""
    assert not [line for line in lines[places[-1] + 1 :] if "_img" in line]  # what was made
    assert verdict["this run"][0].startswith("coverage_optimal†, 3 points per trajectory")
    page = (first.folder / "report.html").read_text("utf-8")
    assert '<h2 id="findings">Findings</h2>' in page
    found = [(topic, page.index(f"<dt>{topic}</dt>")) for topic in said]
    assert found == sorted(found, key=lambda pair: pair[1])
    for lines in verdict.values():
        assert html.escape("\n".join(lines)) in page


def test_selections_of_every_step_do_not_differ(again):
    compared = (COMPARED[0], f"analysis.budget={STEPS}", "analysis.budgets=[1]")
    verdict = again("stages=[statistics,analysis]", compared=compared).summary["analysis"][
        "verdict"
    ]
    assert "-0.000" not in str(verdict)
    assert verdict["selections"][1].startswith("best: paper_uniform loses")
    assert "worse" not in verdict["selections"][1]


@pytest.mark.slow
def test_the_figures_of_the_analysis_are_among_the_files(again, monkeypatch):
    monkeypatch.setattr(showing, "activation_figures", lambda *_, **__: ())
    monkeypatch.setattr(showing, "latent_figures", lambda *_, **__: ())
    run = again("plots=paper", quiet=("tracking=none",))
    names = [kind.name for kind in paper().kinds(Of.ANALYSIS)]
    wanted = [f"figures/{name}.{kind}" for name in names for kind in ("png", "svg", "csv")]
    assert run.summary["figures"] == wanted
    assert all((run.folder / name).stat().st_size > 50 for name in wanted)
    page = (run.folder / "report.html").read_text("utf-8")
    assert page.count('<img src="data:image/png') == len(names) == 5


def test_two_runs_give_the_same_bytes(first, again):
    assert analysed(again()) == analysed(first)


def test_a_corrupt_table_of_weights_is_made_anew(first, again):
    stage = next(each for each in first.run.summary["stages"] if each["name"] == "weights")
    path = first.outputs / "store" / stage["folder"] / "weights.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    run = again()
    assert made(run) == {"conditioning": 0, "trajectories": 0, "statistics": 0, "weights": 89}
    report = next(each for each in run.summary["stages"] if each["name"] == "weights")
    assert [name for name, _ in report["moved_aside"]] == [path.name]
    assert path.read_bytes() == good
    assert analysed(run) == analysed(first)


# --- rules that select from the statistics --------------------------------------------------


def steps_by(rule, run, weighting, **arguments):
    """What a data-driven rule gives on the run's stored statistics."""
    statistics = run.statistics()
    evidence = profile(statistics, step_weights(statistics.sigmas, weighting)).evidence
    sigmas = np.append(statistics.sigmas, 0.0)
    chosen = catalogue.RULES[rule](TrajectorySteps(sigmas, evidence=evidence), **arguments)
    return chosen.indices.tolist()


def points(calibration):
    return [(point.trajectory, point.step, point.latent.tobytes()) for point in calibration]


def test_a_run_traces_first_and_selects_afterwards(first):
    steps = steps_by("coverage_optimal", first.run, "dt", count=COUNT)
    assert first.run.summary["calibration"]["steps"] == steps
    calibration = open_run(first.folder).calibration()
    latents = [first.run.trajectories().latents(index) for index in range(4)]
    assert points(calibration) == [
        (index, step, latents[index][step].tobytes()) for step in steps for index in range(4)
    ]


@pytest.mark.parametrize(
    ("rule", "arguments", "options"),
    [
        ("regret_optimal", {"count": 2, "bits": 4}, ("analysis.weighting=equal",)),
        pytest.param("drift_weighted", {"count": 4, "gamma": 2.0}, None, marks=pytest.mark.slow),
    ],
)
def test_data_driven_rules_select_by_the_stored_statistics(again, rule, arguments, options):
    given = [f"timestep_selection.{name}={value}" for name, value in arguments.items()]
    selected = (f"timestep_selection={rule}", *given, "stages=[statistics,calibration]")
    compared = ("analysis=none",) if options is None else (*COMPARED, *options)
    run = again("calibration.export=true", compared=compared, selected=selected)
    steps = steps_by(rule, run, "dt" if options is None else "equal", **arguments)
    assert run.summary["calibration"]["steps"] == steps
    assert len(steps) == arguments["count"]
    calibration = open_run(run.folder).calibration()
    assert calibration.steps.tolist() == steps
    order = np.random.default_rng(0).permutation(len(calibration))
    with np.load(run.folder / "calibration.npz", allow_pickle=False) as npz:
        np.testing.assert_array_equal(npz["xs"], calibration.latents(order))


def test_a_plan_counts_the_points_of_a_data_driven_rule(tmp_path):
    options = (*GRID, *TRACED, *COVERING, *QUIET, f"output_dir={tmp_path}", "preflight=only")
    run, _ = launched(*options)
    assert run.summary["preflight"]["points"] == 4 * COUNT
    assert run.summary["status"] == "preflight"
    assert not (tmp_path / "store").exists()


# --- less than everything -------------------------------------------------------------------

LESS = {
    "no analysis": {"compared": ("analysis=none",)},
    "no such stage": {"compared": ("stages=[statistics,weights,calibration,figures,report]",)},
    "no tracer": {"traced": ("tracer=none",), "selected": ()},
}


@pytest.mark.parametrize("less", LESS)
def test_no_analysis_leaves_no_file_of_it(again, less, caplog):
    caplog.set_level("INFO")
    run = again(**LESS[less])
    said = "nothing was traced, so there is nothing to analyse" in caplog.messages
    assert said is (less == "no tracer")
    assert run.summary["status"] == "ok"
    assert "analysis" not in run.summary
    assert not [name for name in FILES if (run.folder / name).exists()]
    page = (run.folder / "report.html").read_text("utf-8")
    assert "Findings" not in page
    assert not TABLES.keys() & Tables(page).found.keys()
    if less != "no tracer":
        assert "quantization" not in loaded(run.folder, "collection_metadata.json")


def test_without_weights_inputs_alone_get_bits(again):
    run = again("stages=[statistics,analysis,report]")
    assert made(run) == {"conditioning": 0, "trajectories": 0, "statistics": 0}
    found = loaded(run.folder, "quantization_config.json")
    read = {layer for site in run.statistics().sites for layer in layers_of(site)}
    assert set(found) == read
    assert {entry["suggested_weight_bits"] for entry in found.values()} == {None}
    assert {entry["suggested_activation_bits"] for entry in found.values()} <= {4, 6, 8}
    assert not (run.folder / "weights.csv").exists()
    assert not [text for text in run.summary["analysis"]["verdict"]["bits"] if "weights" in text]
    assert "bits/weight_mean" not in run.summary["analysis"]["scores"]


def test_the_older_rule_reads_the_exported_statistics(again):
    run = again("analysis.rule=seed")
    layers = loaded(run.folder, "layer_statistics.json")
    expected = quantization_config(seed_bits(layers))
    assert loaded(run.folder, "quantization_config.json") == expected
    metadata = loaded(run.folder, "collection_metadata.json")
    assert metadata["quantization"]["rule"] == "seed"
    sites = {layer: each["site"] for layer, each in metadata["quantization"]["layers"].items()}
    assert sites == metadata["layers"]


# --- statistics made elsewhere --------------------------------------------------------------


def test_statistics_of_another_store_are_analysed_as_they_are(first, tmp_path, mute):
    mute(load=False)
    path = first.run.statistics().folder
    before = tree(path)
    imported = (f"inputs.statistics={path}", f"output_dir={tmp_path}", "schedule.num_steps=2")
    run, printed = launched(*COMPARED, *QUIET, *imported)
    assert run.summary["stages"] == []
    assert not (tmp_path / "store").exists()
    found, known = (loaded(each)["comparison"] for each in (run.folder, first.folder))
    assert found.pop("own") is None
    assert known.pop("own") is not None
    assert found == known
    entries = loaded(run.folder, "quantization_config.json")
    assert set(entries) == {layer for site in run.statistics().sites for layer in layers_of(site)}
    assert {entry["suggested_weight_bits"] for entry in entries.values()} == {None}
    assert "this run" not in run.summary["analysis"]["verdict"]
    assert not [key for key in run.summary["analysis"]["scores"] if key.startswith("selection/")]
    assert not (run.folder / "weights.csv").exists()
    assert "this run" not in printed
    assert tree(path) == before


def test_an_imported_file_is_not_analysed_and_that_is_said(first, tmp_path, caplog):
    caplog.set_level("INFO")
    path = first.folder / "activation_statistics.npz"
    run, printed = launched(
        *COMPARED, *QUIET, f"inputs.statistics={path}", f"output_dir={tmp_path}"
    )
    assert run.summary["status"] == "ok"
    assert run.summary["statistics"]["sites"] == SITES
    assert f"{path} has no histograms that can be pooled: it is not analysed" in caplog.messages
    with pytest.raises(InputError, match="have no histograms"):
        package.compare_selections(run.statistics(), ["midpoint"])
    assert "analysis" not in run.summary
    assert not [name for name in FILES if (run.folder / name).exists()]
    page = (run.folder / "report.html").read_text("utf-8")
    assert "Findings" not in page
    assert not TABLES.keys() & Tables(page).found.keys()
    assert not re.findall("^(selections|bits|analysis|calibration) ", printed, re.MULTILINE)


# --- the tracker ----------------------------------------------------------------------------


def told(folder, kind):
    lines = (folder / "events.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line, parse_constant=no_number) for line in lines]
    return [event for event in events if event["kind"] == kind]


def test_the_tracker_gets_finite_numbers_and_the_tables(first):
    summary = {
        key: value
        for each in told(first.folder, "summary")
        for key, value in each["values"].items()
    }
    numbers = first.run.summary["analysis"]["scores"]
    assert numbers.items() <= summary.items()
    assert all(type(value) is float and math.isfinite(value) for value in numbers.values())
    found = loaded(first.folder)["comparison"]["selections"]
    for rule, each in zip(RULES, found, strict=True):
        losses = [summary[f"scores/{rule}/loss_{bits}bit_db"] for bits in (8, 6, 4)]
        assert losses == each["loss_db"]
    own = found[RULES.index("coverage_optimal")]
    assert summary["selection/loss_8bit_db"] == own["loss_db"][0]
    assert summary["selection/points"] == COUNT
    np.testing.assert_allclose(summary["selection/range_coverage"], np.mean(own["range_coverage"]))
    entries = loaded(first.folder, "quantization_config.json").values()
    for what in ("weight", "activation"):
        widths = [each[key] for each in entries if (key := f"suggested_{what}_bits") in each]
        np.testing.assert_allclose(summary[f"bits/{what}_mean"], np.mean(widths))
    tables = {each["name"]: each for each in told(first.folder, "table")}
    assert {f"analysis/{title.lower()}" for title in TABLES} <= tables.keys()
    assert [row[0] for row in tables["analysis/selections"]["rows"]] == list(RULES)
    assert len(tables["analysis/weights"]["rows"]) == 89


def test_a_wandb_that_fails_costs_no_analysis(first, again, tmp_path, monkeypatch, caplog):
    broken = wandb_stub.Fake(tmp_path / "fake", "log", "raise", patch=monkeypatch)
    run = again(quiet=("plots=none", "tracking=wandb", "tracking.mode=offline"))
    assert broken.calls.count("log") == 1
    assert "from here on events.jsonl alone" in caplog.text
    assert run.summary["status"] == "ok"
    assert analysed(run) == analysed(first)
    assert told(run.folder, "table")
    assert told(run.folder, "finish")[0]["ok"] is True


# --- from Python ----------------------------------------------------------------------------


def test_selections_compared_from_python_are_those_of_the_run(first, tmp_path, mute):
    mute(load=False)
    found = package.compare_selections(
        first.run.statistics(),
        RULES,
        count=COUNT,
        budgets=BUDGETS,
        figure=tmp_path / "made" / "budget.png",
    )
    known = loaded(first.folder)["comparison"]
    scores = found.scores
    assert found.compared == len(RULES)
    assert [scores.rules[place] for place in found.ranking] == known["ranking"]
    for place, each in enumerate(known["selections"]):
        assert scores.rules[place] == each["rule"]
        assert scores.loss[place].tolist() == each["loss_db"]
        assert scores.losses.half_width[place].tolist() == each["half_width_db"]
        assert scores.w1[place].tolist() == each["w1"]
    for curve, each in zip(found.curves, known["curves"], strict=True):
        plain = {key: np.array(value).tolist() for key, value in dataclasses.asdict(curve).items()}
        assert plain == each
    files = tree(tmp_path / "made")
    assert sorted(files) == ["budget.csv", "budget.png", "budget.svg"]
    assert files["budget.png"].startswith(b"\x89PNG")
    assert b"<svg" in files["budget.svg"]
    assert b"coverage_optimal" in files["budget.csv"]


def test_the_stage_of_the_weights_runs_alone(tmp_path):
    run, _ = launched(*GRID, *QUIET, f"output_dir={tmp_path}", "stages=[weights]")
    assert made(run)["weights"] == len(linear_paths(tiny()))
    assert "analysis" not in run.summary


@pytest.mark.slow
def test_a_figure_that_runs_share_is_what_each_would_draw(again, monkeypatch):
    """All figures, as SVG alone: of another selection, with those shared that may be, and anew."""
    drawn = []
    real = figures.rendered

    def once(figure, table, *, formats):
        drawn.append(1)
        files = real(figure, table, formats=("svg",))
        return {kind: files["svg"] for kind in formats} | {"csv": files["csv"]}

    monkeypatch.setattr(figures, "rendered", once)
    options = ("plots=paper", "stages=[statistics,weights,analysis,figures]")
    other = {"selected": ("timestep_selection=midpoint", "timestep_selection.count=2")}
    again(*options, "refresh=[figures]", quiet=("tracking=none",))  # what others drew is set aside
    drawn.clear()
    shared = tree(again(*options, **other, quiet=("tracking=none",)).folder / "figures")
    assert len(drawn) == 5  # what shows the selection
    anew = again(*options, "refresh=[figures]", **other, quiet=("tracking=none",))
    assert len(drawn) == 5 + len(shared) // 3
    assert tree(anew.folder / "figures") == shared
