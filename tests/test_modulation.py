"""The transformer's parameters survive everything: images, batches, errors, Ctrl-C, low memory."""

import shutil
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import slow_unless
from safetensors.numpy import load_file, save_file

from taqdit.backend import mx, tree_flatten
from taqdit.errors import ModelError
from taqdit.models.modulation import Modulation
from taqdit.models.options import tiny
from taqdit.models.tiny import WEIGHTS

SIGMAS = mx.array(np.array([1.0, 0.75, 0.4, 0.0], np.float32))


@pytest.fixture(scope="module")
def model():
    return tiny().load()


@pytest.fixture(scope="module")
def rows(model):
    """Conditioning of one prompt with its negative: tokens (2, n, 4096), pooled (2, d)."""
    both = [model.encode("a red circle on a white background"), model.encode("")]
    return tuple(mx.array(np.stack([row[part] for row in both])) for part in (0, 1))


def parameters(model):
    return dict(tree_flatten(model.mmdit.parameters()))


def same_objects(model, before):
    after = parameters(model)
    return after.keys() == before.keys() and all(after[k] is before[k] for k in before)


def leftovers(model):
    return [n for n, m in model.mmdit.named_modules() if "_modulation_params" in m]


def opened(model, rows, *, cfg_scale=2.0):
    tokens, pooled = rows
    return model.denoiser(tokens=tokens, pooled=pooled, sigmas=SIGMAS, cfg_scale=cfg_scale)


def denoised(model, rows, steps=(0, 1, 2), seed=0):
    """The denoised latents of some steps, all for the first noise of a seed."""
    latent = model.first_latent([seed], SIGMAS[0])
    with opened(model, rows) as denoise:
        return [np.array(denoise(latent, step)) for step in steps]


def test_outputs_equal_the_librarys_cache_bit_for_bit(model, rows):
    pooled, timesteps = rows[1], model.timesteps(SIGMAS)
    ours = Modulation(model.mmdit, pooled, timesteps)
    library = tiny().load().mmdit  # the library's own method destroys the weights it reads
    library.cache_modulation_params(pooled, timesteps)
    theirs = {name: m for name, m in library.named_modules() if "_modulation_params" in m}
    with ours.installed():
        held = {name: m for name, m in model.mmdit.named_modules() if "_modulation_params" in m}
        assert held.keys() == theirs.keys()
        assert len(held) == 13
        for name, module in held.items():
            expected = theirs[name]["_modulation_params"]
            assert module["_modulation_params"].keys() == expected.keys()
            for time, value in module["_modulation_params"].items():
                assert mx.array_equal(value, expected[time])


def test_the_librarys_own_method_would_break_the_model(rows):
    victim = tiny().load()
    before = parameters(victim)
    victim.mmdit.cache_modulation_params(rows[1], SIGMAS)
    assert not same_objects(victim, before)


def test_twenty_images_leave_the_same_parameters(model, rows):
    before = parameters(model)
    first = denoised(model, rows, steps=(1,))
    for seed in range(1, 20):
        denoised(model, rows, steps=(seed % 3,), seed=seed)
    assert same_objects(model, before)
    assert leftovers(model) == []
    assert np.array_equal(first, denoised(model, rows, steps=(1,)))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_mid_trajectory_leaves_the_same_parameters(model, rows, error):
    before = parameters(model)
    expected = denoised(model, rows)

    def fail():
        with opened(model, rows) as denoise:
            mx.eval(denoise(model.first_latent([0], SIGMAS[0]), 0))
            raise error

    with pytest.raises(error):
        fail()
    assert same_objects(model, before)
    assert leftovers(model) == []
    assert np.array_equal(expected, denoised(model, rows))


@contextmanager
def interrupt_at_line(number, files=("modulation.py", "pipeline.py")):
    """Raise KeyboardInterrupt before the n-th line that runs in the files; yields a counter."""
    seen = [0]

    def trace(frame, event, _argument):
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            seen[0] += 1
            if seen[0] == number:
                raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(previous)


@pytest.mark.parametrize("low_memory", slow_unless([False], [False, True]))
def test_an_interrupt_at_any_line_leaves_a_sound_model(rows, low_memory):
    model = tiny(low_memory=low_memory).load()
    before = parameters(model)
    expected = denoised(model, rows, steps=(2,))
    with interrupt_at_line(-1) as counter:
        denoised(model, rows, steps=(2,))
    assert counter[0] > 100
    for number in range(1, counter[0], counter[0] // 15):
        with pytest.raises(KeyboardInterrupt), interrupt_at_line(number):
            denoised(model, rows, steps=(2,))
        assert low_memory or same_objects(model, before)
        assert parameters(model).keys() == before.keys()
    assert np.array_equal(expected, denoised(model, rows, steps=(2,)))


def test_two_open_denoisers_do_not_disturb_each_other(model, rows):
    tokens, pooled = rows
    other = tokens[::-1], pooled[::-1]
    latent = model.first_latent([3], SIGMAS[0])
    with opened(model, rows) as outer:
        expected = np.array(outer(latent, 1))
        with opened(model, other) as inner:
            swapped = np.array(inner(latent, 1))
            assert np.array_equal(expected, outer(latent, 1))
        assert np.array_equal(expected, outer(latent, 1))
    assert not np.array_equal(expected, swapped)


def test_low_memory_gives_the_same_numbers_without_the_weights(model, rows):
    lean = tiny(low_memory=True).load()
    before = {name: np.array(value) for name, value in parameters(lean).items()}
    adaln = [name for name in before if "adaLN" in name]
    latent = lean.first_latent([0], SIGMAS[0])
    with opened(lean, rows) as denoise:
        held = parameters(lean)
        assert all(held[name].size == 0 for name in adaln)
        assert np.array_equal(denoise(latent, 1), denoised(model, rows)[1])
    after = parameters(lean)
    assert len(adaln) == 26
    assert all(np.array_equal(after[name], value) for name, value in before.items())


def test_low_memory_allows_two_open_denoisers(model, rows):
    lean = tiny(low_memory=True).load()
    latent = lean.first_latent([0], SIGMAS[0])
    with opened(lean, rows) as outer:
        with opened(lean, rows) as inner:
            assert np.array_equal(inner(latent, 0), outer(latent, 0))
        assert np.array_equal(outer(latent, 2), denoised(model, rows)[2])
    assert all(value.size for value in parameters(lean).values())


def test_low_memory_drops_the_text_encoders_and_loads_them_again(rows):
    lean = tiny(low_memory=True).load()
    before = lean.encode("a star")
    with opened(lean, rows):
        assert not hasattr(lean.pipeline, "clip_l")
        assert not hasattr(lean.pipeline, "clip_g")
    assert all(np.array_equal(a, b) for a, b in zip(before, lean.encode("a star"), strict=True))


def test_low_memory_refuses_weights_that_the_file_does_not_hold(rows):
    lean = tiny(low_memory=True).load()
    linear = lean.mmdit.final_layer.adaLN_modulation.layers[1]
    linear.bias = linear.bias + 1
    changed = parameters(lean)
    with pytest.raises(ModelError, match="low_memory=false"), opened(lean, rows):
        pass
    assert same_objects(lean, changed)


def test_low_memory_notices_a_file_that_changed_meanwhile(rows, tmp_path):
    path = tmp_path / "mine.safetensors"
    shutil.copy(WEIGHTS / "mmdit.safetensors", path)
    lean = tiny(low_memory=True, local_ckpt=str(path)).load()
    tensors = load_file(path)
    tensors["final_layer.adaLN_modulation.layers.1.bias"] = (
        tensors["final_layer.adaLN_modulation.layers.1.bias"] + 1
    )
    with pytest.raises(ModelError, match="has changed"), opened(lean, rows):
        save_file(tensors, path)
