"""The same command with other settings, or on another machine: what is stored stays what it is."""

import json
import shutil

import pytest
from conftest import ANALYTIC, ROOT, tree
from ledger import shows

import taqdit
from taqdit.errors import StorageError
from taqdit.store.digest import stamp

CHANGES = (
    "sampler.seed=1",
    "sampler.cfg_scale=3",
    "sampler.batch_size=3",
    "sampler.latents_dtype=float16",
    "sampler=heun",
    "schedule._target_=analytic.straight",
    "schedule.num_steps=5",
    "schedule.shift=2",
    "model.latent_size=[4,6]",
    "prompts=paper_20",
    "prompts.num=2",
    "model._target_=analytic.slow",
)
NOT_COUNTED = (
    "allow_backend_change=true",
    "calibration.export=false",
    "model.low_memory=true",
    "output_dir=./outputs",
    "pair=[1]",
    "preflight=on",
    "prompts.store_conditioning=false",
    "sampler.num_trajectories=5",
    "tracking=local",
    "timestep_selection=midpoint",
    "analysis.rule=seed",
)
SETTINGS = (*ANALYTIC, "stages=[conditioning,trajectories]", "preflight=off")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The outputs of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.syspath_prepend(str(ROOT / "tests" / "plugins"))
        patched.setenv("TAQDIT_PLUGINS", "analytic")
        taqdit.launch(SETTINGS)
    return folder / "outputs"


@pytest.fixture
def store(finished, tmp_path, monkeypatch):
    """A copy of them where the command is given again."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "outputs")
    return tmp_path / "outputs" / "store"


@shows("P6", "a finished store, then the command with another value of a key that counts", trials=1)
@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_leave_what_is_stored_as_it_is(change, store):
    before = tree(store)
    del before[next(name for name in before if name.startswith("cond") and "SEALED" in name)]
    taqdit.launch([*SETTINGS, change])
    assert before.items() <= tree(store).items()  # more texts are sealed anew
    assert len(list((store / "trajectories").iterdir())) == 2


@shows(
    "P6", f"the same with other values of {len(NOT_COUNTED)} keys that do not count: no new data"
)
def test_settings_that_do_not_count_use_what_is_there(store):
    before = tree(store)
    run = taqdit.launch([*SETTINGS, *NOT_COUNTED])
    assert [stage["made"] for stage in run.summary["stages"]] == [0] * len(run.summary["stages"])
    assert tree(store) == before
    return 1


@shows("P13", "a stage of another version of MLX: not continued, and said where it is read")
def test_a_stage_of_another_version_is_not_continued(store):
    (path,) = store.glob("trajectories/*/stage.json")
    document = json.loads(path.read_text())
    del document["sha256"]
    ours = document["backends"][0]["mlx"]
    document["backends"][0]["mlx"] = "0.0.1"
    path.write_text(json.dumps(stamp(document)))
    before = tree(path.parent)
    read = taqdit.launch(SETTINGS)
    assert "mlx 0.0.1" in read.summary["stages"][1]["note"]
    with pytest.raises(StorageError, match=rf"mlx 0\.0\.1.*mlx {ours}.*allow_backend_change=true"):
        taqdit.launch([*SETTINGS, "sampler.num_trajectories=8"])
    assert tree(path.parent) == before
    return 1
