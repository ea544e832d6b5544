"""Stores made before are reused: fingerprints of every option, and a small store of version 0.1.

`made_before/store.tar.xz` holds the stages of one small run of the embedded model (conditioning,
trajectories, statistics, weights); `made_before/fingerprints.json` how folders were named then, for
each option of the groups that can change a number, with weights of a made-up digest.
"""

import json
import tarfile
from pathlib import Path

import pytest

import taqdit as package
from taqdit import config
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
    "tracking=none",
)


@pytest.mark.parametrize("case", NAMED, ids=lambda case: " ".join(case["overrides"]) or "defaults")
def test_every_option_names_its_folders_as_before(case, monkeypatch):
    monkeypatch.setattr(ModelSpec, "weights", lambda self: {"mmdit.safetensors": "0" * 64})
    plan = config.plan(config.compose_config(case["overrides"]))
    kinds = stored()
    now = {name: fingerprint(kinds[name].inputs(plan))[:12] for name in case["fingerprints"]}
    assert now == case["fingerprints"]


def test_a_store_made_before_is_reused_whole(tmp_path, monkeypatch):
    """The weights are those of then, by their digests: no number is computed, no model loaded."""
    with tarfile.open(BEFORE / "store.tar.xz") as archive:
        archive.extractall(tmp_path / "outputs", filter="data")
    document = next(tmp_path.glob("outputs/store/statistics/*/stage.json"))
    digests = json.loads(document.read_text(encoding="utf-8"))["inputs"]["weights"]
    monkeypatch.setattr(ModelSpec, "weights", lambda self: digests)
    monkeypatch.setattr(ModelSpec, "load", lambda self: pytest.fail("the model was loaded"))
    monkeypatch.chdir(tmp_path)
    run = package.launch([*SMALL, "stages=[conditioning,trajectories,statistics,weights]"])
    counts = {each["name"]: (each["made"], each["reused"]) for each in run.summary["stages"]}
    assert counts == {
        "conditioning": (0, 2),
        "trajectories": (0, 2),
        "statistics": (0, 3),
        "weights": (0, 89),
    }
