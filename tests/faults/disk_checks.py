"""What the store must survive of its disk: each check yields, for every trial, what is wrong after.

After every fault: whatever has its final name verifies, and running again gives the bytes of an
undisturbed run. Checks without a problem yield empty lists; test_mutations.py sees them yield
others when a safeguard of the store is taken away.
"""

import errno
import os
import resource
import stat
from collections.abc import Callable
from itertools import count
from pathlib import Path
from unittest.mock import patch

from power import PowerDisk, crash_states
from store_lab import (
    BACKEND,
    FINGERPRINT,
    Death,
    DyingDisk,
    FailingDisk,
    Problems,
    QuickDisk,
    build,
    nothing,
    reference,
    unfit,
    unlike_the_reference,
    using,
)

from taqdit.errors import StorageError, TaqditError
from taqdit.store import Stage, disk


def deaths(root: Path, start: Callable = nothing) -> Problems:
    """The process ends at each operation of the disk in turn, half of the data written."""
    for at in count(1):
        place = root / str(at)
        with using(QuickDisk()):
            start(place)
        with using(DyingDisk(at)):
            try:
                build(place)
                return
            except Death:
                pass
        yield [*(unfit(place) if start is nothing else []), *unlike_the_reference(place)]


def disk_errors(root: Path, make: Callable[[], BaseException], *, times: int = 1) -> Problems:
    """Each operation of the disk in turn raises what `make` makes; with times=2 the next one too,
    which may be the one that cleans up."""
    for at in count(1):
        place, error = root / str(at), make()
        raised = None
        with using(FailingDisk(at, error, times=times)) as failing:
            try:
                build(place)
            except StorageError as caught:
                raised = str(caught)
            except type(error):
                raised = ""
        if failing.count < at:
            return
        tidy = raised is not None and times == 1
        bad = [f"{p.name} is left" for p in place.glob("**/.*.tmp")] if tidy else []
        if raised and (str(place) not in raised or "\n" in raised):
            bad.append(f"no line that says where: {raised}")
        yield [*bad, *unfit(place), *unlike_the_reference(place)]


def full_disk(root: Path) -> Problems:
    """No space is left at one operation."""
    return disk_errors(root, lambda: OSError(errno.ENOSPC, "injected"))


def read_only(root: Path) -> Problems:
    """The disk becomes read-only for one operation."""
    return disk_errors(root, lambda: OSError(errno.EROFS, "injected"))


def interrupts(root: Path) -> Problems:
    """Ctrl-C arrives within one operation."""
    return disk_errors(root, KeyboardInterrupt)


def second_interrupts(root: Path) -> Problems:
    """Ctrl-C arrives within one operation, and again within the next one."""
    return disk_errors(root, KeyboardInterrupt, times=2)


def leftovers(root: Path) -> Problems:
    """After an error of the disk there is the file, or nothing."""
    root.mkdir()
    for at in range(1, 6):  # create, write, sync, replace, sync the folder
        with using(FailingDisk(at, OSError(errno.ENOSPC, "injected"))):
            try:
                disk.publish_bytes(root / "a.bin", b"12345678")
                bad = [f"operation {at} raised nothing"]
            except StorageError as error:
                said = "injected; free some space" in str(error)
                bad = [] if said else [f"it said {error}"]
        left = [path.name for path in root.iterdir()]
        yield bad if left == ["a.bin"] * (at == 5) else [*bad, f"{left} are left"]


def power_loss(root: Path, start: Callable = nothing) -> Problems:
    """Each state that a power cut may leave behind (store_lab.crash_states)."""
    recorded, place = root / "recorded", Path("trajectories", FINGERPRINT[:12])
    recorder = PowerDisk()
    with using(QuickDisk()):
        start(recorded)
    if start is not nothing:
        recorder.adopt(recorded / place)
    begin = len(recorder.events)
    with using(recorder):
        build(recorded, on_made=lambda name: recorder.record("acknowledge", name))
    states = crash_states(recorder.events, place.name, begin)
    for number, (files, acknowledged) in enumerate(states):
        folder = root / str(number) / place
        folder.mkdir(parents=True)
        for name, data in files:
            (folder / name).write_bytes(data)
        lost = [f"{name} is lost" for name in acknowledged if not (folder / name).exists()]
        torn = unfit(folder) if start is nothing else []
        yield [*lost, *torn, *unlike_the_reference(root / str(number))]


def new_folders(root: Path) -> Problems:
    """The names of new folders are made durable."""
    root.mkdir()
    with using(PowerDisk()) as recorder:
        Stage.open(root / "a" / "b", "s", fingerprint=FINGERPRINT, inputs={}, backend=BACKEND)
    synced = [name for operation, name, _ in recorder.events if operation == "sync_dir"][:4]
    yield [] if synced == [root.name, "a", "b", "s"] else [f"{synced} are synced"]


def asks_to_sync(root: Path) -> Problems:
    """The system is asked to make a file durable, then its folder."""
    asked = []
    root.mkdir()
    with patch.object(disk, "_sync", lambda number: asked.append(os.fstat(number).st_mode)):
        disk.publish_bytes(root / "a.bin", b"x")
    folders = [stat.S_ISDIR(mode) for mode in asked]
    yield [] if folders == [False, True] else [f"folders among what it was asked for: {folders}"]


def quotas(root: Path) -> Problems:
    """RLIMIT_FSIZE at every seventh number of bytes that is too few for some file."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(0, max(map(len, reference().values())), 7):
        place, said = root / str(limit), "nothing"
        with using(QuickDisk()):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
            try:
                build(place)
            except TaqditError as error:
                said = str(error)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, old)
        bad = [] if "File too large; free some space" in said else [f"it said {said}"]
        bad += [f"{path.name} is left" for path in place.glob("**/.*.tmp")]
        yield [*bad, *unfit(place), *unlike_the_reference(place)]
