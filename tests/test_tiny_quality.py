"""The embedded model draws what it is asked for: attributes read back from generated pictures."""

import numpy as np
import pytest

from taqdit.backend import mx
from taqdit.models.options import tiny
from taqdit.models.tiny.captions import captions
from taqdit.models.tiny.classifier import accuracy, attributes
from taqdit.models.tiny.scenes import ATTRIBUTES, sample_scenes
from taqdit.schedule import flow

COUNT, BATCH, STEPS, CFG_SCALE = 24, 12, 6, 2.0


def pictures(model, texts, seeds):
    """Euler from the noise of each seed, every row of the batch with its own caption."""
    rows = [model.encode(text) for text in texts] + [model.encode("")] * len(texts)
    tokens, pooled = (mx.array(np.stack([row[part] for row in rows])) for part in (0, 1))
    sigmas = mx.array(flow(num_steps=STEPS).sigmas())
    with model.denoiser(tokens=tokens, pooled=pooled, sigmas=sigmas, cfg_scale=CFG_SCALE) as at:
        x = model.first_latent(seeds, sigmas[0])
        for step in range(STEPS):
            x = x + (x - at(x, step)) / sigmas[step] * (sigmas[step + 1] - sigmas[step])
            mx.eval(x)
    return model.decode(x)


@pytest.fixture(scope="module")
def drawn():
    """Scenes of the training distribution, and what is seen in the pictures of their captions."""
    scenes = sample_scenes(COUNT, np.random.default_rng(3))
    texts, model = captions(scenes), tiny().load()
    batches = [range(first, first + BATCH) for first in range(0, COUNT, BATCH)]
    images = [pictures(model, [texts[i] for i in batch], batch) for batch in batches]
    return scenes, attributes(np.concatenate(images))


@pytest.mark.slow
def test_captions_are_obeyed(drawn):
    scenes, seen = drawn
    percent = accuracy(seen, scenes)
    assert percent["all"] >= 75, percent
    assert all(percent[name] >= 70 for name in ATTRIBUTES), percent


def test_another_pictures_caption_is_not_obeyed(drawn):
    """The measure can fail: pictures do not fit the captions of their neighbours."""
    scenes, seen = drawn
    shifted = {name: np.roll(column, 1) for name, column in scenes.items()}
    assert accuracy(seen, shifted)["all"] < 10
