"""The autoencoder, torch twin of DiffusionKit's. Attribute names follow DiffusionKit's parameter
paths one to one; pictures and latents are NCHW here and NHWC there."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LATENT_SCALE, LATENT_SHIFT = 1.5305, 0.0609
"""SD3's latent format: the denoiser sees `(latent - shift) * scale`."""


class Attention(nn.Module):
    """Single-head self-attention over all pixels."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width)
        self.query_proj = nn.Linear(width, width)
        self.key_proj = nn.Linear(width, width)
        self.value_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.group_norm(x).flatten(2).transpose(1, 2)
        query, key, value = self.query_proj(y), self.key_proj(y), self.value_proj(y)
        y = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        return x + self.out_proj(y).transpose(1, 2).reshape(x.shape)


class Resnet(nn.Module):
    """Two convolutions around a shortcut, which is a linear map where the width changes."""

    def __init__(self, width_in: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if width_in != width:
            self.conv_shortcut = nn.Linear(width_in, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        if hasattr(self, "conv_shortcut"):
            shortcut = self.conv_shortcut
            x = F.conv2d(x, shortcut.weight[:, :, None, None], shortcut.bias)
        return x + y


class Level(nn.Module):
    """Resnets of one resolution, then the convolution that halves or doubles it, if any."""

    def __init__(
        self, width_in: int, width: int, layers: int, groups: int, *, down: bool, up: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            Resnet(width if i else width_in, width, groups) for i in range(layers)
        )
        if down:
            self.downsample = nn.Conv2d(width, width, 3, stride=2)
        if up:
            self.upsample = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        if hasattr(self, "downsample"):
            x = self.downsample(F.pad(x, (0, 1, 0, 1)))
        if hasattr(self, "upsample"):
            x = self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


def _middle(width: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        [Resnet(width, width, groups), Attention(width, groups), Resnet(width, width, groups)]
    )


class Encoder(nn.Module):
    """Pictures `(N, 3, 64, 64)` in [-1, 1] to `(N, 32, 8, 8)`: mean and log variance."""

    def __init__(
        self,
        latent_channels: int,
        block_out_channels: list[int],
        layers_per_block: int,
        resnet_groups: int,
    ) -> None:
        super().__init__()
        widths, groups = block_out_channels, resnet_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(before, width, layers_per_block, groups, down=i < len(widths) - 1, up=False)
            for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
        )
        self.mid_blocks = _middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for part in [*self.down_blocks, *self.mid_blocks]:
            x = part(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, `(N, 16, 8, 8)` each."""
        mean, log_variance = self(x).chunk(2, 1)
        return mean, (0.5 * log_variance.clamp(-20, 5)).exp()


class Decoder(nn.Module):
    """Latents `(N, 16, 8, 8)` to pictures `(N, 3, 64, 64)`, nominally in [-1, 1]."""

    def __init__(
        self,
        latent_channels: int,
        block_out_channels: list[int],
        layers_per_block: int,
        resnet_groups: int,
    ) -> None:
        super().__init__()
        widths, groups = block_out_channels, resnet_groups
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid_blocks = _middle(widths[-1], groups)
        after = [*widths[1:], widths[-1]]
        self.up_blocks = nn.ModuleList(  # run from the last, the coarsest
            Level(before, width, layers_per_block, groups, down=False, up=i > 0)
            for i, (before, width) in enumerate(zip(after, widths, strict=True))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for part in [*self.mid_blocks, *reversed(self.up_blocks)]:
            x = part(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class VAE(nn.Module):
    """Encoder and decoder of the sizes in `config.json`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(**config["vae"]), Decoder(**config["vae"])


@torch.no_grad()
def normalise(vae: VAE, mean: Tensor, std: Tensor) -> None:
    """Folds an affine map per channel into the encoder's last convolution, so that latents of
    this `mean` and `std`, `(16,)` each, leave SD3's latent format with mean 0 and deviation 1.
    The decoder's first convolution takes the inverse map (exact but for the zero-padded border,
    so the decoder has to be trained on)."""
    factor = 1 / (LATENT_SCALE * std)
    offset = LATENT_SHIFT - factor * mean
    out, into, channels = vae.encoder.conv_out, vae.decoder.conv_in, len(mean)
    out.weight[:channels] *= factor[:, None, None, None]
    out.bias[:channels] = out.bias[:channels] * factor + offset
    out.bias[channels:] += 2 * factor.log()
    into.bias -= (into.weight * (offset / factor)[None, :, None, None]).sum((1, 2, 3))
    into.weight /= factor[None, :, None, None]


def to_model(latent: Tensor) -> Tensor:
    """A latent of the autoencoder as the denoiser sees it (`process_in`)."""
    return (latent - LATENT_SHIFT) * LATENT_SCALE


def from_model(latent: Tensor) -> Tensor:
    """The inverse of `to_model` (`process_out`)."""
    return latent / LATENT_SCALE + LATENT_SHIFT
