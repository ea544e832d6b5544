"""Verbs: a run repeated from its record, runs compared, offline runs uploaded."""

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import wandb_stub
from conftest import ANALYTIC, command, slow_unless, tree
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from taqdit.cli import rerun
from taqdit.cli import sync as sync_verb
from taqdit.cli import verbs as cli
from taqdit.config import compose_config
from taqdit.config.building import plain
from taqdit.config.overrides import agrees, flatten, hides, spell
from taqdit.errors import ConfigError, CorruptError, InputError, StorageError
from taqdit.store.secrets import MASK
from taqdit.tracking import unsent

SMALL = (*ANALYTIC, "tracking=local", "plots=none", "calibration.export=false")


# --- overrides -------------------------------------------------------------------------------

texts = st.text(alphabet="ab1'\"\\ ${},:=[]()\n#é", max_size=9)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=6,
)


@given(values)
def test_hydra_reads_back_what_is_spelled(value):
    override = OverridesParser.create().parse_override(f"++key={spell(value)}")
    node = OmegaConf.create({"key": override.value()})
    found = OmegaConf.to_container(node, resolve=True)["key"]
    assert found == value
    assert type(found) is type(value)


def test_flatten_names_every_value():
    config = {"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}, "f": {}, "g": {"no name": 1}}
    assert flatten(config) == {"a.b.c": 1, "a.d": [1, {"e": 2}], "f": {}, "g": {"no name": 1}}


@pytest.mark.parametrize(
    ("recorded", "value", "expected"),
    [
        (1, 1, True),
        (1, 1.0, False),  # Hydra tells them apart, and so may an option
        (True, 1, False),
        (MASK, "secret", True),
        (MASK, 12, True),
        (MASK, None, False),
        (f"https://{MASK}@host", "https://me:pw@host", True),
        (f"https://{MASK}@host", "https://me:pw@other", False),
        (["a", MASK], ["a", "b"], True),
        (["a", MASK], ["a"], False),
        ([1], None, False),
    ],
)
def test_a_masked_value_agrees_with_what_it_may_have_been(recorded, value, expected):
    assert agrees(recorded, value) is expected
    assert hides(recorded) == (MASK in str(recorded))


# --- rerun -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run of the analytic model, and the folder of its outputs; not to be changed."""
    home = tmp_path_factory.mktemp("original")
    line, env = command(*SMALL, "timestep_selection=midpoint")
    done = subprocess.run(line, cwd=home, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = home.glob("outputs/runs/*/*")
    return run


@pytest.fixture
def run(original, tmp_path):
    """A private copy of the run with its store; moved as a whole, it stays a run."""
    outputs = original.parents[2]
    shutil.copytree(outputs, tmp_path / "moved")
    return tmp_path / "moved" / original.relative_to(outputs)


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


def change(folder, edit):
    """Edit run.json as if the run had been made that way."""
    record = record_of(folder)
    edit(record)
    (folder / "run.json").write_text(json.dumps(record))


def configuration(overrides):
    found = plain(compose_config(overrides))
    found.pop("output_dir")
    return found


@pytest.mark.slow
def test_a_rerun_is_a_new_run_over_the_same_store(run, taqdit, tmp_path):
    before, store = tree(run), tree(run.parents[2] / "store")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = taqdit("rerun", str(run), cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [f"rerun of {run}", "nothing differs"]
    assert list(elsewhere.iterdir()) == []
    assert tree(run) == before
    assert tree(run.parents[2] / "store") == store
    (new,) = set(run.parents[2].glob("runs/*/*")) - {run}
    then, now = record_of(run), record_of(new)
    same = ("choices", "prompts", "stages", "store", "versions", "backend")
    assert {key: now[key] for key in same} == {key: then[key] for key in same}
    assert now["config"] | {"output_dir": "outputs"} == then["config"]
    stages = json.loads((new / "summary.json").read_text())["stages"]
    assert [stage["made"] for stage in stages] == [0, 0]
    again = taqdit("rerun", str(new), cwd=elsewhere)  # a rerun is a run
    assert "nothing differs" in again.stdout, again.stdout + again.stderr


def test_overrides_change_the_run_and_are_told(run):
    found = rerun.prepare([str(run), "timestep_selection=dense_middle", "sampler.seed=7"])
    config = configuration(found.overrides)
    assert config["timestep_selection"]["_target_"] == "taqdit.timestep_selection.dense_middle"
    assert config["sampler"]["seed"] == 7
    words = "\n".join(found.words)
    assert "config    sampler.seed: 0 then, 7 now" in words
    assert "'taqdit.timestep_selection.midpoint' then" in words
    assert "stage     trajectories: other inputs (seed)" in words
    assert "stage     conditioning" not in words


def test_recorded_values_hold_where_a_default_has_changed(run):
    change(run, lambda record: record["config"]["schedule"].update(shift=2.5))
    found = rerun.prepare([str(run)])
    assert configuration(found.overrides)["schedule"]["shift"] == 2.5
    assert "  kept      schedule.shift=2.5; the default is now 3.0" in found.words
    for shift in (3.0, 4.0):  # an override wins, though it says what the default says
        changed = rerun.prepare([str(run), f"schedule.shift={shift}"])
        assert configuration(changed.overrides)["schedule"]["shift"] == shift
        assert f"  config    schedule.shift: 2.5 then, {shift} now" in changed.words
        assert "kept" not in str(changed)


@pytest.mark.parametrize(
    "state", slow_unless(["gone"], ["gone", "no longer composes", "not a list"])
)
def test_the_record_alone_is_enough(run, state):
    """Without the run's own overrides its chosen options and values give the same run."""
    expected = configuration(rerun.prepare([str(run)]).overrides)
    path = run / ".hydra" / "overrides.yaml"
    if state == "gone":
        shutil.rmtree(path.parent)
    else:
        path.write_text("- sampler=of_another_age" if state != "not a list" else "what: 1")
    assert configuration(rerun.prepare([str(run)]).overrides) == expected


def test_a_job_of_a_sweep_is_repeated_as_a_single_run(run):
    path = run / ".hydra" / "overrides.yaml"
    more = ["sweep=selection", "hydra.run.dir=somewhere", "refresh=[figures]", "preflight=only"]
    path.write_text(path.read_text() + "".join(f"- {each}\n" for each in more))
    overrides = rerun.prepare([str(run)]).overrides
    left = ("sweep", "hydra", "refresh", "preflight")
    assert not [each for each in overrides if each.startswith(left)]


def test_versions_backend_and_weights_are_compared(run, monkeypatch):
    def edit(record):
        record["versions"] |= {"numpy": "1.0", "gone": "2.0"}
        record["python"] = "3.0.0"
        record["backend"]["device"] = "abacus"

    change(run, edit)
    words = rerun.prepare([str(run)]).words
    assert any(w.startswith("  version   numpy: 1.0 then, ") for w in words)
    assert "  version   gone: 2.0 then, none now" in words
    assert any(w.startswith("  version   python: 3.0.0 then, ") for w in words)
    assert any(w.startswith("  backend   device: abacus then, ") for w in words)
    assert len(words) == 4


def test_changed_weights_are_named(run):
    def edit(record):
        for name, mark in record["stages"].items():
            path = run.parents[2] / "store" / name / mark[:12] / "stage.json"
            stage = json.loads(path.read_text())
            stage["inputs"]["weights"] = {"denoiser": "ab" * 32}
            path.write_text(json.dumps(stage))
            moved = path.parent.rename(path.parent.with_name("c" * 12))
            assert moved.is_dir()
            record["stages"][name] = "c" * 64

    change(run, edit)
    words = rerun.prepare([str(run)]).words
    assert "  stage     conditioning: other inputs (weights), so another folder" in words
    assert f"  weights   denoiser: {'ab' * 6} then, none now" in words


def test_a_stage_that_left_the_store_is_named(run):
    mark = record_of(run)["stages"]["trajectories"]
    shutil.rmtree(run.parents[2] / "store" / "trajectories" / mark[:12])
    (word,) = rerun.prepare([str(run)]).words
    assert word == f"  stage     trajectories: {mark[:12]} is not in the store any more"


def test_weights_that_are_not_here_are_not_fetched(run, monkeypatch):
    from taqdit.models.spec import ModelSpec

    monkeypatch.setattr(ModelSpec, "weights_present", lambda self: False)
    monkeypatch.setattr(ModelSpec, "weights", lambda self: pytest.fail("fetched"))
    (word,) = rerun.prepare([str(run)]).words
    assert "are not on this machine" in word


SECRET = "hf_" + "a1B2" * 8


@pytest.mark.slow
def test_masked_values_come_from_the_overrides_or_are_asked_for(run):
    """What run.json hides is never passed on as `***`, and never shown."""
    change(run, lambda record: record["config"]["model"].update(local_ckpt=f"/x/{MASK}/y"))
    with pytest.raises(InputError) as caught:
        rerun.prepare([str(run)])
    assert caught.value.args == ("run.json hides model.local_ckpt; give it: model.local_ckpt=...",)
    path = run / ".hydra" / "overrides.yaml"
    asked = path.read_text()
    path.write_text(asked + f"- model.local_ckpt=/x/{MASK}/y\n")
    with pytest.raises(InputError) as caught:
        rerun.prepare([str(run)])
    assert caught.value.args == ("run.json hides model.local_ckpt; give it: model.local_ckpt=...",)
    path.write_text(asked + f"- model.local_ckpt=/x/{SECRET}/y\n")
    found = rerun.prepare([str(run)])
    assert configuration(found.overrides)["model"]["local_ckpt"] == f"/x/{SECRET}/y"
    assert SECRET not in str(found)
    change(run, lambda record: record["config"]["model"].update(local_ckpt="/other"))
    kept = rerun.prepare([str(run)])
    assert "model.local_ckpt='/other'; the default is now '/x/***/y'" in str(kept)
    given = rerun.prepare([str(run), f"model.local_ckpt=/z/{SECRET}"])
    assert configuration(given.overrides)["model"]["local_ckpt"] == f"/z/{SECRET}"
    assert "'/z/***' now" in str(given)
    assert SECRET not in str(given)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{tmp}"], 3, "{tmp} is no run's folder: it has no run.json"),
        *slow_unless(
            [],
            [
                (["{tmp}/none"], 3, "{tmp}/none is no run's folder: it has no run.json"),
                ([], 2, "taqdit rerun: the following arguments are required: RUN_DIR"),
                (["{run}", "--fast"], 2, "taqdit rerun: unrecognized arguments: --fast"),
                (["{run}", "{tmp}"], 2, "rerun takes one folder, then key=value; not {tmp}"),
                (["{run}", "sampler.stepz=1"], 2, "Could not override 'sampler.stepz'"),
            ],
        ),
        (["{run}", "sampler.batch_size=0"], 2, "sampler.batch_size=0 must lie"),
    ],
)
def test_mistakes_of_a_rerun_are_one_line(arguments, code, words, original, taqdit, tmp_path):
    names = {"run": original, "tmp": tmp_path}
    done = taqdit("rerun", *(each.format(**names) for each in arguments))
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"taqdit: {words.format(**names)}")
    assert len(list(original.parent.iterdir())) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"config": {}}'])
def test_a_damaged_record_is_corrupt(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(CorruptError, match=r"run\.json"):
        rerun.prepare([str(tmp_path)])


# --- compare ---------------------------------------------------------------------------------


@pytest.fixture
def compared(monkeypatch):
    """What the comparison was called with, in its place."""
    calls = []
    made = types.ModuleType("taqdit.report.comparison.side_by_side")
    made.compare = lambda folders, into: calls.append((folders, into))
    monkeypatch.setitem(sys.modules, "taqdit.report.comparison.side_by_side", made)
    return calls


def made_runs(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "run.json").write_text("{}")
    return [folder / name for name in names]


def test_compare_says_where_the_page_lies(compared, tmp_path, capsys):
    runs = made_runs(tmp_path, "a", "b")
    twice = [*map(str, runs), str(tmp_path / "b" / ".." / "a")]
    assert cli.dispatch(["compare", *twice, "--into", str(tmp_path / "c")]) == 0
    assert compared == [(runs, tmp_path / "c")]
    assert capsys.readouterr().out.split() == ["comparison", str(tmp_path / "c/comparison.html")]


def test_a_comparison_lands_among_the_outputs(compared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_runs(tmp_path, "a", "b")
    cli.dispatch(["compare", "a", "b"])
    ((folders, into),) = compared
    assert folders == [Path("a"), Path("b")]
    assert into.parts[:2] == ("outputs", "comparisons")
    assert len(into.parts) == 4


def test_a_sweep_stands_for_its_jobs(compared, tmp_path):
    jobs = made_runs(tmp_path / "sweep", *map(str, range(11)))
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra: {}")
    (jobs[3] / "run.json").unlink()
    (jobs[3] / ".hydra").mkdir()  # it failed before it wrote anything
    (tmp_path / "sweep" / "figures").mkdir()
    cli.dispatch(["compare", str(tmp_path / "sweep"), "--into", str(tmp_path / "c")])
    assert compared[0][0] == jobs


def test_what_is_no_run_is_not_compared(compared, tmp_path):
    (run,) = made_runs(tmp_path, "a")
    with pytest.raises(InputError, match="1 run is given; a comparison needs two or more"):
        cli.dispatch(["compare", str(run), str(run)])
    with pytest.raises(InputError) as caught:
        cli.dispatch(["compare", str(run), str(tmp_path), str(tmp_path / "none")])
    assert len(caught.value.args) == 2
    with pytest.raises(ConfigError, match="required: RUN_DIR"):
        cli.dispatch(["compare"])
    assert compared == []


# --- sync ------------------------------------------------------------------------------------

OFFLINE = """
import sys
from pathlib import Path
from taqdit import tracking
for name in sys.argv[1:]:
    folder = Path(name)
    folder.mkdir(parents=True)
    tracker = tracking.wandb(mode="offline").start(folder, run_id=folder.name, name="n", config={})
    tracker.scalars({"a": 1.0}, axis={"step": 0})
    tracker.finish(ok=True)
"""


def offline(folder, *names, ended=True):
    """Offline runs as taqdit leaves them; ended or still under way."""
    paths = [folder / "outputs" / name for name in names]
    subprocess.run([sys.executable, "-c", OFFLINE, *map(str, paths)], check=True)
    for path in paths:
        (path / "run.json").write_text("{}")
        if ended:
            (path / "summary.json").write_text("{}")


@pytest.mark.slow
def test_sync_uploads_what_waits_and_nothing_twice(taqdit, tmp_path):
    offline(tmp_path, "runs/2026-01-01/r1", "sweeps/2026-01-01/s/0")
    (tmp_path / "outputs" / "store" / "offline-run-x").mkdir(parents=True)
    (tmp_path / "outputs" / "store" / "offline-run-x" / "run-x.wandb").write_text("no run")
    with wandb_stub.Server() as server:
        known = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": wandb_stub.SECRET}
        known |= {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
        sweeps = tmp_path / "outputs" / "sweeps"
        first = taqdit("sync", str(sweeps), **known)
        assert first.returncode == 0, first.stderr
        address = f"{server.url}/tester/taqdit/runs"
        assert first.stdout == (
            f"uploaded: {sweeps / '2026-01-01/s/0'} -> {address}/0\n1 uploaded, 0 were already\n"
        )
        assert server.column("a") == [1.0]
        second = taqdit("sync", **known)
        assert second.stdout.endswith(f" -> {address}/r1\n1 uploaded, 1 were already\n")
        assert server.column("a") == [1.0, 1.0]
        assert taqdit("sync", **known).stdout == "0 uploaded, 2 were already\n"
        assert wandb_stub.SECRET not in first.stdout + first.stderr
        assert sorted(server.runs) == ["0", "r1"]
    (file,) = (tmp_path / "outputs" / "runs").rglob("*.wandb")
    assert unsent.OfflineRun(file).uploaded  # `wandb sync` leaves it out, too


def waiting(folder, *, ended):
    """The .wandb file of an offline run that cannot be told from a real one by its place."""
    run = folder / "outputs" / "runs" / "r"
    file = run / "wandb" / "offline-run-1-r" / "run-r.wandb"
    file.parent.mkdir(parents=True)
    file.touch()
    (run / "run.json").write_text("{}")
    if ended:
        (run / "summary.json").write_text("{}")
    return file


@pytest.fixture
def taken(monkeypatch, tmp_path):
    """The files that were handed to `wandb sync`, all of which it took."""
    files = []

    def take(run):
        files.append(run.file)
        return "", ""

    monkeypatch.setattr(unsent.OfflineRun, "upload", take)
    monkeypatch.setenv("WANDB_API_KEY", wandb_stub.SECRET)
    monkeypatch.chdir(tmp_path)
    return files


def test_a_run_under_way_is_left_out_unless_it_is_named(taken, tmp_path, capsys):
    file = waiting(tmp_path, ended=False)
    assert cli.dispatch(["sync", "outputs"]) == 0
    assert taken == []
    told = "left out: outputs/runs/r has not ended; name it to upload what there is"
    assert capsys.readouterr().out.splitlines() == [told, "0 uploaded, 0 were already"]
    for folder in file.parents[:3]:
        taken.clear()
        cli.dispatch(["sync", str(folder)])
        assert taken == [file]


def test_sync_without_a_key_is_one_line(taqdit, tmp_path):
    waiting(tmp_path, ended=True)
    done = taqdit("sync")
    assert (done.returncode, done.stdout) == (2, "")
    key = "taqdit: W&B: no key configured; set WANDB_API_KEY or run `wandb login`\n"
    assert done.stderr == key


def test_sync_without_runs_needs_no_key(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.dispatch(["sync"]) == 0
    assert capsys.readouterr().out == "0 uploaded, 0 were already\n"
    with pytest.raises(InputError, match="nowhere is not a folder"):
        cli.dispatch(["sync", "nowhere"])


def test_a_run_that_wandb_did_not_take_is_an_error(taken, tmp_path, monkeypatch, capsys):
    file = waiting(tmp_path, ended=True)
    monkeypatch.setattr(unsent.OfflineRun, "upload", lambda run: ("", "no"))
    with pytest.raises(StorageError, match="took 0 of 1 runs, not outputs/runs/r"):
        cli.dispatch(["sync"])
    told = "not uploaded: outputs/runs/r: no\n0 uploaded, 0 were already\n"
    assert capsys.readouterr().out == told
    monkeypatch.setattr(sync_verb, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb is not installed"):
        cli.dispatch(["sync"])
    file.with_suffix(".wandb.synced").touch()
    assert cli.dispatch(["sync"]) == 0
