"""What the store must do in company: two at one file, what the dead left, stages in use.

Each check yields, for every trial, what is wrong after it (see disk_checks.py).
"""

import errno
import fcntl
import os
import secrets
from pathlib import Path
from unittest.mock import patch

from store_lab import BACKEND, FINGERPRINT, Problems, build, unit_name

from taqdit.errors import CorruptError, StorageError
from taqdit.store import Stage, disk, document
from taqdit.store.disk import identity_at


def no_locks(file: object, operation: int) -> None:
    """A file system that has no locks."""
    raise OSError(errno.ENOTSUP, "no locks here")


def two_at_one_file(root: Path) -> Problems:
    """Two writers meet at one temporary file: the second one is refused, with locks or without."""
    flock = fcntl.flock

    def impatient(file, operation):
        flock(file, operation | fcntl.LOCK_NB)

    for locks in (impatient, no_locks):
        bad, place = [], root / locks.__name__
        place.mkdir(parents=True)

        def write(file, place=place, bad=bad):
            try:
                disk.publish_bytes(place / "a.bin", b"inner")
                bad.append("another wrote it at once")
            except StorageError as error:
                bad += [] if "File exists" in str(error) else [str(error)]
            file.write(b"outer")

        same = patch.object(secrets, "token_hex", lambda size: "00" * size)
        with same, patch.object(fcntl, "flock", locks):
            try:
                disk.publish(place / "a.bin", write)
            except StorageError as error:
                bad.append(str(error))
        yield bad


def dead_writers_file(root: Path) -> Problems:
    """What a dead writer left under its temporary name is in nobody's way."""
    root.mkdir()
    path = root / ".a.bin.1.tmp"
    path.write_bytes(b"left")
    try:
        with disk.current.open_exclusive(path) as file:
            yield [] if os.fstat(file.fileno()).st_size == 0 else ["it is gone on with"]
    except FileExistsError as error:
        yield [str(error)]


def founded_meanwhile(root: Path) -> Problems:
    """Another process makes the stage, all of it, just before this one would."""
    read = document.read_document

    def late(*given):
        try:
            return read(*given)
        except StorageError:
            with patch.object(document, "read_document", read):
                build(root)
            raise

    with patch.object(document, "read_document", late):
        try:
            bad = []
            build(root, on_made=lambda name: bad.append(f"{name} is made again"))
        except CorruptError as error:
            bad = [str(error)]
    yield bad


def seals_come_off(root: Path) -> Problems:
    """Whatever changes a stage takes its seal off first."""
    changes = {
        "admit": lambda stage: stage.admit(BACKEND, allow_change=False),
        "quarantine": lambda stage: stage.quarantine(
            unit_name(0), "a test", judged=identity_at(stage.path(unit_name(0)))
        ),
        "discard": lambda stage: stage.discard([unit_name(0)]),
    }
    for name, change in changes.items():
        stage = build(root / name)
        change(stage)
        yield [] if stage.seal_list is None else [f"{name} leaves the seal on"]


def in_use(root: Path) -> Problems:
    """A stage that someone is at work in is not set aside."""
    stage = build(root)
    with stage.claim("a unit"):
        try:
            Stage.set_aside(root, "trajectories", FINGERPRINT)
            yield ["it was set aside"]
        except StorageError:
            yield []
    yield [] if stage.folder.exists() else ["it is gone"]
