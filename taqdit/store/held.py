"""Whether a living process holds a claim or a temporary file, asked without touching either."""

import errno
import fcntl
from pathlib import Path

from taqdit.store.lock import UNSUPPORTED


def is_held(path: Path) -> bool:
    """Whether a living process holds the file's lock; False where it cannot be known.

    Nothing is made, removed or changed. The lock asked for is a shared one, so that two that look
    do not take each other for the owner.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in UNSUPPORTED | {errno.ENOLCK} or not path.exists():
            return False
        raise
    return False
