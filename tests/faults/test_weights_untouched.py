"""The weights: each file's digest is on record and in the name of what was made with them."""

import hashlib
import json
import shutil

import pytest
from conftest import ANALYTIC
from ledger import shows
from traced import Conditioned, Tracing

import taqdit as package
from taqdit.backend import mx, tree_flatten
from taqdit.errors import NumericError
from taqdit.models.options import tiny
from taqdit.models.tiny import WEIGHTS
from taqdit.store import sha256_hex

SMALL = (
    "schedule.num_steps=2",
    "sampler.num_trajectories=1",
    "sampler.batch_size=1",
    "sampler.images=false",
    "timestep_selection.count=2",
    "tracer=none",
    "tracking=none",
    "analysis=none",
    "plots=none",
    "stages=[conditioning,trajectories]",
)


def digest(model):
    """SHA-256 of every parameter's name and bytes, and of every module's class."""
    parameters = dict(tree_flatten(model.mmdit.parameters()))
    content = [
        f"{n} {a.dtype} {a.shape} {sha256_hex(bytes(mx.array(a)))}" for n, a in parameters.items()
    ]
    classes = [f"{name} {type(each).__qualname__}" for name, each in model.mmdit.named_modules()]
    return sha256_hex("\n".join(sorted(content) + sorted(classes)).encode())


@shows("P20", "every weight file's SHA-256 in run.json and in stage.json")
def test_the_digests_are_on_record(tmp_path):
    run = package.launch([*SMALL, f"output_dir={tmp_path}"])
    found = json.loads((run.folder / "run.json").read_text())["weights"]
    files = {path.name: path for path in WEIGHTS.iterdir() if path.name in found}
    assert {name for name in found if name.endswith(".safetensors")} == {
        f"{part}.safetensors" for part in ("mmdit", "vae", "clip_l", "clip_g")
    }
    assert found == {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in files.items()}
    stages = list(tmp_path.glob("store/*/*/stage.json"))
    assert len(stages) == 2
    for path in stages:
        assert json.loads(path.read_text())["inputs"]["weights"] == found
    return len(found)


def test_no_weights_no_digests(tmp_path):
    """A plan that is only stated downloads nothing."""
    run = package.launch([*ANALYTIC, "preflight=only", f"output_dir={tmp_path}"])
    assert json.loads((run.folder / "run.json").read_text())["weights"] == {}


@shows("P20", "other weights under the same path: another stage", trials=1)
def test_one_changed_weight_is_another_stage(tmp_path):
    path = tmp_path / "mmdit.safetensors"
    shutil.copy(WEIGHTS / "mmdit.safetensors", path)
    asked = [*SMALL, f"model.local_ckpt={path}", f"output_dir={tmp_path / 'out'}"]
    package.launch(asked)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the last weight
    path.write_bytes(content)
    package.launch(asked)
    assert len(list((tmp_path / "out").glob("store/trajectories/*"))) == 2


@pytest.fixture(scope="module")
def model():
    return tiny().load()


@pytest.mark.parametrize("ending", ["well", "NaN", "error", "interrupt"])
@shows("P20", "the loaded model after a trace, and after an exception in it: unchanged", trials=1)
def test_a_trace_leaves_the_model_as_it_was(model, ending):
    before, guided = digest(model), Conditioned(model)
    tracing = Tracing(model, guided)
    errors = {"error": RuntimeError, "interrupt": KeyboardInterrupt, "NaN": NumericError}

    def change(name, array):
        if name != "mm_03_img.fc1_in" or len(taps.kept) != 1 or ending == "well":
            return array
        if ending == "NaN":
            return array.at[0, 0].add(float("nan"))
        raise errors[ending]

    taps = tracing.taps(change=change)
    if ending == "well":
        tracing.sample(probe=tracing.probe(taps=taps))
    else:
        with pytest.raises(errors[ending]):
            tracing.sample(probe=tracing.probe(taps=taps))
    assert digest(model) == before
