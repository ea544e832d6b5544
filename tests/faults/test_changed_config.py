"""The same command with another value of a key that counts: beside the old work, never into it."""

import shutil

import pytest
from conftest import ANALYTIC, ROOT, tree
from ledger import shows

import taqdit

CHANGES = (
    "sampler.seed=1",
    "sampler.cfg_scale=3",
    "sampler.batch_size=3",
    "sampler=heun",
    "schedule.num_steps=5",
    "schedule.shift=2",
    "model.latent_size=[4,6]",
    "prompts=paper_20",
    "prompts.num=2",
    "model._target_=analytic.slow",
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


@shows("P6", "a finished store, then the command with another value of a key that counts", trials=1)
@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_leave_what_is_stored_as_it_is(change, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "outputs")
    store = tmp_path / "outputs" / "store"
    before = tree(store)
    del before[next(name for name in before if name.startswith("cond") and "SEALED" in name)]
    taqdit.launch([*SETTINGS, change])
    assert before.items() <= tree(store).items()  # more texts are sealed anew
    assert len(list((store / "trajectories").iterdir())) == 2
