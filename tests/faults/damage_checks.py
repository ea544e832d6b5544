"""What the store must find: bits that flipped, bytes that are gone, files that are another's.

Each check yields, for every trial, what is wrong after it (see disk_checks.py).
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from store_lab import (
    FINGERPRINT,
    SHARDS,
    Problems,
    build,
    damage,
    open_stage,
    reference,
    tensors,
    unit_name,
    unlike_the_reference,
)

from taqdit.errors import CorruptError
from taqdit.store import read_shard, verify_shard, write_shard
from taqdit.store.digest import read_stamped
from taqdit.trajectories import pictures as images


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
    """5,000 flips in a shard's header and 5,000 in its body."""
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


def strangers(root: Path) -> Problems:
    """A shard of another stage, or of another unit, under this name is not read."""
    stage, other = open_stage(root), "cd" * 32
    for owner, index in ((other, 0), (FINGERPRINT, 1)):
        path, about = stage.path(unit_name(0)), {"stage": owner}
        write_shard(path, tensors(0), kind="trajectory", index=index, metadata=about)

        def read(path):
            return stage.read(path.name, kind="trajectory", index=0)

        yield found_corrupt(path, read, f"unit {index} of {owner[:2]}")
