"""A small stage to build, disks that fail at a chosen operation, and a model of power loss."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import BinaryIO

import numpy as np

from taqdit.store import Stage, disk, write_shard
from taqdit.store.disk import Disk

FINGERPRINT = "ab" * 32
BACKEND = {"device": "cpu", "mlx": "0.32.4"}
UNITS = 3


def unit_name(index: int) -> str:
    return f"{index:06d}.safetensors"


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
    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__(at)
        self.error = error

    def step(self) -> None:
        if self.count == self.at:
            raise self.error


class PowerDisk(QuickDisk):
    """Records what happens in one folder."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, object]] = []

    def record(self, operation: str, name: str, value: object = None) -> None:
        self.events.append((operation, name, value))

    def open_exclusive(self, path: Path) -> BinaryIO:
        self.record("create", path.name)
        return super().open_exclusive(path)

    def write(self, file: BinaryIO, write: Callable[[BinaryIO], object]) -> None:
        super().write(file, write)
        self.record("write", Path(file.name).name, Path(file.name).read_bytes())

    def sync(self, file: BinaryIO) -> None:
        self.record("sync", Path(file.name).name)

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self.record("replace", source.name, target.name)

    def sync_dir(self, folder: Path) -> None:
        self.record("sync_dir", folder.name)

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.record("unlink", path.name)

    def adopt(self, folder: Path) -> None:
        """What is in the folder already is durable."""
        for path in folder.iterdir():
            self.record("create", path.name)
            self.record("write", path.name, path.read_bytes())
            self.record("sync", path.name)
        self.record("sync_dir", folder.name)

    def acknowledge(self, name: str) -> None:
        self.record("acknowledge", name)


State = tuple[frozenset[tuple[str, bytes]], frozenset[str]]


def crash_states(
    events: list[tuple[str, str, object]], folder: str, begin: int = 0
) -> Iterator[State]:
    """Every (folder contents, acknowledged names) that a power cut may leave, after SQLite's
    test6: cut after each event from `begin` on; of what was not synced, any subset of the changes
    to the folder (of the last six) is there, and the data is whole, half, zeros or nothing."""
    seen = set()
    for end in range(begin, len(events) + 1):
        for state in _states_after(events[:end], folder):
            if state not in seen:
                seen.add(state)
                yield state


def _states_after(events: list[tuple[str, str, object]], folder: str) -> Iterator[State]:
    files: list[dict] = []
    open_files: dict[str, int] = {}
    durable: dict[str, int] = {}
    pending: list[tuple[str, str, int | None]] = []
    acknowledged = set()
    for operation, name, value in events:
        if operation == "create":
            open_files[name] = len(files)
            files.append({"data": b"", "synced": True})
            pending.append(("", name, open_files[name]))
        elif operation == "write":
            files[open_files[name]] = {"data": value, "synced": False}
        elif operation == "sync":
            files[open_files[name]]["synced"] = True
        elif operation == "replace":
            open_files[str(value)] = open_files[name]
            pending.append((name, str(value), open_files[name]))
        elif operation == "unlink":
            pending.append((name, "", None))
        elif operation == "sync_dir" and name == folder:
            durable = _applied(durable, pending)
            pending = []
        elif operation == "acknowledge":
            acknowledged.add(name)
    for chosen in product((False, True), repeat=min(len(pending), 6)):
        some = [change for change, there in zip(pending[-6:], chosen, strict=True) if there]
        entries = _applied(durable, some)
        for variant in product(*(_variants(files[number]) for number in entries.values())):
            yield frozenset(zip(entries, variant, strict=True)), frozenset(acknowledged)


def _applied(entries: dict[str, int], changes: list[tuple[str, str, int | None]]) -> dict[str, int]:
    entries = dict(entries)
    for old, new, number in changes:
        entries.pop(old, None)
        if new and number is not None:
            entries[new] = number
    return entries


def _variants(file: dict) -> set[bytes]:
    data = file["data"]
    return {data} if file["synced"] else {data, data[: len(data) // 2], bytes(len(data)), b""}
