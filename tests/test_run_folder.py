"""What a run does to the folder it is given, and that its record names all it makes."""

import json
import shutil

import pytest
from conftest import ANALYTIC, tree

from taqdit import config
from taqdit.errors import CorruptError, InputError, NumericError, StorageError
from taqdit.report.run_folder import RunFolder, shaped
from taqdit.run import run_plan
from taqdit.runs.outputs import RunOutputs
from taqdit.stages import out_of_memory as memory
from taqdit.store_tools.garbage import find_garbage

TINY = ("sampler.images=false", "prompts.store_conditioning=false", "stages=[trajectories]")


@pytest.fixture
def run(tmp_path):
    """Runs in a fixed folder: `run("sampler.seed=1")`."""

    def run(*overrides, settings=(*ANALYTIC, *TINY)):
        given = config.compose_config([*settings, *overrides, f"output_dir={tmp_path}"])
        run_plan(config.plan(given), tmp_path / "runs" / "fixed", {})
        return garbage()

    def garbage():
        return [found.path for found in find_garbage(tmp_path / "store").garbage]

    run.garbage = garbage
    return run


def documents(folder):
    """run.json and summary.json."""
    names = ("run.json", "summary.json")
    return {name: json.loads((folder / "runs" / "fixed" / name).read_text()) for name in names}


def test_a_plan_leaves_the_record_of_a_run_alone(run, tmp_path):
    assert run() == []
    before = tree(tmp_path)
    assert run("preflight=only", "sampler.seed=3") == []
    assert tree(tmp_path) == before


def test_a_plan_alone_is_recorded_and_gives_way_to_the_run(run, tmp_path):
    run("preflight=only")
    assert documents(tmp_path)["summary.json"]["status"] == "preflight"
    assert documents(tmp_path)["run.json"]["stages"] == {}
    run()
    assert documents(tmp_path)["summary.json"]["status"] == "ok"


def test_what_a_former_run_referred_to_is_kept(run, tmp_path, caplog):
    run()
    first = documents(tmp_path)["run.json"]
    (mark,) = first["stages"].values()
    assert "holds a run of other settings" not in caplog.text
    assert run("sampler.seed=3") == []
    assert documents(tmp_path)["run.json"]["earlier"] == [f"trajectories/{mark[:12]}"]
    assert "holds a run of other settings" in caplog.text
    assert run("sampler.seed=4") == []
    assert len(documents(tmp_path)["run.json"]["earlier"]) == 2
    assert run() == []
    assert f"trajectories/{mark[:12]}" not in documents(tmp_path)["run.json"]["earlier"]
    shutil.rmtree(tmp_path / "runs" / "fixed")
    assert len(run.garbage()) == 3


def test_a_run_that_is_killed_leaves_no_summary_of_a_former_one(run, tmp_path, monkeypatch):
    run()

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(memory, "sampling", die)
        patch.setattr(RunOutputs, "finish", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            run("sampler.num_trajectories=8")
    assert not (tmp_path / "runs" / "fixed" / "summary.json").exists()


def test_a_run_that_did_not_begin_leaves_a_finished_one_alone(run, tmp_path, monkeypatch):
    run()
    before = documents(tmp_path)
    monkeypatch.setattr("taqdit.stages.preflight.free_bytes", lambda folder: 0)
    with pytest.raises(StorageError, match="has 0 B free"):
        run("sampler.seed=3")
    assert documents(tmp_path) == before


def test_a_plan_says_how_it_ended_where_a_run_had_failed(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("taqdit.stages.preflight.free_bytes", lambda folder: 0)
        with pytest.raises(StorageError):
            run()
    run("preflight=only")
    assert documents(tmp_path)["summary.json"]["status"] == "preflight"


def test_a_pointer_that_cannot_be_left_is_told_in_the_summary(run, tmp_path, monkeypatch):
    def refuse(*_):
        raise StorageError("no pointer")

    monkeypatch.setattr("taqdit.runs.record.publish_pointers", refuse)
    with pytest.raises(StorageError, match="no pointer"):
        run()
    assert documents(tmp_path)["summary.json"]["status"] == "failed"


def test_a_run_that_refers_to_the_same_and_more_may_take_its_place(run, tmp_path):
    run()
    first = documents(tmp_path)["run.json"]
    assert run("stages=[trajectories,calibration]") == []
    assert documents(tmp_path)["run.json"]["run_id"] != first["run_id"]
    assert documents(tmp_path)["summary.json"]["calibration"]


def test_a_run_that_did_not_end_well_gives_way(run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise NumericError("x")

    with monkeypatch.context() as patch:
        patch.setattr(memory, "sampling", fail)
        with pytest.raises(NumericError):
            run()
    assert documents(tmp_path)["summary.json"]["status"] == "failed"
    run("sampler.seed=3")
    assert documents(tmp_path)["run.json"]["config"]["sampler"]["seed"] == 3


@pytest.mark.parametrize(
    ("stages", "made"),
    [
        ("weights", 1),
        ("weights,trajectories", 1),
        ("weights,report,trajectories", 1),
        ("weights,trajectories,analysis", 0),  # nothing is traced
    ],
)
def test_a_table_of_weights_is_recorded_where_it_is_made(run, tmp_path, monkeypatch, stages, made):
    monkeypatch.setattr("taqdit.stages.weights.linear_paths", lambda spec: ())
    assert run(f"stages=[{stages}]") == []
    assert len(list(tmp_path.glob("store/weights/*"))) == made
    assert ("weights" in documents(tmp_path)["run.json"]["stages"]) == bool(made)


SHAPES = (  # shape, what fits it, what that becomes
    (str, "a", "a"),
    ((str,), None, None),
    (float, 2, 2.0),
    (float, float("inf"), None),
    ([int], [1, 2], (1, 2)),
    ({str: int}, {"a": 1, "b": 2}, {"a": 1, "b": 2}),
    ({"a": (int,), "b": [str]}, {"b": ["x"], "c": 1}, {"a": None, "b": ("x",)}),
)
MISSHAPEN = (
    (str, None),
    (int, True),
    (int, 1.0),
    (float, "1"),
    (bool, 1),
    ([int], [1, "2"]),
    ([int], {"a": 1}),
    ({str: int}, {"a": None}),
    ({"a": int}, {}),
    ({"a": int}, [1]),
    (dict, []),
)


@pytest.mark.parametrize(("shape", "value", "wanted"), SHAPES)
def test_a_value_is_given_in_the_shape_that_is_wanted(shape, value, wanted):
    found = shaped(value, shape)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(("shape", "value"), MISSHAPEN)
def test_a_value_of_another_shape_is_refused(shape, value):
    with pytest.raises(ValueError, match=r"=|no a"):
        shaped(value, shape)


@pytest.mark.parametrize(("text", "error"), [(None, InputError), ("[", CorruptError)])
def test_a_document_that_cannot_be_read_is_told_or_is_nothing(tmp_path, text, error):
    for name in ("run.json", "summary.json"):
        if text is not None:
            (tmp_path / name).write_text(text)
        assert RunFolder(tmp_path).legible(name) == {}
    for read in (RunFolder(tmp_path).record, RunFolder(tmp_path).summary):
        with pytest.raises(error):
            read()
    assert not RunFolder(tmp_path).went_well
    assert RunFolder(tmp_path).is_run is (text is not None)
