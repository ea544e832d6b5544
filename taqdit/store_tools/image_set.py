"""The images of a stage of trajectories as a data set: who they are, and which of them are whole.

Everything is read from the store, at any time: the stage's own settings, the shards and the PNGs.
Nothing is moved aside or repaired here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from taqdit.errors import CorruptError, InputError, StorageError
from taqdit.prompts.options import Prompts
from taqdit.report.run_folder import (
    MOST_TRAJECTORIES,
    RunFolder,
    images_asked,
    trajectories_asked,
)
from taqdit.store import Stage
from taqdit.store_tools.runs_found import RunFound, runs_of
from taqdit.store_tools.stage_folder import is_stage_name
from taqdit.trajectories import pictures as images
from taqdit.trajectories.shards import KIND, shard_name
from taqdit.words import ranges

TRAJECTORIES = "trajectories"
_NUMBER = re.compile(r"([0-9]{6,7})\.(?:safetensors|png)")
_SETTINGS = ("prompts", "num_steps", "cfg_scale", "seed", "batch_size", "latent_shape", "shift")


@dataclass(frozen=True)
class Entry:
    """One image and what it was made from."""

    index: int
    prompt: str
    seed: int


@dataclass(frozen=True)
class ImageSet:
    """Trajectories of a stage, by their numbers; `pictures`: each of them is to have a PNG.

    `settings` is what the stage was made from.
    """

    stage: Stage
    settings: dict[str, Any]
    prompts: Prompts
    numbers: Sequence[int]
    pictures: bool

    @property
    def count(self) -> int:
        """How many there are to be."""
        return len(self.numbers)

    @classmethod
    def of_run(cls, folder: Path) -> ImageSet:
        """What a run asked for, finished or not. InputError if it has no trajectories."""
        record = RunFolder(folder).record()
        fingerprint = record["stages"].get(TRAJECTORIES)
        store = folder / record["store"]
        stage = Stage.find(store, TRAJECTORIES, str(fingerprint)) if fingerprint else None
        if stage is None:
            raise InputError(
                f"{folder} has no stage {TRAJECTORIES} in {store.resolve()}; taqdit rerun {folder}"
                " makes it"
            )
        return cls._of(stage, range(trajectories_asked(record)), images_asked(record))

    @classmethod
    def of_stage(cls, folder: Path) -> ImageSet:
        """All that a stage's folder is to hold: what is there or was sealed, and what any run that
        refers to it asked for. InputError if it is no stage of trajectories."""
        stage = Stage.at(folder)
        owners = _owners(stage)
        stored = _numbers([*stage.names(), *(stage.seal_list or {})])
        asked = range(max((run.trajectories for run in owners), default=0))
        pictures = bool(stage.names(".png")) or any(run.images for run in owners)
        return cls._of(stage, sorted({*stored, *asked}), pictures)

    @classmethod
    def _of(cls, stage: Stage, numbers: Sequence[int], pictures: bool) -> ImageSet:
        settings = stage.inputs
        lacking = [f"no {key}" for key in _SETTINGS if key not in settings]
        try:
            prompts = Prompts.kept(settings)
            lacking += [] if type(settings.get("seed")) is int else ["no seed"]
        except ValueError as error:
            lacking.append(str(error))
        if lacking:
            raise InputError(f"{stage.folder} is no stage of trajectories: {lacking[0]} in it")
        return cls(stage, settings, prompts, numbers, pictures)

    @cached_property
    def _listed(self) -> set[int]:
        """The trajectories of which there is a shard: a run may have asked for many more."""
        return set(_numbers(self.stage.names(".safetensors")))

    def entry(self, index: int) -> Entry:
        """One trajectory, once its shard (and its picture, if it is to have one) is verified.

        CorruptError for a damaged one, StorageError for one that is not there.
        """
        if index not in self._listed:
            raise StorageError(f"{self.stage.path(shard_name(index))} is not there")
        shard = self.stage.read(shard_name(index), kind=KIND, index=index)
        if self.pictures:
            self.picture(index)
        origin = self.prompts.origin(index, self.settings["seed"])
        if odd := [key for key, value in origin.items() if shard.metadata.get(key) != value]:
            path = self.stage.path(shard_name(index))
            raise CorruptError(
                f"{path} has another {odd[0]} than its stage gives trajectory {index}"
            )
        return Entry(index, self.prompts.text(index), origin["seed"])

    def picture(self, index: int) -> Path:
        """The PNG of one trajectory, verified. Raises as `entry`."""
        path = self.stage.path(images.picture_name(index))
        images.read_picture(path, owner=self.owner(index))
        return path

    def owner(self, index: int) -> str:
        """What the PNG of a trajectory names itself."""
        return images.picture_owner(self.stage.fingerprint, index)

    def entries(self) -> tuple[list[Entry], dict[int, str]]:
        """Those that are whole, and why the others are not, by their number."""
        whole: list[Entry] = []
        lacking: dict[int, str] = {}
        for index in self.numbers:
            try:
                whole.append(self.entry(index))
            except (CorruptError, StorageError) as error:
                lacking[index] = str(error)
        return whole, lacking

    def described(self, entry: Entry) -> dict[str, Any]:
        """What a line of metadata says of an image beside its file's name."""
        return {
            "prompt": entry.prompt,
            "seed": entry.seed,
            "cfg_weight": self.settings["cfg_scale"],
            "num_steps": self.settings["num_steps"],
        }


def lacks(lacking: dict[int, str]) -> str:
    """A few of those that are not whole, and why, in one line."""
    first = next(iter(lacking.values()))
    return f"{len(lacking)} missing or damaged: {ranges(lacking)} (the first: {first})"


def _owners(stage: Stage) -> list[RunFound]:
    """The runs that refer to the stage, if it lies in a store, as far as they are legible."""
    root = stage.folder.parent
    in_store = root.name == TRAJECTORIES and is_stage_name(stage.folder.name)
    runs = runs_of(root.parent) if in_store else []
    return [run for run in runs if run.stages.get(TRAJECTORIES) == stage.fingerprint]


def _numbers(names: Iterable[str]) -> Iterator[int]:
    """Of the trajectories that files belong to."""
    numbers = (int(match[1]) for match in map(_NUMBER.fullmatch, names) if match)
    return (number for number in numbers if number < MOST_TRAJECTORIES)
