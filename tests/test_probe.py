"""A probe reads exactly what the forward computes, changes nothing, and holds on to nothing."""

import gc
import time

import numpy as np
import pytest
from statistics_oracle import (
    assert_channels,
    assert_equal,
    assert_histogram,
    assert_same_bytes,
    of_folds,
)
from traced import CFG_SCALE, Conditioned, Tracing

from taqdit.activations import Histogram
from taqdit.backend import mx
from taqdit.models.options import tiny
from taqdit.sampler import euler, heun
from taqdit.tracer import on_device, on_host
from taqdit.tracer import probe as probe_module
from taqdit.tracer.background import Background
from taqdit.tracer.options import post_gelu

HALF = {"a16": True, "w16": True}


@pytest.fixture(scope="module")
def model():
    return tiny().load()


@pytest.fixture(scope="module")
def guided(model):
    return Conditioned(model)


@pytest.fixture(scope="module")
def traced(model, guided):
    """Two guided batches of two trajectories over three steps, every site, in three folds."""
    tracing = Tracing(model, guided)
    for number in range(2):
        tracing.sample_and_keep(number)
    return tracing


# --- against numpy --------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(3))
def test_every_site_is_what_numpy_says_of_the_activations(traced, step):
    found, kept = traced.steps[step], traced.activations[step]
    assert len(found.layout.sites) == 47
    assert {len(each) for each in kept} == {8}  # two batches of two, with negatives
    assert_channels(found, kept)
    for number, values in enumerate(kept):
        low, high = (extremes[:, number] for extremes in (found.fold_low, found.fold_high))
        table = found.values[number]
        assert_histogram(Histogram.of([table], low=low.min(), high=high.max()), values)
        peaks = np.abs(values).max(axis=2)
        ends = {"low": float(peaks.min()), "high": float(peaks.max())}
        assert_histogram(Histogram.of([found.peaks[number]], **ends), peaks)


def test_every_fold_holds_its_trajectories_alone(traced):
    assert traced.folds == [0, 1, 0, 1, 2, 0, 2, 0]  # 0, 1 with negatives, then 2, 3
    for step, kept in traced.activations.items():
        found = traced.steps[step]
        for number in range(0, len(kept), 5):
            for fold in range(3):
                values = kept[number][np.array(traced.folds) == fold]
                low, high = found.fold_low[fold, number], found.fold_high[fold, number]
                assert (low, high) == (values.min(), values.max())
                table = of_folds(found.values[number], [fold])
                assert_histogram(Histogram.of([table], low=low, high=high), values, (1, 50, 99))


def test_a_fold_without_a_trajectory_is_empty(model, guided):
    tracing = Tracing(model, guided, folds=4, num_steps=1, tracer=post_gelu())
    tracing.sample(1, probe=tracing.probe(1))
    found = tracing.steps[0]
    assert np.isinf(found.fold_low).all(axis=1).tolist() == [True, True, False, False]
    for table in found.values:
        assert (table.counts.sum(axis=(1, 2)) > 0).tolist() == [False, False, True, True]


def test_a_tracer_of_some_sites_reads_the_same_of_them(model, guided, traced):
    tracing = Tracing(model, guided, tracer=post_gelu(streams=["txt"]))
    for number in range(2):
        tracing.sample(number, probe=tracing.probe(number))
    assert all(site.label.endswith("_txt") for site in tracing.layout.sites)
    for step, found in tracing.steps.items():
        for number, site in enumerate(tracing.layout.sites):
            other = traced.layout.index(site.name)
            spans = tracing.layout.span(number), traced.layout.span(other)
            assert_equal(found.mean[spans[0]], traced.steps[step].mean[spans[1]])
            assert_equal(found.values[number].counts, traced.steps[step].values[other].counts)


def test_masked_statistics_of_sound_values_are_the_plain_ones(traced, model, guided):
    tracing = Tracing(model, guided)
    for number in range(2):
        tracing.sample(number, probe=tracing.probe(number, masked=True))
    for step, found in tracing.steps.items():
        assert_same_bytes(found, traced.steps[step])


# --- live and replayed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "batch_size", "options"),
    [(euler, 1, {}), (euler, 3, {}), (heun, 1, {}), (heun, 3, {}), (heun, 1, HALF)],
    ids=["euler-1", "euler-3", "heun-1", "heun-3", "heun-1-half"],
)
def test_live_statistics_are_those_of_a_replay_bit_for_bit(solver, batch_size, options):
    model, sampler = tiny(**options).load(), solver(cfg_scale=CFG_SCALE, batch_size=batch_size)
    guided = Conditioned(model)
    live, again = (Tracing(model, guided, sampler=sampler, num_steps=2) for _ in range(2))
    plain = live.sample()
    latents = live.sample(probe=live.probe())
    assert latents.tobytes() == plain.tobytes()
    assert again.replay(latents, [0, 1]) == [0, 1]
    for step in range(2):
        assert_same_bytes(live.steps[step], again.steps[step])


def test_any_steps_can_be_replayed_alone(traced, model, guided):
    again = Tracing(model, guided)
    for number in range(2):
        again.replay(again.sample(number), [2, 0], number)
    assert sorted(again.steps) == [0, 2]
    for step, found in again.steps.items():
        assert_same_bytes(found, traced.steps[step])


def test_only_the_first_forward_of_a_heun_step_is_reduced(monkeypatch, model, guided):
    """And what enters the context embedder only once: it is the conditioning."""
    tracing, calls = Tracing(model, guided, sampler=heun(cfg_scale=CFG_SCALE, batch_size=1)), []
    site_sums = on_host.site_sums

    def spy(values, folds, **options):
        calls.append(values.shape[-1])
        return site_sums(values, folds, **options)

    monkeypatch.setattr(on_host, "site_sums", spy)
    tracing.sample(probe=tracing.probe())
    widths = [site.width for site in tracing.layout.sites]
    assert sorted(calls) == sorted(widths + 2 * widths[1:])
    assert tracing.told == [0, 1, 2]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cpu", [False, True])
def test_what_is_reduced_within_a_step_gives_the_same_bytes(
    monkeypatch, model, guided, masked, cpu
):
    """Where a large model's activations, or on a GPU its codes, would fill the memory."""
    monkeypatch.setattr(probe_module, "on_cpu", lambda: cpu)
    late, early = (Tracing(model, guided, num_steps=2) for _ in range(2))
    late.sample(probe=late.probe())
    for module in (on_host, on_device):
        monkeypatch.setattr(module, "MOST_PENDING", 2**17)
    monkeypatch.setattr(on_device, "MOST_GATHERED", 2**17)
    evaluate, evaluations = mx.eval, []
    monkeypatch.setattr(mx, "eval", lambda *arrays: (evaluations.append(1), evaluate(*arrays)))
    early.sample(probe=early.probe(masked=masked))
    assert len(evaluations) > 10
    for step, found in early.steps.items():
        assert_same_bytes(found, late.steps[step])


def test_every_step_was_told_when_the_batch_ends(model, guided):
    told = []

    def slowly(step, _sums):
        time.sleep(0.05)
        told.append(step)

    tracing = Tracing(model, guided, tracer=post_gelu())
    latents = tracing.sample(probe=tracing.probe(found=slowly))
    assert told == [0, 1, 2]
    tracing.replay(latents, [1, 0, 2], probe=tracing.probe(found=slowly))
    assert told == [0, 1, 2, 1, 0, 2]


@pytest.mark.parametrize("step", [0, 2])
def test_an_error_in_what_is_told_ends_the_batch(model, guided, step):
    def failing(found, _sums):
        if found == step:
            raise OverflowError("too many")

    tracing = Tracing(model, guided, tracer=post_gelu())
    latents = tracing.sample()
    with pytest.raises(OverflowError, match="too many"):
        tracing.sample(probe=tracing.probe(found=failing))
    with pytest.raises(OverflowError, match="too many"):
        tracing.replay(latents, [0, 1, 2], probe=tracing.probe(found=failing))


# --- what a probe costs ---------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch):
    """What is done beside the sampling is done before it goes on."""
    monkeypatch.setattr(Background, "run", lambda _self, job: job())


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("solver", [euler, heun])
def test_a_step_is_evaluated_once(monkeypatch, at_once, model, guided, solver, replayed):
    """And what is handed on was computed then: MLX allocates nothing for it."""
    tracing = Tracing(model, guided, sampler=solver(cfg_scale=CFG_SCALE, batch_size=1))
    probe, evaluate, calls, allocated = tracing.probe(), mx.eval, [], []
    latents, watch, collect = tracing.sample(), probe.watch, probe.collect

    def counting(denoise):
        monkeypatch.setattr(mx, "eval", lambda *arrays: (calls.append(1), evaluate(*arrays)))
        return watch(denoise)

    def watched():
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        collect()
        allocated.append(mx.get_peak_memory() - before)

    probe.watch, probe.collect = counting, watched
    if replayed:
        tracing.replay(latents, [0, 1, 2], probe=probe)
    else:
        tracing.sample(probe=probe)
    assert len(calls) == 3 + (not replayed)  # the first latent is evaluated, too
    assert len(allocated) == 3
    assert max(allocated) <= 0


class Idle:
    """A probe that reads nothing."""

    pending = ()

    def watch(self, denoise):
        return denoise

    def collect(self):
        pass

    finish = collect


PAGES = 4 * 16_384  # bytes, by which the count of the allocator moves


@pytest.mark.usefixtures("at_once")
def test_no_activation_outlives_its_step(model, guided):
    tracing = Tracing(model, guided, num_steps=5)
    taps = tracing.taps()
    probe, held = tracing.probe(taps=taps, found=lambda _step, _sums: None), {}
    for each in (Idle(), probe):

        def measured(each=each, collect=each.collect):
            collect()
            taps.kept.clear()
            held.setdefault(each, []).append(mx.get_active_memory())

        each.collect = measured
        gc.collect()  # of earlier tests
        tracing.sample(probe=each)
        assert held[each][-1] - held[each][0] < PAGES
        assert np.ptp(held[each]) < PAGES
    assert probe.pending == []
    idle, reading = (found[-1] for found in held.values())
    assert reading - idle < 40 * 4096  # nine numbers a channel, not the conditioning itself


def test_collecting_before_a_forward_is_refused(model, guided):
    tracing = Tracing(model, guided, num_steps=1, tracer=post_gelu())
    probe = tracing.probe()
    with pytest.raises(RuntimeError, match="no forward has been read"):
        probe.collect()
    tracing.sample(probe=probe)
    with pytest.raises(RuntimeError, match="no forward has been read"):
        probe.collect()
