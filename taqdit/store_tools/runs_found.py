"""The runs that use a store: what the record (run.json) of each of them refers to.

Runs are found below the output folder. One whose folder lies elsewhere left a pointer in each store
that it refers to (`taqdit.runs.record.publish_pointers`): it counts until its folder has been
deleted, and for as long as nobody can tell.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taqdit.errors import CorruptError, StorageError, TaqditError
from taqdit.report.run_folder import (
    RECORD,
    RunFolder,
    corrupt,
    files_named,
    images_asked,
    options,
    resolved,
    trajectories_asked,
)
from taqdit.runs.record import FOLDERS, POINTERS
from taqdit.store import disk
from taqdit.store.digest import read_stamped, reason_of

_INSIDE_A_RUN = {"figures", "wandb", ".hydra"}  # large, and no place for another run


@dataclass(frozen=True)
class RunFound:
    """A run's folder and what it refers to: `stages`, stage -> fingerprint, and `paths` of files
    made elsewhere.

    `problem` says why that cannot be read. `pointer` is the file in the store that says it in the
    place of a folder that cannot be reached. `store` is where the run's data are.
    """

    folder: Path
    store: Path | None = None
    stages: Mapping[str, str] = field(default_factory=dict)
    paths: tuple[Path, ...] = ()
    rule: str | None = None
    trajectories: int = 0
    images: bool = False
    problem: TaqditError | None = None
    pointer: Path | None = None

    @property
    def note(self) -> str | None:
        """Why it is not known, or not known for certain."""
        if self.pointer is not None:
            return (
                f"{self.folder} cannot be reached: what it refers to is kept; if that run was"
                f" deleted, delete {self.pointer}"
            )
        return None if self.problem is None else str(self.problem)


def runs_of(store: Path) -> list[RunFound]:
    """The runs beside a store, and those that point to it, in the order of their dates.

    Where it is a link, only the folders of FOLDERS are looked through beside what it leads to: all
    else there may be anybody's, and runs that lie elsewhere point to it. Runs that use another
    store are among them: `RunFound.store` tells.
    """
    here, target = store.parent.resolve(), store.resolve().parent
    places = [(here, here)]
    if target != here:
        places += [(target, target / name) for name in FOLDERS]
    runs: dict[Path, tuple[list[str], RunFound]] = {}
    for outputs, place in places:
        for run in _below(place, store.resolve()):
            # Runs and sweeps lie apart: below either, folders are named by date and time.
            date = [*run.folder.relative_to(outputs).parts[1:]]
            runs.setdefault(run.folder.resolve(), (date, run))
    for path in pointers(store):
        if (left := pointed_to(path)) is not None:
            # Of a folder that cannot be reached, each pointer tells of another run.
            runs.setdefault(left.pointer or left.folder, (["", str(left.folder)], left))
    return [run for _, run in sorted(runs.values(), key=lambda dated: dated[0])]


def pointers(store: Path) -> list[Path]:
    """What runs with a folder elsewhere left in a store. StorageError if it cannot be listed."""
    folder = store / POINTERS
    if not folder.is_dir():
        return []
    with disk.guarded("list", folder):
        return sorted(path for path in folder.iterdir() if path.suffix == ".json")


def pointed_to(pointer: Path) -> RunFound | None:
    """The run that left this pointer; None once its folder has been deleted.

    It has, if no record is there while the folder above it is the one that it was, on the same
    host, and no mount point; otherwise a disk may merely not be mounted.
    """
    try:
        left = _read_pointer(pointer)
        referred = _referred(left, pointer)
    except TaqditError as problem:
        return RunFound(pointer, problem=problem)
    folder = Path(left["folder"])
    try:
        if (folder / RECORD).is_file():
            return _read(folder)
        # The first folder of every disk has the same number.
        mounted = os.path.ismount(folder.parent)
        same = not mounted and folder.parent.stat().st_ino == left["parent"]
    except OSError:
        same = False
    if same and left["host"] == socket.gethostname():
        return None
    return RunFound(folder, pointer.parents[1].resolve(), *referred, pointer=pointer)


def _below(outputs: Path, store: Path) -> Iterator[RunFound]:
    """The runs below a folder, the store left out; links are followed. Where a folder cannot be
    listed, that is a run's problem: there may be one in it. The system's own folders (lost+found,
    .Trashes) are passed over then."""
    waiting, seen = [outputs], {store}
    while waiting:
        folder = waiting.pop()
        if (place := folder.resolve()) in seen or not folder.is_dir():
            continue
        seen.add(place)
        try:
            with disk.guarded("list", folder):
                inner = sorted(path for path in folder.iterdir() if path.is_dir())
                recorded = (folder / RECORD).exists()
        except StorageError as problem:
            if not (folder.name.startswith(".") or folder.name == "lost+found"):
                yield RunFound(folder, problem=problem)
            continue
        if recorded:
            yield _read(folder)
            inner = [path for path in inner if path.name not in _INSIDE_A_RUN]
        waiting.extend(inner)


def _read(folder: Path) -> RunFound:
    try:
        record = RunFolder(folder).record()
        store = resolved(folder / record["store"], folder / RECORD)
        referred = _referred(record, folder / RECORD)
    except TaqditError as problem:
        return RunFound(folder, problem=problem)
    rule = options(record, "timestep_selection").get("_target_")
    try:
        count = trajectories_asked(record)
    except CorruptError:
        count = 0
    return RunFound(
        folder,
        store,
        *referred,
        rule=rule if isinstance(rule, str) else None,
        trajectories=count,
        images=images_asked(record),
    )


def _referred(record: Mapping[str, Any], file: Path) -> tuple[dict[str, str], tuple[Path, ...]]:
    """The stages by their fingerprints, and files and folders made elsewhere."""
    stages = {str(name): str(fingerprint) for name, fingerprint in record["stages"].items()}
    return stages, tuple(resolved(name, file) for name in files_named(record))


def _read_pointer(path: Path) -> dict[str, Any]:
    try:
        pointer = read_stamped(path)
    except CorruptError as error:
        raise corrupt(path, reason_of(error, path)) from error
    needed = {"folder": str, "host": str, "parent": int, "stages": dict}
    if not all(isinstance(pointer.get(key), kind) for key, kind in needed.items()):
        raise corrupt(path, f"it must hold {', '.join(needed)}")
    resolved(pointer["folder"], path)
    return pointer
