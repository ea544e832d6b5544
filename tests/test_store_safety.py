"""What the store's verbs must leave alone: other people's folders, and what runs elsewhere need."""

import shutil

import pytest
from conftest import tree

import taqdit as package
from taqdit.cli.verbs import dispatch
from taqdit.errors import InputError
from taqdit.store_tools import repair as repairing
from taqdit.store_tools import verification as verifying
from taqdit.store_tools.stage_folder import survey_stage

SMALL = (
    "schedule.num_steps=3",
    "sampler.num_trajectories=2",
    "sampler.batch_size=2",
    "timestep_selection.count=2",
    "stages=[conditioning,trajectories]",
    "tracking=none",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return package.launch([*SMALL, f"output_dir={tmp_path_factory.mktemp('made')}"])


@pytest.fixture
def outputs(made, tmp_path):
    """A copy of a finished run's output folder."""
    folder = tmp_path / "outputs"
    shutil.copytree(made.config["output_dir"], folder)
    return folder


def test_a_folder_that_only_looks_like_a_store_is_none(tmp_path):
    for name in ("figures/plots/a.png", "weights/sd3/model.safetensors", "src/img/b.png"):
        path = tmp_path / "paper" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"mine")
    before = tree(tmp_path)
    for verb in ("ls", "du", "verify", "repair"):
        with pytest.raises(InputError, match="holds no store"):
            dispatch(["store", verb, str(tmp_path / "paper")])
    assert tree(tmp_path) == before


def test_a_runs_folder_is_no_store(outputs):
    (run,) = outputs.glob("runs/*/*")
    with pytest.raises(InputError, match="holds no store"):
        dispatch(["store", "verify", str(run)])


def test_what_others_put_into_a_store_is_left_alone(outputs, capsys):
    (stage,) = outputs.glob("store/trajectories/*")
    shutil.copytree(stage, stage.with_name(f"{stage.name}.bak"))
    stage.with_name("latest").symlink_to(stage)
    (outputs / "store" / "notes" / "of-mine").mkdir(parents=True)
    (stage.with_name(f"{stage.name}.bak") / "000000.safetensors").write_bytes(b"mine")
    before = tree(outputs)
    assert dispatch(["store", "verify", str(outputs)]) == 0
    assert dispatch(["store", "repair", str(outputs)]) == 0
    assert dispatch(["store", "gc", "--yes", str(outputs)]) == 0
    assert tree(outputs) == before


def test_the_runs_beside_a_linked_store_and_beside_the_link_are_seen(outputs, tmp_path, capsys):
    beside = tmp_path / "linked"
    beside.mkdir()
    (beside / "store").symlink_to(outputs / "store")
    before = tree(outputs)
    for folder in (beside, outputs):
        dispatch(["store", "gc", "--yes", str(folder)])
        dispatch(["store", "ls", str(folder)])
        assert "1 run" in capsys.readouterr().out
    assert tree(outputs) == before
    shutil.move(outputs / "runs", beside / "runs")  # the store is elsewhere, the runs are here
    dispatch(["store", "gc", "--yes", str(beside)])
    dispatch(["store", "ls", str(beside)])
    assert "0 runs" not in capsys.readouterr().out
    assert (outputs / "store" / "trajectories").exists()
    assert tree(outputs / "store") == {
        name.removeprefix("store/"): data
        for name, data in before.items()
        if name.startswith("store/")
    }


def test_what_is_whole_again_when_it_is_repaired_stays(outputs):
    (stage,) = outputs.glob("store/trajectories/*")
    file = stage / "000001.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    checked = list(verifying.verify([survey_stage(stage)]))
    assert [each.file for each in checked[0].corrupt] == [file.name]
    file.write_bytes(whole)
    (done,) = repairing.repair_stages(checked, dry_run=False)
    assert done.action == repairing.LEFT
    assert file.read_bytes() == whole
    assert not list(stage.glob("*.bad-*"))
