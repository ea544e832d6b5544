"""A small stage to build, what is wrong with it after a fault, and disks that fail when told."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np

from taqdit.errors import TaqditError
from taqdit.store import Stage, disk, verify_shard, write_shard
from taqdit.store.digest import read_stamped
from taqdit.store.disk import Disk

FINGERPRINT = "ab" * 32
BACKEND = {"device": "cpu", "mlx": "0.32.4"}
UNITS = 3
Problems = Iterator[list[str]]  # what is wrong, for each trial


def unit_name(index: int) -> str:
    return f"{index:06d}.safetensors"


SHARDS = [unit_name(index) for index in range(UNITS)]


def tensors(index: int) -> dict[str, np.ndarray]:
    values = np.random.default_rng(index).standard_normal((3, 4, 4), np.float32)
    return {"latents": values, "sigmas": np.linspace(1, 0, 3, dtype=np.float32)}


def open_stage(root: Path) -> Stage:
    inputs = {"num_steps": 2, "seed": 0}
    return Stage.open(root, "trajectories", fingerprint=FINGERPRINT, inputs=inputs, backend=BACKEND)


def build(root: Path, on_made: Callable[[str], object] = lambda name: None) -> Stage:
    """What a run does to a stage: compute what is missing, unit by unit, and seal it."""
    stage = open_stage(root)
    names = [unit_name(index) for index in range(UNITS)]
    have = stage.valid(names)
    if len(have) < UNITS:
        stage.admit(BACKEND, allow_change=False)
    for index, name in enumerate(names):
        if name not in have:
            with stage.claim(f"{index:06d}") as mine:
                if mine and not stage.path(name).exists():
                    write_shard(stage.path(name), tensors(index), kind="trajectory", index=index)
                    on_made(name)
    if set(names) <= set(stage.names()) and stage.unsealed_or_changed(names):
        stage.seal()
    return stage


@contextmanager
def using(new: Disk) -> Iterator[Disk]:
    """Publish through another disk for the length of a `with` block."""
    old, disk.current = disk.current, new
    try:
        yield new
    finally:
        disk.current = old


def contents(stage: Stage) -> dict[str, bytes]:
    """Everything in the stage's folder but what was moved aside."""
    files = (path for path in stage.folder.iterdir() if ".bad-" not in path.name)
    return {path.name: path.read_bytes() for path in files}


class Death(BaseException):
    """The process ends here: nothing that it would still do happens."""


class QuickDisk(Disk):
    """No syncs: a process that dies loses nothing that it wrote, only power loss needs them."""

    def sync(self, file: BinaryIO) -> None:
        pass

    def sync_dir(self, folder: Path) -> None:
        pass


class FaultyDisk(QuickDisk):
    """Counts operations; from `step` a subclass raises. Half the data is written by then."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0

    def step(self) -> None:
        raise NotImplementedError

    def _next(self) -> None:
        self.count += 1
        self.step()

    def open_exclusive(self, path: Path) -> BinaryIO:
        self._next()
        return super().open_exclusive(path)

    def write(self, file: BinaryIO, write: Callable[[BinaryIO], object]) -> None:
        if self.count + 1 == self.at:
            whole = io.BytesIO()
            write(whole)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
        self._next()
        super().write(file, write)

    def sync(self, file: BinaryIO) -> None:
        self._next()
        super().sync(file)

    def replace(self, source: Path, target: Path) -> None:
        self._next()
        super().replace(source, target)

    def sync_dir(self, folder: Path) -> None:
        self._next()
        super().sync_dir(folder)

    def unlink(self, path: Path) -> None:
        self._next()
        super().unlink(path)


class DyingDisk(FaultyDisk):
    def step(self) -> None:
        if self.count >= self.at:
            raise Death


class FailingDisk(FaultyDisk):
    """Raises the error at operation `at`, and at as many as make it `times`."""

    def __init__(self, at: int, error: BaseException, *, times: int = 1) -> None:
        super().__init__(at)
        self.error, self.end = error, at + times

    def step(self) -> None:
        if self.at <= self.count < self.end:
            raise self.error


# --- what is wrong after a fault ---


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
