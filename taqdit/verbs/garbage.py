"""What in a store nothing needs: found, and removed so that no run can lose by it.

To be removed, a stage's folder is claimed as whoever renames it claims it, renamed away, and then,
before anything of it is deleted, the runs are looked at again: a run writes down what it refers to
before it looks for it, so one that began meanwhile is either seen, and the folder put back, or
comes after the folder has gone and makes its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from taqdit.errors import InputError, TaqditError
from taqdit.store import Stage, disk
from taqdit.store.claim import claim
from taqdit.store.removal import (
    REMOVED,
    claim_of,
    delete,
    in_use,
    is_dead,
    rename,
    rename_away,
    size_of,
)
from taqdit.verbs.referred import KNOWN, References, is_mark, is_plain_folder, stages

_ASIDE = re.compile(rf"([0-9a-f]{{12}})(?:\.replaced-[0-9]+|{re.escape(REMOVED)}[0-9]+)")
_BAD = re.compile(r".+\.bad-[0-9]+")
_LEFTOVER = re.compile(r"\..+\.[0-9]+(?:-[0-9a-f]+)?\.tmp|[^.].*\.claim")
UNREFERRED = "no run refers to it"
REPLACED = "replaced by a newer one"
INTERRUPTED = "left by a removal that was cut off"
BAD = "moved aside as damaged"
LEFTOVER = "left by a process that has died"


@dataclass(frozen=True)
class Garbage:
    """Something that can be removed: where, how large (bytes), and why nothing needs it."""

    path: Path
    size: int
    why: str


@dataclass(frozen=True)
class Survey:
    """A store's garbage, what of it is in use by a process, and how much is kept for how many."""

    found: list[Garbage]
    busy: list[Path]
    kept: int
    references: References


def survey(outputs: Path) -> Survey:
    """Look through the store below `outputs`; nothing changes.

    InputError if there is none, CorruptError or StorageError if a run's record cannot be read.
    """
    references = References(outputs)
    store = references.store
    if not store.is_dir():
        raise InputError(f"{outputs} has no store; name the output folder of runs")
    needed = references.needed()
    found: list[Garbage] = []
    busy: list[Path] = []
    for folder in (each for name in KNOWN for each in stages(store, name)):
        if folder in needed:
            continue
        if in_use(folder):
            busy.append(folder)
        else:
            found.append(_garbage(folder, UNREFERRED))
    gone = {each.path for each in found}
    found += (each for each in _remnants(store, references) if each.path.parent not in gone)
    return Survey(found, busy, len(needed), references)


def remove(garbage: Garbage, outputs: Path, seen: References) -> bool:
    """Remove it; False if it is needed or in use by now, or gone.

    `seen` is what the runs referred to when it was found.
    """
    path = garbage.path
    if garbage.why == UNREFERRED:
        return _remove_stage(path, outputs, seen)
    if garbage.why == INTERRUPTED:
        return _finish(path, References(outputs))
    if garbage.why == LEFTOVER:
        disk.discard_dead(path)
        return not path.exists()
    delete(path)
    return True


def _remove_stage(folder: Path, outputs: Path, seen: References) -> bool:
    with claim(claim_of(folder)) as mine:
        if not mine or not folder.is_dir() or in_use(folder):
            return False
        now = References(outputs)
        if now != seen and folder in now.needed():
            return False
        away = rename_away(folder)
        if References(outputs) != now and not folder.exists():
            rename(away, folder)
            return False
    delete(away)
    return True


def _finish(away: Path, references: References) -> bool:
    """Delete a folder that was renamed away, or put it back if a run refers to it by now."""
    folder = away.with_name(away.name.partition(REMOVED)[0])
    with claim(claim_of(folder)) as mine:
        if not mine or not away.is_dir():
            return False
        if references.names(folder) and not folder.exists():
            rename(away, folder)
            return False
    delete(away)
    return True


def _remnants(store: Path, references: References) -> Iterator[Garbage]:
    """Folders that were replaced or renamed away, damaged files, and what dead processes left."""
    for root in _listed(store):
        if not is_plain_folder(root):
            continue
        for path in _listed(root):
            if _ASIDE.fullmatch(path.name) and is_plain_folder(path):
                if REMOVED in path.name:
                    yield _garbage(path, INTERRUPTED)
                elif not references.names(path) and _is_replaced(path):
                    yield _garbage(path, REPLACED)
            elif is_mark(path.name) and is_plain_folder(path):
                yield from _files(path)
            elif _LEFTOVER.fullmatch(path.name) and is_dead(path):
                yield _garbage(path, LEFTOVER)


def _is_replaced(aside: Path) -> bool:
    """Whether a complete stage stands in the place of the one that was set aside."""
    try:
        return Stage.at(aside.with_name(aside.name.partition(".")[0])).seal_list is not None
    except TaqditError:
        return False


def _files(folder: Path) -> Iterator[Garbage]:
    for path in _listed(folder):
        if path.is_dir():
            continue
        if _BAD.fullmatch(path.name):
            yield _garbage(path, BAD)
        elif _LEFTOVER.fullmatch(path.name) and is_dead(path):
            yield _garbage(path, LEFTOVER)


def _listed(folder: Path) -> list[Path]:
    with disk.guarded("list", folder):
        return sorted(folder.iterdir())


def _garbage(path: Path, why: str) -> Garbage:
    return Garbage(path, size_of(path), why)
