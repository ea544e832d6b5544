"""A stage's folder out of the way, as a whole: set aside and kept, or deleted.

Either is one renaming, so that whoever looks for a stage finds all of it or nothing, and whoever
renames holds the claim beside the folder. `<name>.replaced-<n>` is kept; `<name>.removed-<n>` is
about to be deleted, and no reader opens it.
"""

import errno
import os
import stat
from contextlib import suppress
from itertools import count
from pathlib import Path

from taqdit.errors import StorageError
from taqdit.store import disk
from taqdit.store.claim import claim, idle
from taqdit.store.digest import STAGE

REPLACED, REMOVED = ".replaced-", ".removed-"


def claim_of(folder: Path) -> Path:
    """The claim that whoever renames a stage's folder, or a replaced one, holds meanwhile."""
    return folder.with_suffix(".claim")


def set_aside(folder: Path) -> Path | None:
    """Rename a stage's folder to `<folder>.replaced-<n>`; None if there is none.

    Raises StorageError if another process is at work in it.
    """
    if not folder.exists():
        return None
    with claim(claim_of(folder)) as mine:
        if not mine or not idle(folder, "*.claim"):
            raise StorageError(f"{folder} is in use by another process; wait for it to end")
        return rename_away(folder, REPLACED) if folder.exists() else None


def rename_away(folder: Path, word: str) -> Path:
    """Give a folder the first free name `<folder><word><n>`, durably. StorageError.

    When it raises, or is interrupted, the folder has its old name.
    """
    names = (folder.with_name(f"{folder.name}{word}{n}") for n in count(1))
    away = next(path for path in names if not os.path.lexists(path))
    with disk.guarded("rename", folder):
        disk.current.replace(folder, away)
        try:
            disk.current.sync_dir(folder.parent)
        except BaseException:
            with suppress(OSError):
                disk.current.replace(away, folder)
            raise
    return away


def put_back(away: Path, folder: Path) -> bool:
    """Undo it; False where the folder was made anew meanwhile and holds something.

    A folder that was made and is still empty is replaced, in the same step.
    """
    with disk.guarded("rename", away):
        try:
            disk.current.replace(away, folder)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        disk.current.sync_dir(folder.parent)
    return True


def delete(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; links are deleted, not followed.

    What is gone already is no error. StorageError where the system refuses.
    """
    with disk.guarded("remove", path), suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            disk.current.unlink(path)
            return
        if os.path.lexists(path / STAGE):  # first: a folder that has it is whole
            delete(path / STAGE)
            disk.current.sync_dir(path)
        for inner in sorted(path.iterdir()):
            delete(inner)
        path.rmdir()
