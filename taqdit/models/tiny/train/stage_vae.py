"""Stages `vae` and `decoder`: the autoencoder, then its decoder alone on a fixed encoder."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taqdit.models.tiny.train.files import load_vae as exported_vae
from taqdit.models.tiny.train.loop import (
    Average,
    Dice,
    Trapezoid,
    descend,
    dice_of,
    drawn,
    publish,
    restore,
)
from taqdit.models.tiny.train.losses import divergence, psnr, reconstruction
from taqdit.models.tiny.train.run import Run, log
from taqdit.models.tiny.train.vae import LATENT_SCALE, VAE, normalise

VAE_STEPS, DECODER_STEPS, BATCH, POOL = 6500, 5000, 16, 4096
RATE, DECODER_RATE, DIVERGENCE_WEIGHT, JITTER = 2e-3, 1.5e-3, 2e-4, 0.03
PSNR_SEED = 99


class Pool:
    """Pictures to draw batches from, a part of which is drawn anew now and then."""

    def __init__(self, size: int, dice: Dice) -> None:
        self.dice = dice
        self.pictures = drawn(size, dice.numpy)[1]

    def refresh(self, count: int = 128) -> None:
        """Draws a random stretch of the pool anew."""
        start = int(self.dice.numpy.integers(max(1, len(self.pictures) - count)))
        part = self.pictures[start : start + count]
        part.copy_(drawn(len(part), self.dice.numpy)[1])

    def batch(self, size: int) -> Tensor:
        """`size` of the pictures, drawn with replacement."""
        return self.pictures[
            torch.from_numpy(self.dice.numpy.integers(len(self.pictures), size=size))
        ]


def train_vae(run: Run) -> None:
    """Encoder and decoder together; ends with latents of mean 0 and deviation 1 per channel.

    A linear read-out of each patch's mean colour from the latents keeps the colours of small
    objects, which are lost in a local minimum otherwise."""
    dice, steps = dice_of(run, "vae"), run.steps(VAE_STEPS)
    vae = dice.initialised(VAE, run.config).to(memory_format=torch.channels_last)
    read_out = dice.initialised(nn.Conv2d, run.config["vae"]["latent_channels"], 3, 1)
    parameters = [*vae.parameters(), *read_out.parameters()]
    optimiser = torch.optim.AdamW(parameters, RATE, (0.9, 0.99), weight_decay=1e-4, fused=True)
    schedule, average = Trapezoid(optimiser, steps, warmup=200, descent=0.5), Average(vae, 0.999)
    pool = Pool(run.count(POOL, 128), dice)
    for step in range(steps):
        schedule.set(step)
        if step % 40 == 39:
            pool.refresh()
        picture = pool.batch(BATCH)
        mean, std = vae.encoder.posterior(picture)
        latent = mean + std * dice.normal(*mean.shape)
        output = vae.decoder(latent)
        colours = F.l1_loss(read_out(latent), F.avg_pool2d(picture, 8))
        loss = reconstruction(output, picture) + 2 * colours
        descend(loss + DIVERGENCE_WEIGHT * divergence(mean, std), optimiser, parameters)
        average.update()
        if step % 100 == 99:
            _report("vae", step + 1, steps, loss, psnr(output, picture))
    average.apply()
    _standardise(vae, pool, dice)
    log.info("vae psnr %.2f dB", measured_psnr(vae, run))
    publish(run.work / "vae.safetensors", vae)


def _report(stage: str, step: int, steps: int, loss: Tensor, decibels: float) -> None:
    log.info("%s %d/%d loss %.4f psnr %.2f", stage, step, steps, loss.item(), decibels)


@torch.no_grad()
def _standardise(vae: VAE, pool: Pool, dice: Dice) -> None:
    mean, std = vae.encoder.posterior(pool.pictures[:1024])
    latent = mean + std * dice.normal(*mean.shape)
    normalise(vae, latent.mean((0, 2, 3)), latent.std((0, 2, 3)))


def adopt_vae(run: Run, folder: Path) -> None:
    """Takes the autoencoder of exported weights instead of training one."""
    vae = exported_vae(folder)
    log.info("vae of %s: psnr %.2f dB", folder, measured_psnr(vae, run))
    publish(run.work / "vae.safetensors", vae)


def load_vae(run: Run, name: str = "vae") -> VAE:
    """The autoencoder after the stage `vae`, or with its final decoder (`decoder`)."""
    return restore(run.work / f"{name}.safetensors", VAE(run.config), name)


def train_decoder(run: Run) -> None:
    """The decoder alone, on latents with a little noise besides their posterior's: generated
    latents are never quite right. The encoder, hence the denoiser's world, stays."""
    dice, steps = dice_of(run, "decoder"), run.steps(DECODER_STEPS)
    vae = load_vae(run).to(memory_format=torch.channels_last)
    decoder = vae.decoder.requires_grad_(True)
    optimiser = torch.optim.AdamW(
        decoder.parameters(), DECODER_RATE, (0.9, 0.99), weight_decay=1e-4, fused=True
    )
    schedule, average = (
        Trapezoid(optimiser, steps, warmup=100, descent=0.5),
        Average(decoder, 0.999),
    )
    bank = [_encoded(vae, dice) for _ in range(run.count(16, 1))]
    for step in range(steps):
        schedule.set(step)
        if step % 80 == 79:
            bank[step // 80 % len(bank)] = _encoded(vae, dice)
        pictures, mean, std = bank[int(dice.numpy.integers(len(bank)))]
        rows = torch.from_numpy(dice.numpy.integers(len(pictures), size=BATCH))
        picture, noise = pictures[rows], dice.normal(BATCH, *mean.shape[1:])
        output = decoder(mean[rows] + (std[rows] + JITTER / LATENT_SCALE) * noise)
        loss = reconstruction(output, picture)
        descend(loss, optimiser, decoder.parameters())
        average.update()
        if step % 100 == 99:
            _report("decoder", step + 1, steps, loss, psnr(output, picture))
    average.apply()
    log.info("decoder psnr %.2f dB", measured_psnr(vae, run))
    publish(run.work / "decoder.safetensors", vae)


@torch.no_grad()
def _encoded(vae: VAE, dice: Dice) -> tuple[Tensor, Tensor, Tensor]:
    """256 pictures with the mean and deviation of their latents."""
    picture = drawn(256, dice.numpy)[1]
    return picture, *vae.encoder.posterior(picture)


@torch.no_grad()
def measured_psnr(vae: VAE, run: Run) -> float:
    """PSNR in dB of decoded means over 512 pictures of all splits, the same ones each time."""
    picture = drawn(run.count(512, 16), Dice(PSNR_SEED).numpy, "all")[1]
    return psnr(vae.decoder(vae.encoder.posterior(picture)[0]), picture)
