"""A calibration set made elsewhere is traced and analysed like one's own trajectories."""

import numpy as np
import pytest
from conftest import tree

import taqdit as package
from taqdit.calibration.imported import import_npz
from taqdit.cli.verbs import dispatch
from taqdit.errors import NumericError
from taqdit.stages.imported import guided_pairs

SMALL = (
    "schedule.num_steps=3",
    "sampler.num_trajectories=4",
    "sampler.batch_size=2",
    "sampler.images=false",
    "timestep_selection=all",
    "tracer=post_gelu",
    "tracking=none",
    "plots=none",
)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run over trajectories; its calibration set holds every step of them."""
    return package.launch([*SMALL, f"output_dir={tmp_path_factory.mktemp('own')}"])


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Where imported sets are traced."""
    return tmp_path_factory.mktemp("traced")


@pytest.fixture(scope="module")
def traced(own, outputs):
    """The run that traced the set."""
    return launched(own.folder / "calibration.npz", outputs)


def launched(path, outputs, *overrides):
    return package.launch(
        [*SMALL, f"output_dir={outputs}", f"inputs.calibration={path}", *overrides]
    )


def changed(own, path, **changes):
    """The set with other arrays, at `path`."""
    with np.load(own.folder / "calibration.npz") as arrays:
        np.savez(path, **{**arrays, **changes})
    return path


def stages(run):
    return {stage["name"]: (stage["made"], stage["reused"]) for stage in run.summary["stages"]}


def test_the_statistics_are_those_of_the_trajectories(own, traced):
    """But for the float16 of the file's conditioning and timesteps."""
    assert stages(traced) == {"statistics": (3, 0)}
    found, expected = traced.statistics(), own.statistics()
    np.testing.assert_allclose(found.timesteps, expected.timesteps, rtol=1e-3)
    for step in range(3):
        here, there = found.step(step), expected.step(step)
        np.testing.assert_array_equal(here.tokens, there.tokens)
        np.testing.assert_allclose(here.absmax, there.absmax, rtol=0.02, atol=2e-3)
        np.testing.assert_allclose(here.mean, there.mean, rtol=0.02, atol=2e-3)


def test_they_are_analysed_and_exported(own, traced):
    verdict = traced.summary["analysis"]["verdict"]
    assert "selections" in verdict
    assert "this run" not in verdict
    for name in ("analysis.json", "quantization_config.json", "layer_statistics.json"):
        assert (traced.folder / name).is_file()
    assert traced.summary["statistics"]["imported"] == str(own.folder / "calibration.npz")
    assert len(traced.calibration()) == 12


def test_what_is_traced_is_found_again_whole_and_kept(own, traced, outputs, capsys):
    before = tree(traced.statistics().folder)
    assert stages(launched(own.folder / "calibration.npz", outputs)) == {"statistics": (0, 3)}
    assert dispatch(["store", "verify", str(outputs)]) == 0
    assert dispatch(["store", "gc", "--yes", str(outputs)]) == 0
    assert tree(traced.statistics().folder) == before


def test_a_damaged_step_is_traced_again_alone(own, traced, outputs):
    path = traced.statistics().folder / "trajectories_0000012_step_0001.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert stages(launched(own.folder / "calibration.npz", outputs)) == {"statistics": (1, 2)}
    assert path.read_bytes() == good


def test_some_of_the_points_are_drawn(own, traced, outputs, caplog):
    caplog.set_level("INFO")
    path = own.folder / "calibration.npz"
    runs = [
        launched(
            path, outputs, "analysis=none", "tracer.num_trajectories=5", f"sampler.seed={seed}"
        )
        for seed in (0, 1)
    ]
    first, second = (run.statistics() for run in runs)
    assert first.extent == second.extent == 5
    assert len({each.fingerprint for each in (first, second, traced.statistics())}) == 3
    tokens = sum(first.step(step).tokens[0] for step in range(first.num_steps))
    assert tokens == 5 * 2 * 16
    assert any(text.startswith("tracing 5 of 12 points at ") for text in caplog.messages)


def test_a_sample_is_of_the_files_points_in_their_order(own):
    points = import_npz(own.folder / "calibration.npz")
    some = points.sample(5, seed=3)
    drawn = np.sort(np.random.default_rng(3).choice(12, 5, replace=False))
    for found, k in zip(some, drawn, strict=True):
        np.testing.assert_array_equal(found.latent, points[k].latent)
        assert (found.timestep, found.prompt_index) == (points[k].timestep, points[k].prompt_index)
    assert points.sample(12, seed=3) is points


def test_prompts_that_read_alike_are_traced_with_their_own_rows(own, traced, outputs, tmp_path):
    """Conditioning goes by prompt index: the texts change no number."""
    path = changed(own, tmp_path / "alike.npz", prompts=np.array(["", "a", "a", ""]))
    alike = launched(path, outputs, "analysis=none").statistics()
    for step in range(3):
        here, there = (each.step(step).tensors() for each in (alike, traced.statistics()))
        for name, array in there.items():
            np.testing.assert_array_equal(here[name], array)
    assert alike.fingerprint != traced.statistics().fingerprint


def test_a_forward_has_each_prompts_own_negative():
    pairs = [(np.float32([[[k]], [[-k]]]), np.float32([[k], [-k]])) for k in (1, 2, 3)]
    tokens, pooled = guided_pairs(pairs)
    assert np.array(tokens)[:, 0, 0].tolist() == [1, 2, 3, -1, -2, -3]
    assert np.array(pooled)[:, 0].tolist() == [1, 2, 3, -1, -2, -3]


def test_a_set_of_another_model_is_looked_at_and_that_is_said(own, outputs, tmp_path, caplog):
    strange = {"xs": np.zeros((12, 4, 6, 16), "f4"), "cs_pooled": np.zeros((4, 2, 7), "f2")}
    path = changed(own, tmp_path / "strange.npz", **strange)
    run = launched(path, outputs)
    assert (stages(run), run.summary["calibration"]["points"], run.record["stages"]) == ({}, 12, {})
    (said,) = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert said.startswith(f"{path} is not traced: its latents are (4, 6, 16) and the model's (8, ")
    assert "; set model.latent_size=[4, 6]; its pooled conditioning has 7 numbers and" in said
    caplog.clear()
    launched(path, outputs, "tracer=none")
    assert "is not traced" not in caplog.text


def test_a_guidance_that_no_forward_can_have(own, tmp_path):
    points = import_npz(changed(own, tmp_path / "unguided.npz", cfg_scale=np.float32(0)))
    (said,) = points.misfits((8, 8, 16), np.shape(points.pair(0)[1])[-1])
    assert said.startswith("its cfg_scale is 0 and must be above 0; save the one")


def test_a_value_that_is_no_number_names_the_prompt(own, outputs, tmp_path):
    with np.load(own.folder / "calibration.npz") as arrays:
        latents, owner = arrays["xs"].copy(), arrays["prompt_indices"]
    latents[7] = 3e38
    path = changed(own, tmp_path / "large.npz", xs=latents)
    with pytest.raises(NumericError, match=rf"holds NaN or Inf at step \d of prompt {owner[7]} \("):
        launched(path, outputs)
