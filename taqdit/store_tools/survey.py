"""A whole store: its stages, the runs that refer to them, what lies about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from taqdit.errors import InputError
from taqdit.stages import kinds
from taqdit.store.digest import STAGE, parse_object
from taqdit.store.layout import parse
from taqdit.store_tools.runs_found import RunFound, runs_of
from taqdit.store_tools.stage_folder import (
    Replaced,
    Surveyed,
    is_stage_name,
    replaced_in,
    sizes_below,
    stages_of,
)


@dataclass(frozen=True, eq=False)
class Survey:
    """What a store holds."""

    store: Path
    stages: tuple[Surveyed, ...]
    replaced: tuple[Replaced, ...]
    beside: tuple[RunFound, ...]  # all runs that were found, also those over another store

    @classmethod
    def of(cls, store: Path) -> Survey:
        """Look at a store; see `find_store`. Nothing is changed."""
        return cls(store, tuple(stages_of(store)), tuple(replaced_in(store)), tuple(runs_of(store)))

    @property
    def runs(self) -> list[RunFound]:
        """The runs that use this store, or whose records cannot be read."""
        here = self.store.resolve()
        return [run for run in self.beside if run.problem or run.store == here]

    def chosen(self, name: str | None) -> list[Surveyed]:
        """The stages of a kind, or with this folder or beginning of it; None: all.

        Raises InputError if there is none.
        """
        found = [each for each in self.stages if name is None or _is_meant(each, name)]
        if name is not None and not found:
            there = ", ".join(each.name for each in self.stages[:4]) or "nothing"
            there += f" and {len(self.stages) - 4} more" if self.stages[4:] else ""
            raise InputError(f"the store {self.store} has no stage {name!r}; it holds {there}")
        return found

    @property
    def sizes(self) -> dict[str, int]:
        """Every file of the store, of whatever kind, and its bytes."""
        return sizes_below(self.store)

    def references(self, stage: Surveyed) -> list[RunFound]:
        """The runs that refer to a stage, the last one last.

        run.json names the stages of data. What no run names belongs to the runs over the data it
        was made of; if it shows a selection, to those with that rule.
        """
        return [run for run in self.runs if self._refers(run, stage)]

    def _refers(self, run: RunFound, stage: Surveyed) -> bool:
        kind, inputs = kinds.stored().get(stage.kind), stage.inputs
        if kind and kind.data:
            data = kind.data(inputs)
            own = {name: run.stages[name] for name in data if name in run.stages}
            alike = bool(own) and all(data[name] == mark for name, mark in own.items())
            return alike and inputs.get("rule") in (run.rule, None)
        if kind and kind.digests_of:
            return run.stages.get(kind.digests_of) in self.analysed(stage)
        mark = run.stages.get(stage.kind, "")
        return mark.startswith(stage.fingerprint or stage.folder.name)

    def analysed(self, stage: Surveyed) -> set[str]:
        """The fingerprints of the stages in the store whose shards' digests are listed in one."""
        return self._analysed.get(stage.name, set())

    @cached_property
    def _analysed(self) -> dict[str, set[str]]:
        """Folder -> fingerprints of the stages whose shards' digests its inputs list."""
        listing = {kind.name: source for kind in kinds.KINDS if (source := kind.digests_of)}
        digests = {
            digest: stage.fingerprint
            for stage in self.stages
            if stage.kind in listing.values()
            for digest in digests_of(stage)
            if digest
        }
        return {
            stage.name: {digests[str(each)] for each in listed if str(each) in digests}
            for stage in self.stages
            if isinstance(listed := stage.inputs.get(listing.get(stage.kind, "")), list)
        }


def _is_meant(stage: Surveyed, name: str) -> bool:
    return name in (stage.kind, stage.name) or (
        len(name) >= 4 and (stage.folder.name.startswith(name) or stage.name.startswith(name + "/"))
    )


def digests_of(stage: Surveyed) -> Iterator[str | None]:
    """What the shards of a stage say is their digest, which is not checked here; None for one
    that does not say."""
    for name in set(stage.files) - set(stage.working):
        try:
            text, _ = parse(np.memmap(stage.folder / name, np.uint8, "r"))
            yield str(parse_object(text).get("sha256"))
        except (OSError, ValueError):
            yield None


def find_store(folder: Path) -> Path:
    """The store of an output folder; the folder itself if it is a store.

    Raises InputError if it is neither. A folder that only looks like one is none: what is done to
    a store must not be done to somebody's figures and weights.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give an output folder, or the store in it")
    if (folder / "store").is_dir():
        return folder / "store"
    if folder.name in ("", ".."):  # `.` and `..`: what lies above those is not what their path says
        folder = folder.resolve()
    if folder.resolve().name == "store" or any(_stages_in(folder)):
        return folder
    raise InputError(f"{folder} holds no store; give an output folder, or the store in it")


def _stages_in(folder: Path) -> Iterator[Path]:
    for kind in kinds.stored():
        for path in (folder / kind).glob(f"*/{STAGE}"):
            if is_stage_name(path.parent.name):
                yield path
