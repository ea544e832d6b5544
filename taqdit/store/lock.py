"""Which files have a living owner: one that holds the file's lock.

The kernel drops a lock when its holder dies, in whatever way, so nobody has to guess from process
numbers (which are used again, and mean nothing on another host) whether an owner is still there.
A file system without locks leaves each caller to say what it does then; what is published stays
right in any case.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# What file systems answer to a call they do not have.
UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOTTY}
_NO_LOCKS = UNSUPPORTED | {errno.ENOLCK, errno.EBADF}  # the last: NFS, of a folder


def hold(file: BinaryIO | int) -> None:
    """Lock an open file until it is closed, waiting for whoever holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Let one `with` block at a time be at work in a folder; all where there are no locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        hold(descriptor)
        yield
    finally:
        os.close(descriptor)


def try_hold(file: BinaryIO, *, without_locks: bool) -> bool:
    """Lock an open file until it is closed; False when another open file holds it.

    `without_locks` is the answer on a file system that has none.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return without_locks
    return True


def is_at(file: BinaryIO, path: Path) -> bool:
    """Whether `path` still names the open file (it may have been unlinked, or made anew)."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """Whether a living process holds the file's lock, or may: it is there and cannot be asked.

    On a file system without locks, and of a file that one may not read, nobody can tell. Whoever
    asks would remove something or move it aside, so for them a process that may live does. (A run
    that claims a unit of work must not stop for that, and does not: see `try_hold`.)

    Nothing is made, removed or changed. The lock asked for is a shared one, so that two that look
    do not take each other for the owner.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would keep us waiting
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
