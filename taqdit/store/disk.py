"""Publishing: a file exists under its name whole and durable, or not at all.

Nothing else in the package opens a file for writing, but for claims and journals next door. What
publishing does to the disk goes through `current`, which tests replace to fail at any operation.
"""

import errno
import fcntl
import json
import os
import resource
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

from taqdit.errors import StorageError
from taqdit.store.lock import UNSUPPORTED, hold, is_at, try_hold

_OPEN_FILES = 4096  # as many as a run of 1,000 steps holds, and some
_ADVICE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space")
_ADVICE |= {errno.EMFILE: "allow more open files (ulimit -n)"}


class Disk:
    """The six operations that publishing consists of."""

    def open_exclusive(self, path: Path) -> BinaryIO:
        """A new file, locked until it is closed. FileExistsError when a living process has it."""
        while True:
            discard_dead(path)
            file = path.open("xb")
            hold(file)
            if is_at(file, path):
                return file
            file.close()  # swept away before it was locked

    def write(self, file: BinaryIO, write: Callable[[BinaryIO], object]) -> None:
        """Let `write` fill the file. It is buffered: a bare `os.write` returns short when full."""
        write(file)
        file.flush()

    def sync(self, file: BinaryIO) -> None:
        """Make the data of a file durable."""
        _sync(file.fileno())

    def replace(self, source: Path, target: Path) -> None:
        """Give a file another name, in one step, instead of whatever had it."""
        source.replace(target)

    def sync_dir(self, folder: Path) -> None:
        """Make the names in a folder durable, where the file system knows how."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _sync(descriptor)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        finally:
            os.close(descriptor)

    def unlink(self, path: Path) -> None:
        """Remove a file if it is there."""
        path.unlink(missing_ok=True)


current = Disk()


def publish(path: Path, write: Callable[[BinaryIO], object], *, size_hint: int = 0) -> None:
    """Put a file at `path`, replacing any: `write(file)` fills it, then it appears in one step.

    When this returns, the file is durable; when it raises, `path` is as before and no temporary
    file is left. `size_hint` is the expected size in bytes. StorageError when the disk cannot take
    it, or less than twice the hint is free.
    """
    # A name of its own: process numbers repeat on other hosts that share the folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with guarded("write", path):
        _require_space(path, 2 * size_hint)
        with current.open_exclusive(temporary) as file:
            try:
                current.write(file, write)
                current.sync(file)
                # Still open, so still locked: nobody takes the file for a dead process's.
                current.replace(temporary, path)
                current.sync_dir(path.parent)
            except BaseException:
                with suppress(OSError):
                    current.unlink(temporary)
                raise


def publish_bytes(path: Path, data: bytes) -> None:
    """Publish `data`."""
    publish(path, lambda file: file.write(data), size_hint=len(data))


def publish_json(path: Path, value: object) -> None:
    """Publish JSON for people to read. ValueError for NaN and infinity, before any writing."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    publish_bytes(path, (text + "\n").encode())


def make_folder(path: Path) -> None:
    """Create a folder and the missing ones above it, durably."""
    with guarded("create", path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            current.sync_dir(folder.parent)


def move(source: Path, target: Path) -> None:
    """Rename a file within its folder. As durable as the next file published there."""
    with guarded("rename", source):
        current.replace(source, target)


def remove(path: Path) -> None:
    """Remove a file if it is there. As durable as the next file published in its folder."""
    with guarded("remove", path):
        current.unlink(path)


def discard_dead(path: Path) -> None:
    """Remove a temporary or claim file whose owner is dead; a living owner's stays."""
    with guarded("clear away", path), suppress(FileNotFoundError), path.open("r+b") as file:
        if try_hold(file, without_locks=False) and is_at(file, path):
            path.unlink()


def allow_open_files() -> None:
    """Let this process hold 4,096 files open, or as many as its hard limit allows.

    Where nobody has raised the limit, a Mac allows 256; a claim holds one file, and so does every
    mapped shard.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # then the run goes on with what there is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def relative(path: Path, start: Path) -> str:
    """`path` as seen from the folder `start`, so that outputs can be moved as a whole."""
    return Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """A file, open for reading. OSError when it cannot be read, or is no regular one: whoever opens
    a pipe waits for ever."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        yield file


class Identity(NamedTuple):
    """By what a file is known to be still the very same: whatever writes to it, or puts another in
    its place, changes this."""

    device: int
    inode: int
    size: int
    written: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Identity":
        """What a look at a file gives."""
        times = status.st_mtime_ns, status.st_ctime_ns
        return cls(status.st_dev, status.st_ino, status.st_size, *times)


def identity_at(path: Path) -> Identity | None:
    """The identity of a file; None if it is not there. StorageError if one may not look."""
    with guarded("look at", path), suppress(FileNotFoundError, NotADirectoryError):
        return Identity.of(path.stat())
    return None


@contextmanager
def guarded(action: str, path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a StorageError of one line."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the path and its permissions")
        reason = error.strerror or str(error)
        raise StorageError(f"cannot {action} {path}: {reason}; {advice}") from error


def _require_space(path: Path, needed: int) -> None:
    if needed and (free := shutil.disk_usage(path.parent).free) < needed:
        raise StorageError(
            f"cannot write {path}: {free:,} bytes are free, at least {needed:,} (twice its size) "
            "are needed; free some space or use another output_dir"
        )


def _sync(descriptor: int) -> None:
    # On macOS fsync stops at the drive's cache; only F_FULLFSYNC goes through it.
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:
        try:
            fcntl.fcntl(descriptor, full_sync)
            return
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
    os.fsync(descriptor)
