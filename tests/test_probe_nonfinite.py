"""NaN and Inf in activations: the first site, step and prompt are named, or they are counted."""

import re

import numpy as np
import pytest
from ledger import shows
from statistics_oracle import assert_channels, assert_histogram
from traced import TEXTS, Conditioned, Tracing

from taqdit.activations import Histogram
from taqdit.backend import mx
from taqdit.errors import NumericError
from taqdit.models.options import tiny


@pytest.fixture(scope="module")
def model():
    return tiny().load()


@pytest.fixture(scope="module")
def guided(model):
    return Conditioned(model)


def test_a_poisoned_weight_stops_at_the_first_site_behind_it(model, guided):
    linear = model.mmdit.multimodal_transformer_blocks[1].image_transformer_block.mlp.fc1
    sound = linear.bias
    linear.bias = mx.where(mx.arange(sound.size) == 7, mx.array(float("inf")), sound)
    tracing = Tracing(model, guided)
    try:
        message = "mm_01_img.post_gelu holds NaN or Inf at step 0 of trajectory 2"
        with pytest.raises(NumericError, match=re.escape(message)) as caught:
            tracing.sample(1, probe=tracing.probe(1))
    finally:
        linear.bias = sound
    assert repr(TEXTS[2]) in str(caught.value)
    assert tracing.told == []


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("row", [1, 3])  # the positive and the negative of the same trajectory
@shows("P8", "NaN, Inf, -Inf in a conditioning row: site, step and prompt are named", trials=1)
def test_the_trajectory_that_holds_nan_is_named(model, guided, row, value):
    def poisoned(texts):
        tokens, pooled = guided(texts)
        here = (mx.arange(tokens.size) == tokens[0].size * row + 5).reshape(tokens.shape)
        return mx.where(here, mx.array(float(value)), tokens), pooled

    tracing = Tracing(model, guided)
    message = f"embed.context_in holds NaN or Inf at step 0 of trajectory 3 (prompt {TEXTS[3]!r})"
    with pytest.raises(NumericError, match=re.escape(message)):
        tracing.sample(1, probe=tracing.probe(1), guided=poisoned)


def test_the_step_that_holds_nan_is_named(model, guided):
    tracing = Tracing(model, guided)
    latents = tracing.sample()
    latents[2, 1, 0, 0, 0] = np.nan
    message = "mm_00_img.qkv_in holds NaN or Inf at step 2 of trajectory 1"
    with pytest.raises(NumericError, match=re.escape(message)):
        tracing.replay(latents, [0, 1, 2])
    assert tracing.told == [0, 1]


@pytest.mark.parametrize("step", [0, 2])
@shows("P8", "NaN in an activation of the first and the last step: no batch ends before", trials=1)
def test_a_batch_does_not_end_before_its_last_step_was_looked_at(model, guided, step):
    def change(name, array):
        here = name == "mm_01_txt.fc1_in" and len(taps.kept) == step
        return array.at[1, 0].add(float("nan")) if here else array

    tracing = Tracing(model, guided)
    taps = tracing.taps(change=change)
    message = f"mm_01_txt.fc1_in holds NaN or Inf at step {step} of trajectory 1"
    with pytest.raises(NumericError, match=re.escape(message)):
        tracing.sample(probe=tracing.probe(taps=taps))
    assert tracing.told == list(range(step))


@pytest.fixture(scope="module")
def spoiled(model, guided):
    """What is read holds NaN and Inf at some places, at the static site too, in some batches."""
    tracing, rng = Tracing(model, guided, num_steps=2), np.random.default_rng(0)

    def change(name, array):
        draws = rng.random(array.shape)
        spots = [mx.array(draws < k / 500) for k in (1, 2, 3)]
        for here, value in zip(spots[::-1], ("nan", "inf", "-inf"), strict=True):
            array = mx.where(here, mx.array(float(value)), array)
        return array.at[..., 3].add(float("nan")) if name.endswith("o_in") else array

    for number in range(2):
        tracing.sample_and_keep(number, change=None if number else change, masked=True)
    return tracing


@pytest.mark.parametrize("step", range(2))
@shows("P8", "tracer.nonfinite=count: NaN and Inf are counted, and in no moment", trials=1)
def test_values_that_are_no_number_are_counted_and_left_out(spoiled, step):
    found, activations = spoiled.steps[step], spoiled.activations[step]
    if step:
        activations[0] = spoiled.activations[0][0]  # the static site is read at the first step
    assert not all(np.isfinite(each).all() for each in activations)
    assert_channels(found, activations)
    for number, values in enumerate(activations):
        low, high = found.fold_low[:, number].min(), found.fold_high[:, number].max()
        shown = Histogram.of([found.values[number]], low=low, high=high)
        assert_histogram(shown, values)
        assert min(shown.nan, shown.inf) > 0
