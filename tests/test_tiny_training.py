"""The training of the embedded model, a few steps of everything. Needs torch (extra `train`)."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file  # noqa: E402

from taqdit.errors import ConfigError, ModelError, NumericError  # noqa: E402
from taqdit.models.tiny import WEIGHTS, config  # noqa: E402
from taqdit.models.tiny.captions import describe  # noqa: E402
from taqdit.models.tiny.scenes import sample_scenes, tuple_is_held_out  # noqa: E402
from taqdit.models.tiny.train import __main__ as command  # noqa: E402
from taqdit.models.tiny.train import (  # noqa: E402
    export,
    files,
    losses,
    measure,
    sheet,
    stage_classifier,
    stage_flow,
    stage_vae,
    verify,
)
from taqdit.models.tiny.train.linear import Linear  # noqa: E402
from taqdit.models.tiny.train.loop import Average, Dice, Trapezoid  # noqa: E402
from taqdit.models.tiny.train.run import Run  # noqa: E402
from taqdit.models.tiny.train.sampling import sigmas  # noqa: E402
from taqdit.models.tiny.train.vae import from_model, normalise, to_model  # noqa: E402

SCALE = 0.0005


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of all training stages that is a few steps long."""
    run = Run(tmp_path_factory.mktemp("run"), scale=SCALE)
    for stage in (stage_vae.train_vae, stage_flow.train_flow, stage_vae.train_decoder):
        stage(run)
    stage_classifier.train_classifier(run)
    export.export(run)
    return run


def weights_of(folder):
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def test_export_has_the_tensors_of_the_shipped_files(trained):
    made, shipped = (weights_of(folder) for folder in (trained.plain, WEIGHTS))
    assert made.keys() == shipped.keys()
    for name, tensors in shipped.items():
        shapes = {key: (value.shape, value.dtype) for key, value in tensors.items()}
        assert {key: (v.shape, v.dtype) for key, v in made[name].items()} == shapes
        assert {value.dtype for value in made[name].values()} == {np.dtype(np.float16)}
    assert json.loads((trained.plain / "config.json").read_text()) == config()


def test_export_and_import_are_inverse(trained):
    net, folder = stage_flow.load_flow(trained), trained.plain
    again = files.load_text_to_image(folder)
    for one, other in zip(net.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(other, one.half().float(), rtol=0, atol=0)


def test_the_context_embedder_is_padded_with_zeros(trained):
    weight = load_file(trained.plain / "mmdit.safetensors")[files.CONTEXT]
    assert weight.shape == (128, 4096)
    assert not weight[:, 160:].any()
    assert weight[:, :160].any()


def test_export_refuses_what_float16_cannot_hold():
    with pytest.raises(NumericError, match=r"a of x\.safetensors is not finite"):
        export._refuse_infinite("x.safetensors", {"a": np.array([np.inf], np.float16)})


def test_the_same_run_gives_the_same_weights(trained, tmp_path):
    again = replace(trained, work=tmp_path)
    stage_vae.train_vae(again)
    stage_flow.train_flow(again)
    for name in ("vae.safetensors", "flow.safetensors"):
        assert (tmp_path / name).read_bytes() == (trained.work / name).read_bytes()
    other = replace(again, seed=1)
    stage_vae.train_vae(other)
    first, second = (run.work / "vae.safetensors" for run in (trained, other))
    assert first.read_bytes() != second.read_bytes()


def test_an_interrupted_flow_is_taken_up_exactly(trained, tmp_path, monkeypatch):
    run = replace(trained, work=tmp_path)
    (tmp_path / "vae.safetensors").write_bytes((trained.work / "vae.safetensors").read_bytes())
    calls, plain = [], stage_flow._loss

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(stage_flow, "CHECKPOINT", 3)
    monkeypatch.setattr(stage_flow, "_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stage_flow.train_flow(run)
    assert not (tmp_path / "flow.safetensors").exists()
    stage_flow.train_flow(run)
    assert len(calls) - 4 == run.steps(stage_flow.STEPS) - 3
    made = (tmp_path / "flow.safetensors").read_bytes()
    assert made == (trained.work / "flow.safetensors").read_bytes()
    assert not (tmp_path / "flow-unfinished.pt").exists()


def test_training_starts_from_exported_weights(tmp_path):
    run = Run(tmp_path, scale=SCALE, start_from=WEIGHTS)
    stage_vae.adopt_vae(run, WEIGHTS)
    training = stage_flow.Training(run, stage_vae.load_vae(run))
    training.begin()
    assert all(p.requires_grad for p in training.net.parameters())
    good = [stage_flow._loss(training.net, training.bank, ENCODE, training.dice) for _ in range(3)]
    assert max(loss.item() for loss in good) < 0.3  # an untrained one: above 2


def test_a_few_steps_of_each_stage_reduce_its_loss(trained):
    """The same batch again and again, before and after."""
    dice = Dice(0)
    picture = stage_vae.Pool(8, dice).batch(8)
    vae = dice.initialised(stage_vae.VAE, config())
    net = dice.initialised(stage_classifier.Classifier, config())
    scenes = sample_scenes(8, dice.numpy, "all")

    def reconstruct():
        return losses.reconstruction(vae.decoder(vae.encoder.posterior(picture)[0]), picture)

    def classify():
        return losses.attributes(net(picture), scenes)

    for module, loss in ((vae, reconstruct), (net, classify)):
        optimiser = torch.optim.AdamW(module.parameters(), 2e-3)
        before = loss().item()
        for _ in range(12):
            stage_vae.descend(loss(), optimiser, module.parameters())
        assert loss().item() < 0.8 * before


def test_a_few_steps_of_the_flow_reduce_its_loss(trained):
    training = stage_flow.Training(trained, stage_vae.load_vae(trained))
    training.begin()
    optimiser = torch.optim.AdamW(training.net.parameters(), 2e-3)
    found = []
    for _ in range(20):
        loss = stage_flow._loss(training.net, training.bank, ENCODE, training.dice)
        stage_flow.descend(loss, optimiser, training.net.parameters())
        found.append(loss.item())
    assert np.mean(found[-3:]) < 0.96 * np.mean(found[:3])


ENCODE = stage_flow.Encoder()


def test_the_latents_of_a_trained_autoencoder_are_standardised():
    dice = Dice(4)
    vae = dice.initialised(stage_vae.VAE, config()).requires_grad_(False)
    pictures = stage_vae.Pool(64, dice).pictures
    mean = vae.encoder.posterior(pictures)[0]
    interior = vae.decoder.conv_in(mean)[:, :, 1:-1, 1:-1]
    normalise(vae, mean.mean((0, 2, 3)), mean.std((0, 2, 3)))
    folded = vae.encoder.posterior(pictures)[0]
    seen = to_model(folded)
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3)), torch.ones(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(from_model(seen), folded)
    again = vae.decoder.conv_in(folded)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(again, interior, atol=1e-3, rtol=1e-3)


def test_zero_rows_of_the_text_are_counted_by_the_bias_alone():
    """Against the whole text with all its zero rows, attended to one by one."""
    net = files.load_text_to_image(WEIGHTS).mmdit
    rows, pooled = torch.randn(2, 16, 160), torch.randn(2, 160)
    latent, time = torch.randn(2, 16, 8, 8), torch.tensor([900.0, 100.0])
    short = net(latent, rows, pooled, time)

    def all_rows(text, image_tokens):
        padded = torch.cat([text, torch.zeros_like(text)], 1)
        return net.context_embedder(padded), torch.zeros(1, 1, 1, image_tokens + 32)

    net._text_rows = all_rows
    torch.testing.assert_close(net(latent, rows, pooled, time), short, atol=2e-5, rtol=1e-4)


def test_half_products_train_like_whole_ones(monkeypatch):
    layer, x = Linear(64, 32), torch.randn(7, 5, 64, requires_grad=True)
    found = []
    for half in (False, True):
        monkeypatch.setattr(Linear, "half_products", half)
        y = layer(x)
        gradients = torch.autograd.grad((y**2).sum(), [x, *layer.parameters()])
        found.append([y, *gradients])
    for whole, part in zip(*found, strict=True):
        assert part.dtype == torch.float32
        assert not torch.equal(whole, part) or whole.ndim == 1
        assert (whole - part).norm() < 0.02 * whole.norm()
    layer.eval()
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_cell_weights_follow_the_caption_and_mean_one():
    scenes = sample_scenes(300, np.random.default_rng(0), "all")
    texts = [describe(scenes, i, np.random.default_rng(i)) for i in range(300)]
    weights = losses.cell_weights(scenes, texts)
    torch.testing.assert_close(weights.mean((1, 2, 3)), torch.ones(300))
    silent = losses.cell_weights(scenes, [""] * 300)
    torch.testing.assert_close(silent, torch.ones_like(silent))
    for index in np.flatnonzero((scenes["rel"] == 0) & (scenes["pos"] == 0)):
        grid = weights[index, 0]
        assert grid.argmax() == 2 * 8 + 2
        assert grid.min() == grid[-1, -1]


def test_the_weights_say_nothing_that_the_caption_does_not():
    scenes = sample_scenes(300, np.random.default_rng(1), "all")
    texts = [describe(scenes, i, np.random.default_rng(i), drop=1.0) for i in range(300)]
    weights = losses.cell_weights(scenes, texts)
    torch.testing.assert_close(weights, torch.ones_like(weights))


def test_schedule_and_average():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([{"params": [parameter], "lr": 2.0}])
    schedule, rates = Trapezoid(optimiser, 100, warmup=10, descent=0.5), []
    for step in range(100):
        schedule.set(step)
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:51] == [2.0] * 42
    assert rates[-1] == pytest.approx(2.0 / 50)
    holder = torch.nn.ParameterList([parameter])
    average = Average(holder, 0.5)
    for value in (1.0, 1.0, 1.0):
        parameter.data.fill_(value)
        average.update()
    assert 0.8 < float(average.values[0]) < 1.0
    average.apply()
    assert parameter.item() == average.values[0].item()


def test_the_grid_is_diffusionkits():
    options = pytest.importorskip("taqdit.models.options")
    pipeline = options.tiny().load().pipeline
    expected = np.array(pipeline.get_sigmas(pipeline.sampler, 30))
    np.testing.assert_allclose(sigmas(), expected, atol=1e-7, rtol=1e-6)


def test_torch_and_diffusionkit_compute_the_same():
    pytest.importorskip("taqdit.models.pipeline")
    found = verify.differences(WEIGHTS)
    verify.refuse(found)
    assert found["token ids"] == found["padding rows"] == 0


def test_a_difference_is_refused():
    verify.refuse({"a": 0.0})
    for wrong in (2e-4, float("nan")):
        with pytest.raises(NumericError, match="denoiser: torch and DiffusionKit differ"):
            verify.refuse({"denoiser": wrong})


def test_measured_figures_of_the_shipped_weights():
    found = measure.figures(measure.Bench(WEIGHTS, WEIGHTS, 64), guidance=(2.0,))
    assert found["trained captions, CFG 2"]["all"] > 70
    assert found["trained captions, real pictures"]["all"] > 85
    assert found["psnr of reconstructions"] > 30
    assert set(found["held-out pairs, CFG 2"]) >= {"shape", "colour", "all"}


def test_held_out_measurements_were_never_trained():
    scenes, texts = measure.held_out_tuples(40, 11)
    assert len(texts) == 40
    assert tuple_is_held_out(scenes).all()
    assert measure._held_out_earlier(scenes).all()


def test_a_missing_stage_is_named(tmp_path):
    with pytest.raises(ModelError, match="run the stage 'vae' first"):
        stage_flow.train_flow(Run(tmp_path, scale=SCALE))


def test_the_command_refuses_an_unknown_stage(capsys):
    assert command.main(["flux"]) == ConfigError.exit_code
    assert capsys.readouterr().err.startswith("error: no stage 'flux'; the stages are vae, flow")
    assert command.main(["vae", "--steps-scale", "0"]) == ConfigError.exit_code


def test_the_command_without_torch_says_how_to_get_it(tmp_path):
    """As its own process, with torch hidden."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "from taqdit.models.tiny.train.__main__ import main\n"
        f"sys.exit(main(['vae', '--work', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == ModelError.exit_code
    assert "pip install torch" in done.stderr
    assert "--extra train" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_finished_stages_are_skipped(trained, caplog):
    with caplog.at_level("INFO", logger="taqdit.train"):
        options = ["vae", "flow", "--work", str(trained.work), "--steps-scale", str(SCALE)]
        assert command.main([*options, "--threads", "1"]) == 0
    assert [r.getMessage().split(" (")[0] for r in caplog.records] == [
        "vae: done before",
        "flow: done before",
    ]


def test_the_contact_sheet_holds_every_picture_and_caption():
    texts = sheet.prompts()
    assert len(texts) == 6 * sheet.COLUMNS
    colour = np.array([7, 100, 200], np.uint8)
    pictures = np.broadcast_to(colour, (9, 64, 64, 3))
    paper = np.array(sheet.arranged(pictures, ["a long caption " * 4] * 9))
    assert (paper == colour).all(-1).sum() == 9 * 128**2
    assert (paper[-30:] < 100).any()
