"""Exported weights to torch modules and back: names and axes in MLX's manner, fp16."""

import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import nn

from taqdit.models.tiny import config as read_config
from taqdit.models.tiny.train.judge import Classifier
from taqdit.models.tiny.train.mmdit import TextToImage
from taqdit.models.tiny.train.vae import VAE

Arrays = dict[str, NDArray[np.float16]]
CONTEXT = "context_embedder.weight"


def mlx_name(name: str) -> str:
    """MLX's `Sequential` adds a level `layers`."""
    return re.sub(r"(mlp|adaLN_modulation)\.(\d)", r"\1.layers.\2", name)


def exported(module: nn.Module) -> Arrays:
    """All parameters, convolution kernels as OHWI."""
    arrays = {}
    for name, parameter in module.named_parameters():
        value = parameter.detach()
        value = value.permute(0, 2, 3, 1) if value.ndim == 4 else value
        arrays[mlx_name(name)] = value.contiguous().half().numpy()
    return arrays


def widened(mmdit: Arrays, width: int) -> Arrays:
    """The context embedder with its full number of inputs, the unused ones zero."""
    narrow = mmdit[CONTEXT]
    full = np.zeros((len(narrow), width), np.float16)
    full[:, : narrow.shape[1]] = narrow
    return mmdit | {CONTEXT: full}


@torch.no_grad()
def filled(module: nn.Module, arrays: Arrays) -> None:
    """Puts exported arrays into a module, frozen; every parameter must be there."""
    for name, parameter in module.named_parameters():
        value = torch.from_numpy(arrays[mlx_name(name)].astype(np.float32))
        value = value.permute(0, 3, 1, 2) if value.ndim == 4 else value
        if name == CONTEXT:
            value = value[:, : parameter.shape[1]]
        parameter.copy_(value)
    module.eval().requires_grad_(False)


def load_vae(folder: Path) -> VAE:
    """The autoencoder of exported weights."""
    vae = VAE(read_config(folder))
    filled(vae, load_file(folder / "vae.safetensors"))
    return vae


def load_text_to_image(folder: Path) -> TextToImage:
    """Text encoders and denoiser of exported weights."""
    net = TextToImage(read_config(folder))
    for name in ("clip_l", "clip_g", "mmdit"):
        filled(getattr(net, name), load_file(folder / f"{name}.safetensors"))
    return net


def load_classifier(folder: Path) -> Classifier:
    """The classifier of exported weights."""
    net = Classifier(read_config(folder))
    filled(net, load_file(folder / "classifier.safetensors"))
    return net
