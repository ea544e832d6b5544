"""By what a file is known to be still the very same."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from taqdit.store.disk import guarded


class Marks(NamedTuple):
    """Whatever writes to a file, or puts another in its place, changes them."""

    device: int
    inode: int
    size: int
    written: int
    changed: int


def marks_of(found: os.stat_result) -> Marks:
    """The marks that a look at a file gives."""
    times = found.st_mtime_ns, found.st_ctime_ns
    return Marks(found.st_dev, found.st_ino, found.st_size, *times)


def marks_at(path: Path) -> Marks | None:
    """The marks of a file; None if it is not there. StorageError if one may not look."""
    with guarded("look at", path), suppress(FileNotFoundError, NotADirectoryError):
        return marks_of(path.stat())
    return None
