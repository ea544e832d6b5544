"""Read access to stored trajectories and their pictures."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from taqdit.errors import InputError
from taqdit.prompts.options import Prompts
from taqdit.store import Known, Stage
from taqdit.trajectories.pictures import picture_name, picture_owner, read_picture
from taqdit.trajectories.shards import shard_name, trajectory_shard


class TrajectorySet:
    """Read access to the first `count` trajectories of a stage.

    Every shard is verified when it is first read, and again when its file has changed.
    """

    def __init__(self, stage: Stage, *, count: int, prompts: Prompts) -> None:
        self._stage, self._count, self.prompts = stage, count, prompts
        self._known: dict[int, Known] = {}
        self._shard = lru_cache(maxsize=4)(self._read)
        first = self._shard(0)
        self.sigmas: np.ndarray = first["sigmas"]
        self.timesteps: np.ndarray = first["timesteps"]

    def __len__(self) -> int:
        return self._count

    @property
    def folder(self) -> Path:
        """Where the stage is."""
        return self._stage.folder

    @property
    def fingerprint(self) -> str:
        """Of the stage: names everything that went into the latents."""
        return self._stage.fingerprint

    @property
    def backends(self) -> list[dict[str, Any]]:
        """On which backends the stage was made."""
        return self._stage.backends

    @property
    def num_steps(self) -> int:
        """Model evaluations per trajectory; one less than its latents."""
        return len(self.sigmas) - 1

    def latents(self, index: int) -> np.ndarray:
        """(k, h, w, 16) of one trajectory: the latents of its `steps`. Raises CorruptError."""
        return self._shard(index)["latents"]

    def steps(self, index: int) -> np.ndarray:
        """The steps whose latents are stored, (k,), ascending; num_steps is the final latent."""
        every = np.arange(self.num_steps + 1)
        found: np.ndarray = self._shard(index).get("steps", every)
        return found

    def latents_at(self, index: int, steps: np.ndarray) -> np.ndarray:
        """(len(steps), h, w, 16) of one trajectory. InputError if one of them is not stored."""
        stored = self.steps(index)
        places = np.searchsorted(stored[:-1], steps)
        if not (stored[places] == steps).all():
            lacking = sorted(set(np.asarray(steps).tolist()) - set(stored.tolist()))
            raise InputError(
                f"of trajectory {index} the latents of steps {lacking} are not stored;"
                " sampler.latents=all stores every step"
            )
        return self.latents(index)[places]

    def picture_path(self, index: int) -> Path:
        """The PNG of one trajectory."""
        return self._stage.path(picture_name(index))

    def picture(self, index: int) -> np.ndarray:
        """Decoded picture (H, W, 3) uint8 of one trajectory. Raises CorruptError."""
        path = self.picture_path(index)
        return read_picture(path, owner=picture_owner(self._stage.fingerprint, index))

    def _read(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < self._count:
            raise IndexError(f"trajectory {index} of {self._count}")
        known = self._known.get(index)
        again = known and known.tensors(self._stage.path(shard_name(index)))
        if again:
            return again
        shard = trajectory_shard(self._stage, index)
        if shard.known:
            self._known[index] = shard.known
        return shard.tensors
