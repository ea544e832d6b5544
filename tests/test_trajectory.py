"""Stored trajectories against DiffusionKit's own sampler, and what the generator promises."""

import numpy as np
import pytest
from conftest import tree

from taqdit.errors import CorruptError, NumericError
from taqdit.prompts.options import Prompts
from taqdit.sampler import euler, heun
from taqdit.schedule import flow
from taqdit.store import Stage
from taqdit.trajectories import conditioning, sampling, shards
from taqdit.trajectories.trajectory_set import TrajectorySet

TEXTS = ("a large red circle at the center on a white background", "small blue ring, top")
PROMPTS = Prompts(TEXTS, (None, None))


def open_stage(folder, name="trajectories"):
    return Stage.open(folder, name, fingerprint="f" * 64, inputs={}, backend={})


@pytest.fixture(scope="module")
def tiny_model():
    from taqdit.models.options import tiny

    return tiny().load()


@pytest.fixture(scope="module")
def rows(tiny_model, tmp_path_factory):
    """The conditioning of TEXTS, through the store."""
    stage = open_stage(tmp_path_factory.mktemp("rows"), "conditioning")
    list(conditioning.encode(stage, ["", *TEXTS], tiny_model.encode))
    return conditioning.Conditioning(stage)


def run(model, rows, *, sampler, num_steps, number=0):
    batch = sampling.Batch.of(number, sampler=sampler, prompts=PROMPTS)
    sigmas = flow(num_steps=num_steps).sigmas()
    found = sampling.Sampling(model, rows.guided, sigmas, sampler).sample(batch)
    return np.stack([latent for _, latent in found], axis=1)


def sample_euler(model, text, *, seed, num_steps, cfg_scale):
    """DiffusionKit's result from the text and the seed alone: its encoder, noise, grid, loop."""
    from taqdit.backend import mx
    from taqdit.models.diffusionkit import dk

    pipeline = model.pipeline
    tokens, pooled = pipeline.encode_text(text, cfg_scale, "")
    sigmas = pipeline.get_sigmas(pipeline.sampler, num_steps)
    empty = pipeline.get_empty_latent(8, 8)
    state = np.random.get_state()  # noqa: NPY002 (the library draws from the global generator)
    noise = pipeline.get_noise(seed, empty)
    np.random.set_state(state)  # noqa: NPY002
    start = pipeline.sampler.noise_scaling(sigmas[0], noise, empty)
    arguments = {"conditioning": tokens, "cfg_weight": cfg_scale, "pooled_conditioning": pooled}
    latent, _ = dk.sample_euler(dk.CFGDenoiser(pipeline), start, sigmas, extra_args=arguments)
    mx.eval(latent)
    pipeline.mmdit.pop("to_offload", None)
    for _, module in pipeline.mmdit.named_modules():
        module.pop("_modulation_params", None)
    return np.array(start)[0], np.array(latent)[0]


@pytest.mark.parametrize(
    ("seed", "num_steps", "cfg_scale"), [(0, 3, 2.0), (7, 1, 1.5), (1234, 5, 7.5), (3, 2, 0.5)]
)
def test_euler_at_batch_1_is_sample_euler_bit_for_bit(tiny_model, rows, seed, num_steps, cfg_scale):
    sampler = euler(cfg_scale=cfg_scale, seed=seed, num_trajectories=1, batch_size=1)
    ours = run(tiny_model, rows, sampler=sampler, num_steps=num_steps)[0]
    first, last = sample_euler(
        tiny_model, TEXTS[0], seed=seed, num_steps=num_steps, cfg_scale=cfg_scale
    )
    np.testing.assert_array_equal(ours[0], first)
    np.testing.assert_array_equal(ours[-1], last)


def test_a_batch_agrees_with_its_rows_alone(tiny_model, rows):
    together = run(tiny_model, rows, sampler=euler(batch_size=3), num_steps=4)
    for index in range(3):
        alone = run(tiny_model, rows, sampler=euler(batch_size=1), num_steps=4, number=index)
        np.testing.assert_allclose(together[index], alone[0], atol=1e-5)


def test_heun_runs_through_the_same_generator(tiny_model, rows):
    ends = [run(tiny_model, rows, sampler=s(batch_size=1), num_steps=3)[0] for s in (euler, heun)]
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    assert 0 < np.abs(ends[0][-1] - ends[1][-1]).max() < 10


def test_a_batch_is_a_function_of_its_number():
    batch = sampling.Batch.of(2, sampler=euler(seed=10, batch_size=3), prompts=PROMPTS)
    assert list(batch.indices) == [6, 7, 8]
    assert batch.texts == (TEXTS[0], TEXTS[1], TEXTS[0])
    assert batch.seeds == (16, 17, 18)


class Toy:
    """A model whose context says when it is left."""

    def __init__(self, *, nan_at=None):
        self.inside, self.nan_at = 0, nan_at

    def denoiser(self, **_):
        from contextlib import contextmanager

        @contextmanager
        def context():
            self.inside += 1
            try:
                yield self.denoise
            finally:
                self.inside -= 1

        return context()

    def denoise(self, latent, step):
        return latent * (float("nan") if step == self.nan_at else 0.5)

    def first_latent(self, seeds, sigma0):
        from taqdit.backend import mx

        return mx.ones((len(seeds), 2, 2, 16))


def toy_batch(model):
    sampler = euler(batch_size=2)
    batch = sampling.Batch.of(0, sampler=sampler, prompts=PROMPTS)
    sigmas = flow(num_steps=4).sigmas()
    return sampling.Sampling(model, lambda texts: (None, None), sigmas, sampler).sample(batch)


def test_leaving_the_loop_early_leaves_the_models_context():
    model = Toy()
    found = toy_batch(model)
    assert next(found)[0] == 0
    assert model.inside == 1
    found.close()
    assert model.inside == 0


def test_nan_is_refused_at_its_step():
    model, steps = Toy(nan_at=2), []
    with pytest.raises(NumericError, match=r"before step 3 of trajectory 0 .*red circle.*seed 0"):
        steps += [step for step, _ in toy_batch(model)]
    assert model.inside == 0


def write_two(folder, *, latents):
    stage = open_stage(folder)
    batch = sampling.Batch.of(0, sampler=euler(batch_size=2), prompts=PROMPTS)
    sigmas = flow(num_steps=2).sigmas()
    for row in range(2):
        shards.write_trajectory(
            stage,
            batch,
            row,
            latents=latents[row],
            sigmas=sigmas,
            timesteps=sigmas * 1000,
            prompts=PROMPTS,
        )
    return stage


def test_a_set_reads_what_was_written(tmp_path):
    latents = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 16)).astype(np.float32)
    stage = write_two(tmp_path, latents=latents)
    found = TrajectorySet(stage, count=2, prompts=PROMPTS)
    assert (len(found), found.num_steps) == (2, 2)
    np.testing.assert_array_equal(found.latents(1), latents[1])
    np.testing.assert_array_equal(shards.final_latent(stage, 0), latents[0, -1])
    np.testing.assert_array_equal(found.timesteps, found.sigmas * 1000)
    with pytest.raises(IndexError):
        found.latents(2)


def test_a_damaged_trajectory_is_not_read(tmp_path):
    stage = write_two(tmp_path, latents=np.ones((2, 3, 4, 4, 16), np.float32))
    found = TrajectorySet(stage, count=2, prompts=PROMPTS)
    path = stage.path(shards.shard_name(1))
    path.write_bytes(path.read_bytes()[:-7] + b"\x01" + path.read_bytes()[-6:])
    with pytest.raises(CorruptError):
        found.latents(1)


def test_the_same_trajectories_give_the_same_bytes(tmp_path):
    latents = np.ones((2, 3, 4, 4, 16), np.float32)
    for name in ("a", "b"):
        write_two(tmp_path / name, latents=latents)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_stage_json_that_is_damaged_later_condemns_no_trajectory(tmp_path):
    write_two(tmp_path, latents=np.ones((2, 3, 2, 2, 16), np.float32))
    stage = open_stage(tmp_path)
    stage.path("stage.json").write_bytes(b"{}")
    units = {shards.shard_name(index): index for index in (0, 1)}
    found = stage.valid(units, lambda path: shards.read_trajectory(stage, units[path.name]))
    assert found == set(units)
    assert stage.moved_aside == []
