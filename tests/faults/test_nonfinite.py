"""One NaN or infinity anywhere in a run: it is named, and nothing of its batch is stored."""

from contextlib import contextmanager

import numpy as np
import pytest
from conftest import ROOT, slow_unless, tree
from ledger import shows

import taqdit as package
from taqdit.errors import NumericError
from taqdit.prompts.options import shapes
from taqdit.store import Stage
from taqdit.trajectories import conditioning

STEPS, AT_STEP, ROW = 3, 1, 1  # poisoned: the second step of trajectory 3, row 1 of batch 1
SMALL = (
    "model._target_=poison.tiny",
    f"schedule.num_steps={STEPS}",
    "sampler.num_trajectories=4",
    "sampler.batch_size=2",
    "sampler.images=false",
    "timestep_selection.count=2",
    "tracer=post_gelu",
    "tracking=none",
    "analysis=none",
    "plots=none",
    "stages=[conditioning,trajectories,statistics]",
)


def spoilt(array, value, rows=None):
    """The array with one element replaced, in a row if it is asked for."""
    from taqdit.backend import mx

    place = 5 if rows is None else ROW * (array.size // len(array)) + 5
    here = (mx.arange(array.size) == place).reshape(array.shape)
    return mx.where(here, mx.array(value, array.dtype), array)


def weight(model, value):
    """One weight of the second block's image MLP, from the start."""
    linear = model.mmdit.multimodal_transformer_blocks[1].image_transformer_block.mlp.fc1
    linear.bias = spoilt(linear.bias, value)


def activation(model, value):
    """What the GELU of the second block's image MLP gives."""
    from taqdit.backend import nn

    class Poisoned(nn.GELU):
        def __call__(self, x):
            found = super().__call__(x)
            calls.append(1)
            return spoilt(found, value, ROW) if len(calls) == STEPS + AT_STEP + 1 else found

    calls = []
    model.mmdit.multimodal_transformer_blocks[1].image_transformer_block.mlp.act_fn = Poisoned()


def prediction(model, value):
    """What the denoiser says of the clean latent."""
    own, batches = model.denoiser, []

    @contextmanager
    def denoiser(**given):
        batches.append(1)
        with own(**given) as denoise:

            def poisoned(latent, step):
                clean = denoise(latent, step)
                there = len(batches) == 2 and step == AT_STEP
                return spoilt(clean, value, ROW) if there else clean

            yield poisoned

    model.denoiser = denoiser


def latent(model, value):
    """The first latent."""
    own, batches = model.first_latent, []

    def first_latent(seeds, sigma0):
        batches.append(1)
        found = own(seeds, sigma0)
        return spoilt(found, value, ROW) if len(batches) == 2 else found

    model.first_latent = first_latent


PLACES = {  # what is poisoned -> what the error names, the trajectories stored before it
    weight: ("mm_01_img.post_gelu holds NaN or Inf at step 0 of trajectory 0", 0),
    activation: (f"mm_01_img.post_gelu holds NaN or Inf at step {AT_STEP} of trajectory 3", 2),
    prediction: (f"the latent before step {AT_STEP + 1} of trajectory 3 holds NaN or Inf", 2),
    latent: ("the latent before step 0 of trajectory 3 holds NaN or Inf", 2),
}


def shards(folder):
    """The shards of the stages that were asked for."""
    made = ("conditioning/", "trajectories/", "statistics/")
    files = tree(folder / "store")
    return {n: files[n] for n in files if n.startswith(made) and n.endswith(".safetensors")}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The shards of an undisturbed run."""
    folder = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tests" / "plugins"))
        patch.setenv("TAQDIT_PLUGINS", "poison")
        package.launch([*SMALL, f"output_dir={folder}"])
    return shards(folder)


@pytest.mark.parametrize("value", slow_unless([np.inf], [np.nan, np.inf, -np.inf]), ids=str)
@pytest.mark.parametrize(
    "place", slow_unless([activation, latent], PLACES), ids=lambda place: place.__name__
)
@shows("P8", "one element of a latent, prediction, activation, weight: NaN, Inf, -Inf", trials=1)
def test_one_poisoned_element_is_named_and_not_stored(tmp_path, monkeypatch, sound, place, value):
    import poison

    monkeypatch.setenv("TAQDIT_PLUGINS", "poison")
    monkeypatch.setattr(poison, "alter", lambda model: place(model, value))
    words, stored = PLACES[place]
    with pytest.raises(NumericError) as caught:
        package.launch([*SMALL, f"output_dir={tmp_path}"])
    text = str(caught.value)
    assert words in text
    prompt = shapes().texts[3 if stored else 0]
    assert f"(prompt {prompt!r}" in text
    found = shards(tmp_path)
    assert sum(name.startswith("trajectories/") for name in found) == stored
    assert not [name for name in found if "/trajectories_" in name]  # of the statistics
    monkeypatch.setattr(poison, "alter", lambda model: None)
    package.launch([*SMALL, f"output_dir={tmp_path}"])
    assert shards(tmp_path) == sound


@shows("P8", "one element of what a text encoder gives, stored or not: NaN, Inf, -Inf")
def test_a_poisoned_text_is_named_and_not_stored(tmp_path):
    stage = Stage.open(tmp_path, "conditioning", fingerprint="a" * 64, inputs={}, backend={})
    trials = 0
    for part in (0, 1):
        for value in (np.nan, np.inf, -np.inf):

            def encode(text, part=part, value=value):
                found = np.zeros((3, 8), np.float32), np.zeros(4, np.float32)
                found[part].flat[2] = value if text == "a cat" else 0
                return found

            unstored = conditioning.UnstoredConditioning(["a cat"], encode, lambda: None)
            with pytest.raises(NumericError, match="NaN or Inf for the prompt 'a cat'"):
                list(conditioning.encode(stage, ["a cat"], encode))
            with pytest.raises(NumericError, match="NaN or Inf for the prompt 'a cat'"):
                unstored.row("a cat")
            assert stage.names() == []
            trials += 2
    assert list(conditioning.encode(stage, ["a dog"], encode)) == ["a dog"]
    return trials
