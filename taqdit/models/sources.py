"""Where the files of a model are: in the package, or in Hugging Face repositories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taqdit.errors import ModelError
from taqdit.models import headers, hub
from taqdit.models.hub import T5_REPO, TEXT_REPO
from taqdit.models.spec import Model, ModelSpec
from taqdit.models.tiny import WEIGHTS

CLIPS = ("clip_l", "clip_g")


@dataclass(frozen=True)
class TinySource:
    """The embedded weights in `folder`; `mmdit` replaces the transformer's file."""

    mmdit: Path | None = None
    folder: Path = WEIGHTS

    def locate(self) -> dict[str, Path | None]:
        """Files by name, None where one is missing."""
        return {name: path if path.is_file() else None for name, path in self._paths().items()}

    def fetch(self) -> dict[str, Path]:
        """Files by name, weights checked for damage. Raises ModelError."""
        for name, path in self._paths().items():
            try:
                if not path.is_file():
                    raise ValueError("does not exist")
                if name.endswith(".safetensors"):
                    headers.read(path)
            except ValueError as error:
                raise self.problem(name, str(error)) from error
        return self._paths()

    def problem(self, name: str, what: str) -> ModelError:
        """The error for one of the files: `what` is wrong with it, and what to do."""
        own = self.mmdit and name == "mmdit.safetensors"
        remedy = (
            "give a file with the names and shapes of the embedded one, or model.local_ckpt=null"
            if own
            else "install taqdit again"
        )
        return ModelError(f"{self.mmdit if own else name} of the tiny model {what}; {remedy}")

    def load(self, spec: ModelSpec) -> Model:
        """The model on DiffusionKit's classes. Raises ModelError."""
        from taqdit.models.pipeline import PipelineModel
        from taqdit.models.tiny.parts import TinyParts

        return PipelineModel(spec, TinyParts(self, self.fetch(), spec))

    def parameters(self) -> dict[str, int]:
        """Parameters by part, counted in the embedded files."""
        mmdit = self.folder / "mmdit.safetensors"
        return {
            "mmdit": headers.count(mmdit),
            "adaln": headers.count(mmdit, having="adaLN_modulation"),
            "vae": headers.count(self.folder / "vae.safetensors", having="decoder."),
            "text": sum(headers.count(self.folder / f"{clip}.safetensors") for clip in CLIPS),
        }

    def _paths(self) -> dict[str, Path]:
        weights = [f"{part}.safetensors" for part in ("mmdit", "vae", *CLIPS)]
        names = [*weights, "config.json", "vocab.json", "merges.txt"]
        paths = {name: self.folder / name for name in names}
        return paths | ({"mmdit.safetensors": self.mmdit} if self.mmdit else {})


@dataclass(frozen=True)
class HubSource:
    """A Stable Diffusion 3 checkpoint: transformer and VAE in one file, text encoders in another
    repository. `local` replaces the one file.

    `mmdit` and `vae` are arguments of DiffusionKit's MMDiTConfig and VAEDecoderConfig for a
    checkpoint of other sizes than the released ones; None means the library's own.
    """

    repo: str
    file: str
    local: Path | None = None
    use_t5: bool = False
    mmdit: Mapping[str, Any] | None = None
    vae: Mapping[str, Any] | None = None

    def locate(self) -> dict[str, Path | None]:
        """Files by name, None where one is not on this machine; no network."""
        return {name: self._located(repo, name) for name, repo in self._repositories().items()}

    def fetch(self) -> dict[str, Path]:
        """Files by name, downloaded where needed, weights checked for damage. Raises ModelError."""
        files = {name: self._fetched(repo, name) for name, repo in self._repositories().items()}
        for name, path in files.items():
            self._refuse_damage(name, path)
        return files

    def load(self, spec: ModelSpec) -> Model:
        """The model through DiffusionKit's loaders. Raises ModelError."""
        from taqdit.models.checkpoint import CheckpointParts
        from taqdit.models.pipeline import PipelineModel

        return PipelineModel(spec, CheckpointParts(self, self.fetch(), w16=spec.w16))

    def problem(self, name: str, what: str) -> ModelError:
        """The error for one of the files: `what` is wrong with it, and what to do."""
        local = self.local if name == self.file else None
        return hub.problem(self._repositories()[name], name, what, local=local)

    def _repositories(self) -> dict[str, str]:
        clips = [f"{clip}/{f}" for clip in CLIPS for f in ("config.json", "model.fp16.safetensors")]
        tokens = [f"tokenizer_{k}/{f}" for k in "lg" for f in ("vocab.json", "merges.txt")]
        files = {self.file: self.repo} | dict.fromkeys(clips + tokens, TEXT_REPO)
        if self.use_t5:
            files |= {"t5/t5xxl.safetensors": TEXT_REPO}
            files |= dict.fromkeys(("config.json", "spiece.model"), T5_REPO)
        return files

    def _located(self, repo: str, name: str) -> Path | None:
        if name == self.file and self.local:
            return self.local if self.local.is_file() else None
        return hub.locate(repo, name)

    def _fetched(self, repo: str, name: str) -> Path:
        if name != self.file or not self.local:
            return hub.fetch(repo, name)
        if not self.local.is_file():
            raise self.problem(name, "does not exist")
        return self.local

    def _refuse_damage(self, name: str, path: Path) -> None:
        try:
            if name.endswith(".safetensors"):
                headers.read(path)
        except ValueError as error:
            raise self.problem(name, str(error)) from error
