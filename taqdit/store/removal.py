"""Removing what nothing needs any more, so that no moment of it leaves half a stage under its name.

A folder is renamed away in one step and deleted then: whoever looks for it finds all of it or
nothing. A process that dies in between leaves a folder `<name>.removed-<n>`, which no reader opens.
"""

import os
import stat
from contextlib import suppress
from itertools import count
from pathlib import Path

from taqdit.store import disk
from taqdit.store.lock import is_at, try_hold

REMOVED = ".removed-"


def is_dead(path: Path) -> bool:
    """Whether a temporary or claim file has no living owner; it stays as it is.

    False where that cannot be told: on a file system without locks, or if the file is gone.
    """
    with disk.guarded("read", path):
        try:
            with path.open("r+b") as file:
                return try_hold(file, without_locks=False) and is_at(file, path)
        except FileNotFoundError:
            return False


def in_use(folder: Path) -> bool:
    """Whether a living process has a claim in the folder, or a file that it is writing there."""
    with disk.guarded("list", folder):
        held = [*folder.glob("*.claim"), *folder.glob(".*.tmp")]
    return any(path.exists() and not is_dead(path) for path in held)


def claim_of(folder: Path) -> Path:
    """The claim that whoever renames a stage's folder holds meanwhile."""
    return folder.with_name(f"{folder.name}.claim")


def rename_away(folder: Path) -> Path:
    """Give a folder the first free name `<folder>.removed-<n>`, durably. StorageError."""
    names = (folder.with_name(f"{folder.name}{REMOVED}{n}") for n in count(1))
    away = next(path for path in names if not os.path.lexists(path))
    rename(folder, away)
    return away


def rename(source: Path, target: Path) -> None:
    """Rename a folder within the one above it, durably. StorageError."""
    with disk.guarded("rename", source):
        disk.current.replace(source, target)
        disk.current.sync_dir(target.parent)


def delete(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; links are deleted, not followed.

    What is gone already is no error. StorageError where the system refuses.
    """
    with disk.guarded("remove", path), suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            disk.current.unlink(path)
            return
        for inner in sorted(path.iterdir()):
            delete(inner)
        path.rmdir()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    total = 0
    with disk.guarded("read", path), suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            return path.lstat().st_size
        for inner in path.iterdir():
            total += size_of(inner)
    return total
