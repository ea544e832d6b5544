"""What a store must survive, as checks: each yields, for every trial, what is wrong after it.

After every fault: whatever has its final name verifies, and running again gives the bytes of an
undisturbed run. Checks without a problem yield empty lists; test_mutations.py sees them yield
others when a safeguard of the store is taken away.
"""

import errno
import fcntl
import os
import random
import resource
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
from store_lab import (
    BACKEND,
    FINGERPRINT,
    UNITS,
    Death,
    DyingDisk,
    FailingDisk,
    PowerDisk,
    QuickDisk,
    build,
    contents,
    crash_states,
    open_stage,
    tensors,
    unit_name,
    using,
)

from taqdit import images
from taqdit.errors import CorruptError, StorageError, TaqditError
from taqdit.store import Stage, disk, read_shard, verify_shard, write_shard
from taqdit.store.digest import read_stamped

Problems = Iterator[list[str]]
SHARDS = [unit_name(index) for index in range(UNITS)]


@cache
def reference() -> dict[str, bytes]:
    """The files of an undisturbed run."""
    with TemporaryDirectory() as folder:
        return contents(build(Path(folder)))


def nothing(root: Path) -> None:
    """Start from an empty folder."""


def finished_with_one_corrupt_shard(root: Path) -> None:
    """Start from a finished stage in which one bit is wrong."""
    damage(build(root).path(unit_name(1)))


def damage(path: Path) -> None:
    """Make one bit of a file wrong."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def unfit(root: Path) -> list[str]:
    """What has its final name and does not verify."""
    shards = [path for path in root.glob("**/*.safetensors") if not path.name.startswith(".")]
    bad = []
    for path in [*shards, *root.glob("**/*.json")]:
        try:
            (verify_shard if path in shards else read_stamped)(path)
        except TaqditError as error:
            bad.append(str(error))
    return bad


def unlike_the_reference(root: Path) -> list[str]:
    """What is wrong after running again."""
    with using(QuickDisk()):
        try:
            found = contents(build(root))
        except TaqditError as error:
            return [str(error)]
    return [f"{name} differs" for name in found | reference() if not _same(name, found)]


def _same(name: str, found: dict[str, bytes]) -> bool:
    return found.get(name) == reference().get(name)


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


def disk_errors(root: Path, make: Callable[[], BaseException]) -> Problems:
    """One operation of the disk in turn raises what `make` makes."""
    for at in count(1):
        place, error = root / str(at), make()
        raised = None
        with using(FailingDisk(at, error)) as failing:
            try:
                build(place)
            except StorageError as caught:
                raised = str(caught)
            except type(error):
                raised = ""
        if failing.count < at:
            return
        bad = [f"{p.name} is left" for p in place.glob("**/.*.tmp")] if raised is not None else []
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


def one_shard(root: Path) -> Path:
    """A small shard of its own, with all that a header has."""
    root.mkdir()
    path = root / "a.safetensors"
    write_shard(path, tensors(0), kind="trajectory", index=0, metadata={"prompt": "a red ball"})
    return path


@contextmanager
def changed(path: Path, place: int, new: bytes) -> Iterator[None]:
    """Other bytes in place (rewriting the file each time would be slow)."""
    with path.open("r+b", buffering=0) as file:
        old = os.pread(file.fileno(), len(new), place)
        os.pwrite(file.fileno(), new, place)
        yield
        os.pwrite(file.fileno(), old, place)


def found_corrupt(path: Path, read: Callable[[Path], object], what: str) -> list[str]:
    """Reading raises CorruptError, or what is wrong."""
    try:
        read(path)
    except CorruptError:
        return []
    return [f"{what} is read without complaint"]


def flip(data: bytes, place: int, dice: random.Random) -> bytes:
    """The byte at `place` with one bit flipped."""
    return bytes([data[place] ^ 1 << dice.randrange(8)])


def flipped_bits(root: Path) -> Problems:
    """3,000 flips in a shard's header and 3,000 in its body."""
    path, dice = one_shard(root), random.Random(0)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    places = [dice.randrange(header) for _ in range(5000)]
    places += [dice.randrange(header, len(data)) for _ in range(5000)]
    for place in places:
        with changed(path, place, flip(data, place, dice)):
            yield found_corrupt(path, read_shard, f"a flip in byte {place}")
    read_shard(path)


def other_lengths(root: Path) -> Problems:
    """A shard cut off at every length, or with a byte too many."""
    path = one_shard(root)
    data = path.read_bytes()
    path.write_bytes(data + b"\0")
    yield found_corrupt(path, read_shard, "a byte too many")
    for length in reversed(range(len(data))):
        os.truncate(path, length)
        yield found_corrupt(path, read_shard, f"a file of {length} bytes")


def zeroed_pages(root: Path) -> Problems:
    """500 times 4 KB of zeros within a shard."""
    root.mkdir()
    path, dice = root / "a.safetensors", random.Random(0)
    values = np.random.default_rng(0).standard_normal((4, 32, 32, 16), np.float32)
    write_shard(path, {"latents": values}, kind="trajectory", index=0)
    size = path.stat().st_size
    for _ in range(500):
        place = dice.randrange(size - 4096)
        with changed(path, place, bytes(4096)):
            yield found_corrupt(path, verify_shard, f"a page of zeros at {place}")
    verify_shard(path)


def flipped_documents(root: Path) -> Problems:
    """1,000 flips in stage.json and 1,000 in SEALED.json; white space may change."""
    root.mkdir()
    dice = random.Random(0)
    for name in ("stage.json", "SEALED.json"):
        path, data = root / name, reference()[name]
        path.write_bytes(data)
        right = read_stamped(path)
        for _ in range(1000):
            place = dice.randrange(len(data))
            bad = []
            with changed(path, place, flip(data, place, dice)), suppress(CorruptError):
                if read_stamped(path) != right:
                    bad = [f"a flip in byte {place} of {name} is read without complaint"]
            yield bad


def damaged_pictures(root: Path) -> Problems:
    """A picture with 500 flips, cut off at each length, 500 times with 64 bytes of zeros."""
    root.mkdir()
    path, dice = root / "000000.png", random.Random(0)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    images.write_picture(path, pixels, owner="me 0")
    data = path.read_bytes()

    def read(path):
        return images.verify_picture(path, pixels.shape, owner="me 0")

    for place in [dice.randrange(len(data)) for _ in range(500)]:
        with changed(path, place, flip(data, place, dice)):
            yield found_corrupt(path, read, f"a flip in byte {place}")
    for place in [dice.randrange(len(data) - 64) for _ in range(500)]:
        with changed(path, place, bytes(64)):
            yield found_corrupt(path, read, f"zeros at {place}")
    read(path)
    for length in reversed(range(len(data))):
        os.truncate(path, length)
        yield found_corrupt(path, read, f"a picture of {length} bytes")


def one_redone(root: Path) -> Problems:
    """Each shard in turn is damaged: it is moved aside with a reason, and it alone is redone."""
    for name in SHARDS:
        place, made = root / name, []
        damage(build(place).path(name))
        stage = build(place, on_made=made.append)
        bad = [] if made == [name] else [f"made again: {made}"]
        if [moved for moved, _ in stage.moved_aside] != [name]:
            bad.append(f"moved aside: {stage.moved_aside}")
        if not stage.path(f"{name}.bad-1").exists():
            bad.append("what was damaged is gone")
        yield [*bad, *unlike_the_reference(place)]


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


def strangers(root: Path) -> Problems:
    """A shard of another stage, or of another unit, under this name is not read."""
    stage, other = open_stage(root), "cd" * 32
    for owner, index in ((other, 0), (FINGERPRINT, 1)):
        path, about = stage.path(unit_name(0)), {"stage": owner}
        write_shard(path, tensors(0), kind="trajectory", index=index, metadata=about)

        def read(path):
            return stage.read(path.name, kind="trajectory", index=0)

        yield found_corrupt(path, read, f"unit {index} of {owner[:2]}")


def seals_come_off(root: Path) -> Problems:
    """Whatever changes a stage takes its seal off first."""
    changes = {
        "admit": lambda stage: stage.admit(BACKEND, allow_change=False),
        "quarantine": lambda stage: stage.quarantine(unit_name(0), "a test"),
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
