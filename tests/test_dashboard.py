"""A sweep's own run in W&B, and the workspace as code: both name what runs really track."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import wandb_files
import wandb_stub
from conftest import ANALYTIC, command, made_once, slow_unless
from test_comparison import made

from taqdit import config
from taqdit.cli.dashboard import contents_of
from taqdit.cli.dashboard import dashboard as verb
from taqdit.errors import ConfigError, InputError, StorageError
from taqdit.plots.options import paper
from taqdit.report import comparison
from taqdit.report.comparison import side_by_side
from taqdit.runs import sweep as sweeping
from taqdit.tracking import dashboard, tracker
from taqdit.tracking.credentials import key_configured
from taqdit.tracking.unsent import runs_below

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # the library's own
library = pytest.mark.skipif(
    find_spec("wandb_workspaces") is None, reason="the extra 'dashboards' is not installed"
)
TRACED = ("tracer=post_gelu", "tracer.blocks=[mm_00,mm_01]",
          "plots.layers=[mm_00_img]", "analysis.compare=[paper_uniform,midpoint]",
          "stages=[conditioning,trajectories,statistics,analysis,figures]")  # fmt: skip
TWO_SETS = (
    *("pair={cfg:1.5,steps:3},{cfg:4,steps:4}", "sampler.cfg_scale=${pair.cfg}"),
    *("schedule.num_steps=${pair.steps}", "sampler.num_trajectories=2", "sampler.batch_size=2"),
)
OFFLINE = {"_target_": "taqdit.tracking.wandb", "mode": "offline"}
LOCAL, NONE = {"_target_": "taqdit.tracking.local"}, {"_target_": "taqdit.tracking.none"}


def plan_of(*overrides):
    return config.plan(config.compose_config(overrides))


PLOTS = slow_unless([], ["minimal", "paper"])
PNG_ALONE = {  # as drawn, in the one format that W&B gets
    "minimal": ("plots=minimal",),
    "paper": ("plots=minimal", f"plots.figures=[{','.join(paper().drawn)}]"),
}


@pytest.fixture(scope="module", params=PLOTS)
def plots(request):
    """Which figures are drawn; all of them take a while."""
    return request.param


@pytest.fixture(scope="module")
def swept(tmp_path_factory, plots):
    """The folder of a real sweep of two jobs over two sets of trajectories, tracked offline."""

    def make(home):
        asked = (*TRACED, *PNG_ALONE[plots], f"output_dir={home / 'outputs'}")
        line, env = command("-m", *TWO_SETS, *asked)
        env |= {"HOME": str(home), "WANDB_DIR": str(home)}
        done = subprocess.run(line, cwd=home, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (folder,) = home.glob("outputs/sweeps/*/*")
        assert f"tracking      {folder / 'events.jsonl'}, {folder / 'wandb'}" in done.stdout

    home = made_once(tmp_path_factory, f"swept-{plots}", make)
    (folder,) = home.glob("outputs/sweeps/*/*")
    return folder


@pytest.fixture(scope="module")
def runs(swept):
    """What W&B was told: of the sweep's own run, then of its jobs."""
    return [wandb_files.read_run(folder) for folder in (swept, swept / "0", swept / "1")]


def online(monkeypatch, server):
    """This process talks to the stand-in for W&B."""
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", wandb_stub.SECRET)
    import wandb

    wandb.teardown()  # the settings of earlier tests


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


# --- a sweep's own run ----------------------------------------------------------------------


def test_a_sweep_is_one_more_run_in_the_group_of_its_jobs(swept, runs):
    own, *jobs = runs
    assert own.run["run_group"] == jobs[0].run["run_group"] == jobs[1].run["run_group"] != ""
    assert [each.run["job_type"] for each in runs] == ["sweep", "calibration", "calibration"]
    assert own.run["display_name"] == f"{swept.name}_sweep"
    shared = set(jobs[0].run["tags"]) & set(jobs[1].run["tags"])
    assert set(own.run["tags"]) == shared | {"sweep"}
    assert {"tracer:post_gelu", swept.parent.name} <= shared
    assert own.exit_code == 0


def test_its_config_is_what_the_jobs_share_and_which_they_are(runs):
    own, *jobs = runs
    assert own.config["schedule"] == {"_target_": "taqdit.schedule.flow", "shift": 3.0}
    assert "cfg_scale" in jobs[0].config["sampler"]
    assert "cfg_scale" not in own.config["sampler"]
    assert own.config["sampler"]["num_trajectories"] == 2
    told = own.config["sweep"]
    assert told["differ_in"] == ["pair", "sampler.cfg_scale", "schedule.num_steps"]
    assert [job["run"] for job in told["jobs"]] == [job.run["run_id"] for job in jobs]


def test_it_holds_the_table_the_verdict_the_figures_and_flat_numbers(swept, runs):
    own, *jobs = runs
    page = json.loads((swept / "comparison.json").read_text())["compared"]
    (files,) = swept.glob("wandb/offline-run-*/files")
    read = {name: json.loads((files / own.column(f"comparison/{name}.path")[0]).read_text())
            for name in ("runs", "verdict")}  # fmt: skip
    rows = [dict(zip(read["runs"]["columns"], row, strict=True)) for row in read["runs"]["data"]]
    assert [row["Run"] for row in rows] == [job.run["run_id"] for job in jobs]
    losses = [job.summary["selection/loss_8bit_db"] for job in jobs]
    assert [row["Loss 8"] for row in rows] == losses
    lines = [[topic, line] for topic, lines in page["verdict"].items() for line in lines]
    assert read["verdict"]["data"] == lines
    assert own.summary["verdict"] == "\n".join(f"{topic}: {line}" for topic, line in lines)
    assert own.summary["jobs/all"] == own.summary["jobs/ok"] == own.summary["jobs/analysed"] == 2
    assert own.summary["least/loss_8bit_db"] == min(losses)
    name = "jobs/pair=-cfg-1_5,steps-3-,cfg_scale=1_5,num_steps=3,paper_uniform/loss_8bit_db"
    assert own.summary[name] == losses[0]
    drawn = {path.stem for path in (swept / "figures").glob("*.png")}
    pictures = {key.split("/")[1].split(".")[0] for key in own.summary if key.startswith("figures")}
    assert pictures == drawn >= {"comparison_losses", "comparison_ranges"}


def test_sync_finds_it(swept):
    (own,) = [run for run in runs_below(swept) if run.folder == swept]
    assert own.tracked
    assert own.ended  # though the folder of a sweep has no summary.json
    assert not own.uploaded


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A comparison of two made-up runs; nothing is tracked yet."""
    home = tmp_path_factory.mktemp("drawn")
    runs = [made(home / str(cfg), cfg=cfg, run_id=f"r{cfg}") for cfg in (1, 4)]
    return comparison.compare(runs, home)


def tracked_as(found, folder, *nodes):
    """The same comparison in another folder, of runs that were tracked in these ways."""
    rows = [
        replace(row, run=replace(row.run, config={**row.run.config, "tracking": node}))
        for row, node in zip(found.rows, nodes, strict=True)
    ]
    folder.mkdir(exist_ok=True)
    return replace(found, folder=folder, rows=tuple(rows))


@pytest.mark.slow
def test_online_the_server_gets_it(swept, tmp_path, monkeypatch):
    found = comparison.compare([swept / "0", swept / "1"], tmp_path)
    with wandb_stub.Server() as server:
        online(monkeypatch, server)
        location = comparison.track(found)
        ((name, run),) = server.runs.items()
        assert f"{server.url}/tester/taqdit/runs/{name}" in location
        group = wandb_files.read_run(swept / "0").run["run_group"]
        assert (run["groupName"], run["jobType"]) == (group, "sweep")
        assert {"sweep", "tracer:post_gelu"} <= set(run["tags"])
        assert [row[-1] for row in server.table("comparison/runs")] == [
            row.run.run_id for row in found.rows
        ]
        (picture,) = server.column("figures/comparison_losses")
        drawn = (tmp_path / "figures" / "comparison_losses.png").read_bytes()
        assert server.files[picture["path"]] == drawn
        assert server.summaries[name]["jobs/ok"] == 2
        assert server.exit_codes == [0]


def test_a_sweep_is_tracked_as_its_jobs_were(drawn, tmp_path):
    for name, nodes in (("none", (NONE, NONE)), ("mixed", (LOCAL, NONE)), ("gone", (None, None))):
        found = tracked_as(drawn, tmp_path / name, *nodes)
        assert comparison.track(found) == ""
        assert list(found.folder.iterdir()) == []
    found = tracked_as(drawn, tmp_path / "local", LOCAL, LOCAL)
    assert comparison.track(found) == str(found.folder / "events.jsonl")
    assert [path.name for path in found.folder.iterdir()] == ["events.jsonl"]
    kinds = Counter(event["kind"] for event in events(found.folder))
    assert kinds == {"run": 1, "table": 2, "image": 2, "summary": 1, "finish": 1}
    assert events(found.folder)[0]["job_type"] == "sweep"


def test_pairs_and_failures_are_told(tmp_path):
    one, other = (made(tmp_path / rule, rule=rule, run_id=rule) for rule in ("midpoint", "normal"))
    failed = made(tmp_path / "y", cfg=7, status="failed", error="no space", run_id="y")
    found = comparison.compare([one, other, failed], tmp_path)
    comparison.track(tracked_as(found, tmp_path, *[LOCAL] * 3))
    told = events(tmp_path)
    (pairs,) = [event for event in told if event.get("name") == "comparison/pairs"]
    assert len(pairs["rows"]) == 1
    (summary,) = [event["values"] for event in told if event["kind"] == "summary"]
    assert (summary["pairs/all"], summary["jobs/ok"], summary["jobs/all"]) == (1, 2, 3)
    assert "no space" in summary["failures"]
    assert told[-1]["ok"] is False  # as the sweep's exit code has it


def end_of_sweep(found, monkeypatch):
    """What SweepReport does when the last job has ended; drawing is left out."""

    def compare(folders, into):
        found.page.touch()
        return found

    monkeypatch.setattr(side_by_side, "compare", compare)
    report = sweeping.SweepReport()
    report._compare([row.run.folder for row in found.rows], found.folder)
    return report.error


FAULTS = list(product(("init", "log", "finish"), ("raise", "hang")))
LONG = [("init", "hang"), ("finish", "hang")]


@pytest.mark.parametrize(
    ("where", "how"), slow_unless([f for f in FAULTS if f not in LONG], FAULTS)
)
def test_wandb_failing_at_the_end_loses_nothing(
    where, how, drawn, tmp_path, monkeypatch, capsys, caplog
):
    waits = {"init_timeout": 5.0, "call_timeout": 1.0, "finish_timeout": 2.0}
    found = tracked_as(drawn, tmp_path, *[OFFLINE | waits] * 2)
    fake = wandb_stub.Fake(tmp_path / "fake", where, how, patch=monkeypatch)
    assert end_of_sweep(found, monkeypatch) is None
    assert where in fake.calls
    assert "from here on events.jsonl alone" in caplog.text
    assert found.page.is_file()
    assert f"comparison    {found.page}\n" in capsys.readouterr().out
    assert [event["kind"] for event in events(tmp_path)][-2:] == ["summary", "finish"]
    assert events(tmp_path)[-1]["ok"] is True


def test_a_full_disk_is_an_error_and_the_page_stays(drawn, tmp_path, monkeypatch, capsys):
    def full(self, *_, **__):
        raise StorageError("no space left")

    found = tracked_as(drawn, tmp_path, LOCAL, LOCAL)
    monkeypatch.setattr(tracker.Tracker, "summary", full)
    error = end_of_sweep(found, monkeypatch)
    assert type(error) is StorageError
    assert error.args == ("the comparison is not tracked: no space left",)
    assert f"comparison    {found.page}\n" in capsys.readouterr().out
    assert events(tmp_path)[-1]["ok"] is False


@pytest.mark.slow
def test_a_sweep_ends_well_without_wandb(taqdit, tmp_path):
    """A wandb that cannot be imported, for the jobs and for the sweep."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "wandb.py").write_text("raise ImportError('no wandb here')")
    path = f"{tmp_path / 'broken'}:{Path(__file__).parent / 'plugins'}"
    asked = ("analysis=none", "tracking=wandb", "tracking.mode=offline", "sampler.seed=1,2")
    done = taqdit("-m", *ANALYTIC, *asked, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    (page,) = tmp_path.glob("outputs/sweeps/*/*/comparison.html")
    assert events(page.parent)[-1]["ok"] is True
    said = done.stdout + done.stderr
    assert said.count("W&B: init failed (ImportError: no wandb here)") == 3


# --- the workspace --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spec(plots):
    """What is sent to W&B for runs like those of the sweep."""
    contents = contents_of(plan_of(*TRACED, f"plots={plots}"))
    made = dashboard.workspace(contents, project="taqdit", entity="tester", name="taqdit tiny")
    return made._to_model().spec.model_dump(by_alias=True, exclude_none=True)["section"]


def panels(spec):
    return [panel for section in spec["panelBankConfig"]["sections"] for panel in section["panels"]]


def named(panel):
    """(where it is looked for, name) of everything that a panel shows."""
    about, kind = panel["config"], panel["viewType"]
    if kind == "Run History Line Plot":
        return [("rows", name) for name in (about["xAxis"], *about["metrics"])]
    if kind == "Bar Chart":
        return [("summary", name) for name in about["metrics"]]
    if kind == "Scatter Plot":
        return [tuple(about[axis].split(":", 1)) for axis in ("xAxis", "yAxis")]
    if kind == "Media Browser":
        return [("image-file", name) for name in about["mediaKeys"]]
    if kind == "Vega2":
        fields = about["userQuery"]["queryFields"][0]["fields"]
        return [("table-file", arg["value"]) for each in fields for arg in each.get("args", [])]
    assert kind == "Weave"
    return [("table-file", about["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"])]


def logged(runs):
    """The same of what runs tracked."""
    found = set()
    for run in runs:
        found |= {("summary", name) for name in run.summary}
        values = [item for row in run.history for item in row.items()]
        kinds = {(value, key.removesuffix("._type")) for key, value in values
                 if key.endswith("._type")}  # fmt: skip
        found |= kinds | {("rows", name) for _, name in kinds}
        found |= {("rows", key) for key, _ in values}
        for group, node in run.config.items():
            if isinstance(node, dict):
                found |= {("config", f"{group}.value.{key}") for key in node}
    return found


@library
def test_every_panel_names_what_runs_track(spec, runs, plots):
    wanted = {each for panel in panels(spec) for each in named(panel)}
    assert wanted - logged(runs) == set()
    assert Counter(where for where, _ in wanted) == {
        "rows": 1 + 4 + 4 + 4,  # the timestep; ranges, histograms; latents
        "summary": 1 + 3 + 2 * 3 + 2,
        "config": 2,
        "table-file": 1 + 2 + 2,
        "image-file": 3 + 5 + 10 + 4 + 5 if plots == "paper" else 9,
    }


@library
def test_curves_and_histograms_have_the_timestep_beside_them(spec, runs):
    _, job, _ = runs
    lines = [panel["config"] for panel in panels(spec) if "Line Plot" in panel["viewType"]]
    for name in [name for line in lines for name in line["metrics"]]:
        rows = [row for row in job.history if {name, f"{name}._type"} & row.keys()]
        assert rows
        assert all("timestep" in row for row in rows)
    assert {line["xAxis"] for line in lines} == {"timestep"}


@library
def test_runs_are_grouped_by_selection_and_sweep(spec, runs):
    assert spec["runSets"][0]["grouping"] == [
        {"section": "config", "name": "timestep_selection.value._target_"},
        {"section": "run", "name": "group"},
    ]
    assert spec["settings"]["useRunsTableGroupingInPanels"]
    (_, job, _) = runs
    rule = job.config["timestep_selection"]["_target_"]
    assert rule == "taqdit.timestep_selection.paper_uniform"
    pinned = [name.split(":", 1) for name in spec["runSets"][0]["runFeed"]["columnPinned"]]
    assert len(pinned) == 5
    assert {(where, name) for where, name in pinned if where == "summary"} <= logged(runs)


@library
def test_a_section_for_everything_that_is_tracked(spec):
    found = {each["name"]: [p["viewType"] for p in each["panels"]]
             for each in spec["panelBankConfig"]["sections"]}  # fmt: skip
    assert list(found) == ["Selection", "Sweeps", "Ranges", "Histograms", "Images"]
    assert {"Bar Chart", "Scatter Plot", "Weave"} == set(found["Selection"])
    assert found["Ranges"] == ["Run History Line Plot"] * 2 + ["Vega2"] * 2 + [
        "Run History Line Plot"
    ]
    assert found["Histograms"] == ["Run History Line Plot"] * 4
    assert set(found["Images"]) == {"Media Browser"}
    axes = {each["name"]: each["localPanelSettings"]["xAxis"]
            for each in spec["panelBankConfig"]["sections"]}  # fmt: skip
    assert axes["Ranges"] == axes["Histograms"] == "timestep"


@library
@pytest.mark.slow
def test_panels_stay_readable_for_a_large_model():
    contents = contents_of(plan_of("model=sd3_medium"))
    assert len(contents.sites) > 150
    lines = [panel for section in dashboard.workspace(
        contents, project="p", entity="e", name="n").sections for panel in section.panels
        if hasattr(panel, "y") and section.name in ("Ranges", "Histograms")]  # fmt: skip
    assert len(lines) <= 32
    assert max(len(panel.y) for panel in lines) <= dashboard.LINES
    firsts = [panel.y[0] for panel in lines if panel.title == "Largest magnitude: mm_img.post_gelu"]
    assert firsts == ["absmax/mm_00_img/post_gelu"]


@library
def test_what_is_not_made_has_no_section():
    def sections(*overrides):
        made = dashboard.workspace(
            contents_of(plan_of(*overrides)), project="p", entity="e", name="n"
        )
        return [section.name for section in made.sections]

    assert sections("tracer=none", "analysis=none", "plots=none") == []
    assert sections("analysis=none", "plots=none") == ["Ranges", "Histograms"]
    assert sections("tracer=none", "analysis=none", "plots=minimal") == ["Ranges", "Images"]
    names = contents_of(plan_of("sampler.images=false", "plots=minimal")).figures
    assert names == ("latent_curves", "selection_scores", "range_vs_timestep_all")  # as in a report


# --- taqdit dashboard push ------------------------------------------------------------------


@pytest.mark.slow
@library
def test_a_push_makes_a_view_and_the_next_one_replaces_it(taqdit, monkeypatch, capsys):
    with wandb_stub.Server() as server:
        known = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": wandb_stub.SECRET}
        first = taqdit("dashboard", "push", *TRACED, **known, WANDB_MODE="offline")
        assert (first.returncode, first.stderr) == (0, "")
        (view,) = server.views
        shown = view["name"].removeprefix("nw-").removesuffix("-v")
        assert first.stdout == f"dashboard     {server.url}/tester/taqdit?nw={shown}\n"
        assert view["displayName"] == "taqdit tiny"
        sections = view["spec"]["section"]["panelBankConfig"]["sections"]
        assert [each["name"] for each in sections][0::2] == ["Selection", "Ranges", "Images"]
        online(monkeypatch, server)
        assert verb(["push", "plots=none", "--entity", "tester"]) == 0  # no pictures any more
        assert capsys.readouterr() == (first.stdout, "")
        assert [each["id"] for each in server.views] == [view["id"]]
        sections = view["spec"]["section"]["panelBankConfig"]["sections"]
        assert "Images" not in [each["name"] for each in sections]
        verb(["push", "--new"])
        verb(["push", "--name", "mine"])
        names = [each["displayName"] for each in server.views]
        assert names == ["taqdit tiny", "taqdit tiny", "mine"]
        assert len({each["name"] for each in server.views}) == 3
        server.project = "other"
        verb(["push", "--project", "other"])
        verb(["push", "tracking.project=other", "tracking.entity=tester"])
        assert len(server.views) == 3


@library
def test_what_is_missing_is_one_line(monkeypatch):
    assert not key_configured()
    with pytest.raises(ConfigError, match="no key configured; set WANDB_API_KEY or run"):
        verb(["push"])
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ConfigError, match="install taqdit with its extra 'dashboards'"):
        verb(["push"])
    with pytest.raises(ConfigError, match=r"schedule\.num_steps=0"):
        verb(["push", "schedule.num_steps=0"])


@library
@pytest.mark.slow
def test_a_server_that_refuses_or_is_not_there_is_one_line(monkeypatch):
    with wandb_stub.Server(refuse=True) as server:
        online(monkeypatch, server)
        with pytest.raises(StorageError, match=r"did not take .*permission denied"):
            verb(["push"])
        with pytest.raises(InputError, match="no project tester/other that your key may see"):
            verb(["push", "--project", "other"])
        with pytest.raises(InputError, match="no project me/taqdit"):
            verb(["push", "--entity", "me"])
    monkeypatch.setattr(dashboard, "PATIENCE", 1)
    with pytest.raises(StorageError, match="did not take the dashboard") as gone:
        verb(["push"])
    assert len(gone.value.args) == 1
    assert "\n" not in gone.value.args[0]
    assert wandb_stub.SECRET not in gone.value.args[0]


def test_without_a_word_it_explains_itself(capsys):
    assert verb([]) == 2
    said = capsys.readouterr().out
    assert said.startswith("usage: taqdit dashboard push [--entity E] [--project P]")
    assert verb(["--help"]) == 0
    assert capsys.readouterr().out == said
    with pytest.raises(ConfigError, match="'pull' is unknown; there is: taqdit dashboard push"):
        verb(["pull"])
    with pytest.raises(ConfigError, match="see taqdit dashboard push --help"):
        verb(["push", "--nothing"])
