"""Stage `flow`: text encoders and denoiser together, by rectified flow on the fixed latents."""

import io

import numpy as np
import torch
from torch import Tensor, nn

from taqdit.models.tiny.captions import describe
from taqdit.models.tiny.scenes import sample_scenes, take
from taqdit.models.tiny.tokenizer import Encoder
from taqdit.models.tiny.train.files import load_text_to_image
from taqdit.models.tiny.train.loop import (
    Average,
    Dice,
    Trapezoid,
    descend,
    dice_of,
    pictures,
    publish,
    restore,
)
from taqdit.models.tiny.train.losses import cell_weights, noise_level
from taqdit.models.tiny.train.mmdit import TextToImage
from taqdit.models.tiny.train.run import Run, log
from taqdit.models.tiny.train.stage_vae import load_vae
from taqdit.models.tiny.train.vae import LATENT_SCALE, VAE, to_model
from taqdit.store import publish_bytes

STEPS, FURTHER_STEPS = 14000, 5600
BATCH, BANK, RATE, DESCENT, DECAY = 64, 16384, 1e-3, 0.8, 0.02
DROP, NOISE, EMPTY = 0.15, 0.06, 0.1
CHECKPOINT = 1000  # steps


class LatentBank:
    """Scenes with the mean and deviation of their latents, drawn anew little by little."""

    def __init__(self, vae: VAE, size: int, dice: Dice) -> None:
        self.vae, self.dice, self.size, self.oldest = vae, dice, size, 0

    def fill(self) -> None:
        """Draws and encodes all scenes."""
        self.scenes = sample_scenes(self.size, self.dice.numpy)
        starts = range(0, self.size, 256)
        parts = [self._encoded(start, min(start + 256, self.size)) for start in starts]
        self.mean, self.std = (torch.cat(column) for column in zip(*parts, strict=True))

    @torch.no_grad()
    def _encoded(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        drawing = pictures(take(self.scenes, np.arange(start, stop)), self.dice.numpy)
        mean, std = self.vae.encoder.posterior(drawing)
        return to_model(mean), std * LATENT_SCALE

    def refresh(self, count: int = 128) -> None:
        """Replaces the oldest entries."""
        start, stop = self.oldest, min(self.oldest + count, len(self.mean))
        for name, column in sample_scenes(stop - start, self.dice.numpy).items():
            self.scenes[name][start:stop] = column
        self.mean[start:stop], self.std[start:stop] = self._encoded(start, stop)
        self.oldest = stop % len(self.mean)

    def batch(self, size: int) -> tuple[Tensor, np.ndarray]:
        """Latents drawn from their posteriors, and the rows of their scenes."""
        rows = self.dice.numpy.integers(0, len(self.mean), size)
        index = torch.from_numpy(rows)
        noise = self.dice.normal(size, *self.mean.shape[1:])
        return self.mean[index] + self.std[index] * noise, rows


class Training:
    """All that changes during the stage, in one place, so that it can be laid down and taken up
    again exactly. The rate's plateau does not depend on the number of steps, so a run may be
    taken up with more or fewer steps in all, as long as the descent has not begun."""

    def __init__(self, run: Run, vae: VAE) -> None:
        self.run, self.dice, self.step = run, dice_of(run, "flow"), 0
        self.net = _first(run, self.dice)
        self.optimiser = torch.optim.AdamW(_groups(self.net), RATE, (0.9, 0.98), fused=True)
        self.average = Average(self.net, 0.9995)
        self.bank = LatentBank(vae, run.count(BANK, 256), self.dice)
        self.path = run.work / "flow-unfinished.pt"

    def save(self) -> None:
        """Publishes the whole state."""
        buffer = io.BytesIO()
        state = {
            "step": self.step,
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": (self.average.updates, self.average.values),
            "bank": (self.bank.scenes, self.bank.mean, self.bank.std, self.bank.oldest),
            "dice": self.dice.state(),
        }
        torch.save(state, buffer)
        publish_bytes(self.path, buffer.getvalue())

    def begin(self) -> None:
        """Takes up what `save` laid down (a file of one's own: pickled), or starts afresh."""
        if not self.path.exists():
            self.bank.fill()
            return
        state = torch.load(self.path, weights_only=False)
        self.step = state["step"]
        self.net.load_state_dict(state["net"])
        rates = [group["lr"] for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
            group["lr"] = rate
        self.average.updates, self.average.values = state["average"]
        self.bank.scenes, self.bank.mean, self.bank.std, self.bank.oldest = state["bank"]
        self.dice.restore(state["dice"])
        log.info("flow: taken up after %d steps", self.step)


def _first(run: Run, dice: Dice) -> TextToImage:
    """Random weights, or those that the run starts from."""
    if run.start_from is None:
        return dice.initialised(TextToImage, run.config)
    return load_text_to_image(run.start_from).requires_grad_(True).train()


def train_flow(run: Run) -> None:
    """Velocity = noise - latent at a random sigma; captions in all templates, one in ten empty."""
    training, encode = Training(run, load_vae(run)), Encoder()
    steps = run.steps(STEPS if run.start_from is None else FURTHER_STEPS)
    training.begin()
    net, losses = training.net, []
    schedule = Trapezoid(training.optimiser, steps, warmup=400, descent=DESCENT)
    parameters = list(net.parameters())
    while training.step < steps:
        schedule.set(training.step)
        loss = _loss(net, training.bank, encode, training.dice)
        descend(loss, training.optimiser, parameters)
        training.average.update()
        training.step += 1
        losses.append(loss.item())
        if training.step % 100 == 0:
            training.bank.refresh()
            log.info("flow %d/%d loss %.4f", training.step, steps, np.mean(losses[-200:]))
        if training.step % CHECKPOINT == 0:
            training.save()
    training.average.apply()
    publish(run.work / "flow.safetensors", net)
    training.path.unlink(missing_ok=True)


def load_flow(run: Run) -> TextToImage:
    """The trained text encoders and denoiser, frozen."""
    return restore(run.work / "flow.safetensors", TextToImage(run.config), "flow")


def _loss(net: TextToImage, bank: LatentBank, encode: Encoder, dice: Dice) -> Tensor:
    """The weighted squared error of the velocity on one batch."""
    latent, rows = bank.batch(BATCH)
    texts = [_caption(bank, row, dice) for row in rows]
    ids_l, ids_g = (torch.from_numpy(ids) for ids in encode(texts))
    sigma = noise_level(dice.uniform(BATCH), dice.normal(BATCH), dice.uniform(BATCH))
    s, noise = sigma[:, None, None, None], dice.normal(*latent.shape)
    velocity = net((1 - s) * latent + s * noise, sigma, ids_l, ids_g)
    weights = cell_weights(take(bank.scenes, rows), texts)
    return (weights * (velocity - (noise - latent)) ** 2).mean()


def _caption(bank: LatentBank, row: int, dice: Dice) -> str:
    if dice.numpy.random() < EMPTY:
        return ""
    return describe(bank.scenes, row, dice.numpy, drop=DROP, noise=NOISE)


def _groups(net: nn.Module) -> list[dict[str, object]]:
    """Weight decay for matrices only."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
