"""Stage `verify`: the torch twin and DiffusionKit's classes on MLX compute the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taqdit.errors import NumericError
from taqdit.models.tiny import config as read_config
from taqdit.models.tiny.captions import describe
from taqdit.models.tiny.scenes import sample_scenes
from taqdit.models.tiny.tokenizer import Encoder
from taqdit.models.tiny.train import files
from taqdit.models.tiny.train.measure import as_input, drawn
from taqdit.models.tiny.train.run import Run, log
from taqdit.models.tiny.train.sampling import Sampler, noise, sigmas
from taqdit.store import publish_bytes

TOLERANCE, PROMPTS, PICTURES = 1e-4, 13, 8
SIGMAS = (1.0, 0.93, 0.6, 0.25, 0.0089)


def verify(run: Run) -> None:
    """Writes verify.json: the largest difference of each part. Raises NumericError."""
    largest = differences(run.weights)
    publish_bytes(run.work / "verify.json", (json.dumps(largest, indent=1) + "\n").encode())
    refuse(largest)


def refuse(largest: dict[str, float]) -> None:
    """Raises NumericError if a part differs by more than the tolerance."""
    for name, difference in largest.items():
        if not difference <= TOLERANCE:
            raise NumericError(
                f"{name}: torch and DiffusionKit differ by {difference:g}, allowed {TOLERANCE:g}; "
                "one of the two model definitions has changed"
            )


def differences(folder: Path) -> dict[str, float]:
    """The largest difference of each part, by name, as a share of the channel's largest magnitude
    where that is above 1; tokens count the unequal ids."""
    twin = Twin(folder)
    checks: dict[str, Callable[[], float]] = {
        "token ids": twin.ids_differ,
        "text rows": lambda: _apart(twin.rows, twin.mlx_rows[:, : twin.tokens, : twin.width]),
        "padding rows": lambda: float(np.abs(twin.mlx_rows[:, twin.tokens :]).max()),
        "pooled text": lambda: _apart(twin.pooled, twin.mlx_pooled),
        "denoiser": twin.denoiser_differs,
        "encoder": twin.encoder_differs,
        "decoder": twin.decoder_differs,
        "classifier": twin.classifier_differs,
        "pictures of 30 steps": twin.pictures_differ,
    }
    largest = {}
    for name, check in checks.items():
        largest[name] = check()
        log.info("%s: largest difference %.2e", name, largest[name])
    return largest


def prompts() -> list[str]:
    """Captions of all kinds, noise words among them, and the empty one."""
    rng = np.random.default_rng(5)
    scenes = sample_scenes(PROMPTS - 1, rng, "all")
    return [*(describe(scenes, i, rng, drop=0.2, noise=0.3) for i in range(PROMPTS - 1)), ""]


class Twin:
    """The same exported weights in torch and in DiffusionKit."""

    def __init__(self, folder: Path) -> None:
        from taqdit.models.options import tiny
        from taqdit.models.pipeline import PipelineModel
        from taqdit.models.sources import TinySource

        self.folder = folder
        model = replace(tiny(), source=TinySource(folder=folder)).load()
        if not isinstance(model, PipelineModel):
            raise TypeError(f"{model!r} is no pipeline")
        self.model, self.net = model, files.load_text_to_image(folder)
        self.vae, self.texts = files.load_vae(folder), prompts()
        self.ids = Encoder()(self.texts)
        self.rows, self.pooled = self._encoded()
        self.tokens, self.width = self.rows.shape[1:]
        rows = [model.encode(text) for text in self.texts]
        self.mlx_rows, self.mlx_pooled = (np.stack(c) for c in zip(*rows, strict=True))

    @torch.no_grad()
    def _encoded(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rows, pooled = self.net.encode(*(torch.from_numpy(ids) for ids in self.ids))
        return rows.numpy(), pooled.numpy()

    def ids_differ(self) -> float:
        """How many ids of the fast encoder are not those of DiffusionKit's tokenizers."""
        pipeline = self.model.pipeline
        count = 0
        for tokenizer, ids in zip(
            (pipeline.tokenizer_l, pipeline.tokenizer_g), self.ids, strict=True
        ):
            for text, row in zip(self.texts, ids, strict=True):
                count += int((np.array(pipeline._tokenize(tokenizer, text)[0]) != row).sum())
        return float(count)

    @torch.no_grad()
    def denoiser_differs(self) -> float:
        """Velocities at five noise levels."""
        from taqdit.backend import mx
        from taqdit.models.modulation import Modulation

        rng, worst = np.random.default_rng(6), 0.0
        for sigma in SIGMAS:
            latent = rng.standard_normal((PROMPTS, 8, 8, 16)).astype(np.float32)
            time = mx.array([1000 * sigma])
            modulation = Modulation(self.model.mmdit, mx.array(self.mlx_pooled), time)
            with modulation.installed():
                ours = self.model.mmdit(
                    latent_image_embeddings=mx.array(latent),
                    timestep=time,
                    token_level_text_embeddings=mx.array(self.mlx_rows)[:, :, None],
                )
            rows, pooled = torch.from_numpy(self.rows), torch.from_numpy(self.pooled)
            times = torch.full((PROMPTS,), 1000 * sigma)
            theirs = self.net.mmdit(_nchw(latent), rows, pooled, times)
            worst = max(worst, _apart(np.array(ours), _nhwc(theirs)))
        return worst

    @torch.no_grad()
    def encoder_differs(self) -> float:
        """Mean and log variance of a few drawn pictures."""
        from taqdit.backend import mx
        from taqdit.models.diffusionkit import dk

        sizes = read_config(self.folder)["vae"]
        twin = dk.vae.VAEEncoder(
            3,
            2 * sizes["latent_channels"],
            sizes["block_out_channels"],
            sizes["layers_per_block"],
            sizes["resnet_groups"],
        )
        loaded: Any = mx.load(str(self.folder / "vae.safetensors"))
        weights = [
            (name.removeprefix("encoder."), value.astype(mx.float32))
            for name, value in loaded.items()
            if name.startswith("encoder.")
        ]
        twin.load_weights(weights, strict=True)
        ours = twin(mx.array(_nhwc(self._pictures())))
        return _apart(np.array(ours), _nhwc(self.vae.encoder(self._pictures())))

    @torch.no_grad()
    def decoder_differs(self) -> float:
        """Pictures of encoded pictures."""
        from taqdit.backend import mx

        latents = self.vae.encoder.posterior(self._pictures())[0]
        self.model.pipeline.load_decoder()
        ours = self.model.pipeline.decoder(mx.array(_nhwc(latents)))
        return _apart(np.array(ours), _nhwc(self.vae.decoder(latents)))

    @torch.no_grad()
    def classifier_differs(self) -> float:
        """Features of drawn pictures."""
        from taqdit.models.tiny.classifier import features

        pictures = drawn(sample_scenes(PICTURES, np.random.default_rng(7), "all"), 8)
        twin = files.load_classifier(self.folder)
        return _apart(features(pictures, self.folder), twin.features(as_input(pictures)).numpy())

    def pictures_differ(self) -> float:
        """Pictures in [0, 1] after thirty guided steps on both sides, one to one."""
        texts = self.texts[:PICTURES]
        first = noise(PICTURES, 1)
        sampler = Sampler(self.net, self.vae)
        theirs = sampler.decode(sampler.latents(texts, first, 2.0))
        return _apart(self._mlx_pictures(first, 2.0), theirs)

    def _mlx_pictures(self, first: NDArray[np.float32], cfg_scale: float) -> NDArray[np.float32]:
        from taqdit.backend import mx
        from taqdit.sampler import euler_step

        rows = [*range(len(first)), *[PROMPTS - 1] * len(first)]  # the empty text is the last
        tokens, pooled = mx.array(self.mlx_rows[rows]), mx.array(self.mlx_pooled[rows])
        grid, latent, pipeline = mx.array(sigmas()), mx.array(first), self.model.pipeline
        with self.model.denoiser(
            tokens=tokens, pooled=pooled, sigmas=grid, cfg_scale=cfg_scale
        ) as denoise:
            for step in range(len(grid) - 1):
                latent = euler_step(denoise, latent, grid, step)
                mx.eval(latent)
        decoded = pipeline.latent_format.process_out(latent)
        return np.array(pipeline.decode_latents_to_image(decoded))

    def _pictures(self) -> Tensor:
        scenes = sample_scenes(PICTURES, np.random.default_rng(7), "all")
        return as_input(drawn(scenes, 8))


def _apart(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The largest difference, by its channel's largest magnitude where that is above 1."""
    size = np.abs(b).max(axis=tuple(range(b.ndim - 1)), initial=1.0)
    return float((np.abs(a - b) / size).max())


def _nchw(array: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def _nhwc(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.permute(0, 2, 3, 1).contiguous().numpy()
    return array
