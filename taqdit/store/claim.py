"""Claims: several processes share a stage's work without doing any of it twice."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from taqdit.store import disk
from taqdit.store.lock import is_at, try_hold


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Hold the claim file at `path` for the length of a `with` block; True when obtained.

    False when a living process (or another claim of this one) holds it. A dead owner's claim is
    taken over. The claim is the file's lock; what the file says, `{host, pid}`, is for people.
    """
    with disk.guarded("claim", path):
        file = _obtain(path)
    if file is None:
        yield False
        return
    with file:
        try:
            yield True
        finally:
            # Unlinked while locked, so that two can never hold files of the same name.
            with suppress(OSError):
                disk.current.unlink(path)


def _obtain(path: Path) -> BinaryIO | None:
    while True:
        file = path.open("ab", buffering=0)
        if not try_hold(file, without_locks=True):
            file.close()
            return None
        if is_at(file, path):
            file.truncate(0)
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
            return file
        file.close()  # its owner released it between our opening and locking it
