"""Whether a living process holds a claim or a temporary file, asked without touching either."""

import fcntl
import os
from pathlib import Path


def is_held(path: Path) -> bool:
    """Whether a living process holds the file's lock, or may: it is there and cannot be asked.

    On a file system without locks, and of a file that one may not read, nobody can tell. Whoever
    asks would remove something or move it aside, so for them a process that may live does. (A run
    that claims a unit of work must not stop for that, and does not: see `lock.try_hold`.)

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
