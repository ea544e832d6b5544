"""Which runs there are beside a store, and which stages they refer to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORD = "run.json"
_NO_RUNS_BELOW = {"store", "figures", "wandb", ".hydra"}


@dataclass(frozen=True)
class RunFound:
    """A run's folder and what its run.json refers to: stage -> fingerprint. `problem` says why
    the record cannot be read; what such a run refers to is not known."""

    folder: Path
    stages: Mapping[str, str] = field(default_factory=dict)
    rule: str | None = None
    trajectories: int = 0
    problem: str | None = None


def runs_of(store: Path) -> list[RunFound]:
    """The runs below the store's output folder that use this store, in the order of their dates.

    Runs that were given a folder elsewhere are not found.
    """
    places = dict.fromkeys((store.parent.resolve(), store.resolve().parent))  # it may be a link
    runs = {folder: outputs for outputs in places for folder in _folders(outputs)}
    found = [(_read(folder, store), outputs) for folder, outputs in runs.items()]
    # Runs and sweeps lie apart: below either, folders are named by date and time.
    ordered = sorted(
        ((run, outputs) for run, outputs in found if run is not None),
        key=lambda each: each[0].folder.relative_to(each[1]).parts[1:],
    )
    return [run for run, _ in ordered]


def _folders(outputs: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(outputs):
        if RECORD in names:
            folders.clear()
            yield Path(place)
        folders[:] = sorted(name for name in folders if name not in _NO_RUNS_BELOW)


def _read(folder: Path, store: Path) -> RunFound | None:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if (folder / record["store"]).resolve() != store.resolve():
            return None
        config: dict[str, Any] = record["config"]
        return RunFound(
            folder,
            {str(name): str(mark) for name, mark in record["stages"].items()},
            rule=config["timestep_selection"]["_target_"],
            trajectories=int(config["sampler"]["num_trajectories"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return RunFound(folder, problem=f"{RECORD} cannot be read: {type(error).__name__}: {error}")
