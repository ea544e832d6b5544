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


def idle(folder: Path, pattern: str) -> bool:
    """Whether no living process holds any of these claims in the folder."""
    for path in folder.glob(pattern):
        with claim(path) as free:
            if not free:
                return False
    return True


def claimants(folder: Path, pattern: str) -> list[str]:
    """Who claims what, in words: `batch-000003 (host x, process 123)`."""
    owners = ((path.stem, _owner(path)) for path in sorted(folder.glob(pattern)))
    return [f"{unit} ({owner})" for unit, owner in owners if owner]


def _owner(path: Path) -> str | None:
    """What a claim says of its owner; None where it is gone or says nothing legible."""
    try:
        owner = json.loads(path.read_bytes())
        return f"host {owner['host']}, process {owner['pid']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _obtain(path: Path) -> BinaryIO | None:
    while True:
        file = path.open("ab", buffering=0)
        if not try_hold(file, without_locks=True):
            file.close()
            return None
        if is_at(file, path):
            try:
                file.truncate(0)
                file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
            except OSError:
                file.close()  # else whoever keeps the error keeps the lock
                raise
            return file
        file.close()  # its owner released it between our opening and locking it
