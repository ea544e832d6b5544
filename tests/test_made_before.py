"""What was made before is reused: fingerprints of every option, a small store and a run's record.

`made_before/store.tar.xz` holds the stages of one small run of the embedded model (conditioning,
trajectories, statistics, weights) and its record; `made_before/fingerprints.json` how folders were
named then, for each option of the groups that can change a number, with weights of a made-up
digest.
"""

import json
import tarfile
from pathlib import Path

import pytest

import taqdit as package
from taqdit import config
from taqdit.cli import rerun
from taqdit.models.spec import ModelSpec
from taqdit.stages.fingerprints import fingerprint
from taqdit.stages.kinds import stored

BEFORE = Path(__file__).resolve().parent / "made_before"
NAMED = json.loads((BEFORE / "fingerprints.json").read_text(encoding="utf-8"))
SMALL = (
    "schedule.num_steps=3",
    "timestep_selection.count=2",
    "sampler.num_trajectories=2",
    "sampler.batch_size=1",
    "sampler.images=false",
    "prompts.num=1",
    "tracer.folds=2",
    "tracer.blocks=[mm_00]",
    "plots=none",
)
REUSED = {"conditioning": (0, 2), "trajectories": (0, 2), "statistics": (0, 3), "weights": (0, 89)}


QUICK = NAMED[:2] + NAMED[8:9] + NAMED[11:13] + NAMED[-1:]


def case_of(row):
    """A case by its overrides, `slow` but for one of each kind."""
    marks = () if row in QUICK else pytest.mark.slow
    return pytest.param(row, id=" ".join(row["overrides"]) or "defaults", marks=marks)


@pytest.mark.parametrize("case", [case_of(row) for row in NAMED])
def test_every_option_names_its_folders_as_before(case, monkeypatch):
    monkeypatch.setattr(ModelSpec, "weights", lambda self: {"mmdit.safetensors": "0" * 64})
    plan = config.plan(config.compose_config(case["overrides"]))
    kinds = stored()
    now = {name: fingerprint(kinds[name].inputs(plan))[:12] for name in case["fingerprints"]}
    assert now == case["fingerprints"]


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """The outputs of then; the weights are those of then, by their digests, and no model loads."""
    with tarfile.open(BEFORE / "store.tar.xz") as archive:
        archive.extractall(tmp_path / "outputs", filter="data")
    document = next(tmp_path.glob("outputs/store/statistics/*/stage.json"))
    digests = json.loads(document.read_text(encoding="utf-8"))["inputs"]["weights"]
    monkeypatch.setattr(ModelSpec, "weights", lambda self: digests)
    monkeypatch.setattr(ModelSpec, "load", lambda self: pytest.fail("the model was loaded"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


def launched(overrides):
    """Of a run of the stages of data: stage -> made, reused."""
    run = package.launch([*overrides, "tracking=none", f"stages=[{','.join(REUSED)}]"])
    return {stage["name"]: (stage["made"], stage["reused"]) for stage in run.summary["stages"]}


def test_a_store_made_before_is_reused_whole(outputs):
    assert launched(SMALL) == REUSED


def test_a_run_made_before_is_repeated(outputs):
    """Its record names a key that there is no more."""
    record = outputs / "runs" / "before" / "made"
    assert "queue_size" in (record / "run.json").read_text(encoding="utf-8")
    again = rerun.prepare([str(record)])
    assert "tracking.queue_size: 1024 then, gone now" in str(again)
    assert not [line for line in again.words if "trajectories" in line or "statistics" in line]
    assert launched(again.overrides) == REUSED
