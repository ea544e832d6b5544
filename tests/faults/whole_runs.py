"""Whole runs in one process: on a disk that is full, and what a power cut may leave of one.

Run as a program (`quotas`, or within a mount namespace of its own `small_disks`) it meets real
limits and prints what came of it as JSON.
"""

import copy
import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from typing import BinaryIO
from unittest.mock import patch

import numpy as np
from conftest import ANALYTIC, ROOT, tree
from omegaconf import DictConfig
from store_lab import FaultyDisk, QuickDisk, using

import taqdit as package
from taqdit import config as configuration
from taqdit.config import compose_config
from taqdit.errors import TaqditError
from taqdit.store import Stage, parallel
from taqdit.store_tools.survey import Survey
from taqdit.store_tools.verification import verify

FORMULA = (
    *ANALYTIC,
    "schedule.num_steps=3",
    "sampler.num_trajectories=4",
    "timestep_selection.count=2",
)
EMBEDDED = (  # every stage, of one trajectory
    "schedule.num_steps=2",
    "sampler.num_trajectories=1",
    "sampler.batch_size=1",
    "timestep_selection.count=1",
    "tracer=post_gelu",
    "tracer.folds=2",
    "tracer.blocks=[mm_00]",
    "tracking=none",
    "plots=none",
)
UNIMPORTANT = (".tmp", ".claim")  # that a dead process may leave in a stage


@cache
def _composed(settings: tuple[str, ...]) -> DictConfig:
    return compose_config(settings, with_hydra=True)


def _compose_once(overrides: list[str], *, with_hydra: bool) -> DictConfig:
    """The configuration of `overrides`, of which the last is the output folder."""
    *settings, folder = overrides
    composed = copy.deepcopy(_composed(tuple(settings)))
    composed.output_dir = folder.partition("=")[2]
    return composed


def run(settings: tuple[str, ...], root: Path) -> TaqditError | None:
    """A run into `root`: how it ended. Of hundreds that differ in their folder alone the first one
    composes its configuration, which takes longer than the rest of a run."""
    try:
        with patch.object(configuration, "compose_config", _compose_once):
            package.launch([*settings, f"output_dir={root}"])
    except TaqditError as error:
        return error
    return None


def stored(root: Path) -> dict[str, bytes]:
    """The store's files, without what nobody reads."""
    return {k: v for k, v in tree(root / "store").items() if not k.endswith(UNIMPORTANT)}


@contextmanager
def in_order() -> Iterator[None]:
    """Operations of the disk always come in the same order; and there seems to be room."""
    room = shutil.disk_usage("/")._replace(free=10**12)
    with (
        patch.object(parallel, "_cores", lambda: 1),
        patch.object(shutil, "disk_usage", lambda _: room),
    ):
        yield


def unfit(root: Path) -> list[str]:
    """What has its final name in the store or a run's folder, and is not whole."""
    bad = [str(f) for checked in verify(Survey.of(root / "store").stages) for f in checked.corrupt]
    for path in (path for path in root.glob("runs/**/*") if path.is_file()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as arrays:  # zip checks every CRC-32
                    [arrays[name] for name in arrays.files]
            elif path.suffix == ".html" and not path.read_text().rstrip().endswith("</html>"):
                bad.append(f"{path.name} has no end")
        except (ValueError, zipfile.BadZipFile) as error:
            bad.append(f"{path.name}: {error}")
    return bad


def badly_told(error: TaqditError | None) -> list[str]:
    """What is wrong with the error of a full disk."""
    if error is None or (error.exit_code == 4 and len(error.args) == 1 and _is_line(error)):
        return []
    return [f"exit code {error.exit_code}: {error}"]


def _is_line(error: TaqditError) -> bool:
    return str(error).isprintable() and str(error).endswith("; free some space")


class FullDisk(FaultyDisk):
    """At operation `at` no space is left, half of what was to be written is there; `for_good`:
    nor for anything that is written after it."""

    def __init__(self, at: int, *, for_good: bool = False) -> None:
        super().__init__(at)
        self.for_good = for_good

    def step(self) -> None:
        if self.count == self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, file: BinaryIO, write: object) -> None:
        if self.for_good and self.count >= self.at:
            self.at = self.count + 1
        super().write(file, write)


def count_operations(settings: tuple[str, ...], root: Path) -> int:
    """Operations of the disk in an undisturbed run."""
    with in_order(), using(FullDisk(0)) as counted:
        assert run(settings, root) is None
    return counted.count


def full_at(
    settings: tuple[str, ...], root: Path, new: FullDisk, reference: dict[str, bytes]
) -> tuple[bool, list[str]]:
    """A run on a full disk, then with room: whether the first one failed, and what is wrong."""
    with in_order(), using(new):
        error = run(settings, root)
    bad = [*badly_told(error), *unfit(root)]
    swept = not new.for_good and (new.count < new.at or error is None)
    bad += [] if swept else [f"{path} is left" for path in root.glob("**/.*.tmp")]
    bad += [] if error or list(root.glob("runs/*/*/summary.json")) else ["no summary, no error"]
    return error is not None, [*bad, *ends_wrong(settings, root, reference)]


def ends_wrong(settings: tuple[str, ...], root: Path, reference: dict[str, bytes]) -> list[str]:
    """What is wrong after the same command again."""
    with using(QuickDisk()):
        error = run(settings, root)
    found = stored(root)
    differing = sorted(k for k in found | reference if found.get(k) != reference.get(k))
    return [*([str(error)] if error else []), *(f"{name} differs" for name in differing)]


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file can be larger: RLIMIT_FSIZE."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


# ---- loss of power -------------------------------------------------------------------------------


class PowerLog(QuickDisk):
    """Records what happens below a folder, and which shards a run was told are stored."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[tuple[str, str, object]] = []

    def _add(self, operation: str, path: object, value: object = None) -> None:
        self.events.append((operation, os.path.relpath(str(path), self.root), value))

    def open_exclusive(self, path: Path) -> BinaryIO:
        self._add("create", path)
        return super().open_exclusive(path)

    def write(self, file: BinaryIO, write: object) -> None:
        super().write(file, write)
        self._add("write", file.name, Path(file.name).read_bytes())

    def sync(self, file: BinaryIO) -> None:
        self._add("sync", file.name)

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self._add("replace", source, os.path.relpath(target, self.root))

    def sync_dir(self, folder: Path) -> None:
        self._add("sync_dir", folder, [each.name for each in os.scandir(folder) if each.is_dir()])

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self._add("unlink", path)


def recorded(settings: tuple[str, ...], root: Path) -> list[tuple[str, str, object]]:
    """What a run does to the disk; `acknowledge` where the store says that a shard is kept."""
    log, write = PowerLog(root), Stage.write

    def told(stage, file_name, *arguments, **named):
        write(stage, file_name, *arguments, **named)
        log._add("acknowledge", stage.path(file_name))

    with using(log), patch.object(Stage, "write", told):
        assert run(settings, root) is None
    return log.events


WHOLE, VARIANTS = 0, 4  # whole, half, zeros, empty
State = tuple[frozenset[tuple[str, int, int]], frozenset[str]]


class Cut:
    """What may be on a disk whose power is cut after each event in turn, as SQLite's test6 has it:
    of the changes to folders that were not synced any subset (of the last MOST), of data that was
    not synced (of the last LOOSE files) the whole, a half, zeros or nothing. A file is there if its
    folders are."""

    MOST, LOOSE = 6, 2

    def __init__(self, events: list[tuple[str, str, object]]) -> None:
        self.events = events
        self.data: list[bytes] = []
        self._synced: list[bool] = []
        self._open: dict[str, int] = {}
        self._durable: dict[str, int] = {}
        self._pending: list[tuple[str, str, int]] = []
        self._folders = {"."}
        self._told: set[str] = set()

    def states(self) -> Iterator[State]:
        """Every state once: (path, file, variant) of each file, and the shards acknowledged."""
        seen = set()
        for event in self.events:
            self._apply(*event)
            for state in self._now():
                if state not in seen:
                    seen.add(state)
                    yield state

    def _apply(self, operation: str, path: str, value: object) -> None:
        if operation == "create":
            self._open[path] = self._file(b"", synced=True)
            self._pending.append(("", path, self._open[path]))
        elif operation == "write":
            self.data[self._open[path]], self._synced[self._open[path]] = value, False
        elif operation == "sync":
            self._synced[self._open[path]] = True
        elif operation == "replace":
            self._open[value] = self._open.pop(path)
            self._pending.append((path, value, self._open[value]))
        elif operation == "unlink":
            if path.endswith(".claim"):  # made without publishing, and never synced
                self._pending.append(("", path, self._file(b"{", synced=True)))
            self._pending.append((path, "", -1))
            self._open.pop(path, None)
        elif operation == "acknowledge":
            self._told.add(path)
        else:
            mine = [each for each in self._pending if str(Path(each[0] or each[1]).parent) == path]
            self._durable = _applied(self._durable, mine)
            self._pending = [each for each in self._pending if each not in mine]
            self._folders |= {os.path.normpath(f"{path}/{name}") for name in value}

    def _file(self, data: bytes, *, synced: bool) -> int:
        self.data.append(data)
        self._synced.append(synced)
        return len(self.data) - 1

    def _now(self) -> Iterator[State]:
        told = frozenset(self._told)
        recent = self._pending[-self.MOST :]
        for chosen in product((False, True), repeat=len(recent)):
            some = [change for change, there in zip(recent, chosen, strict=True) if there]
            entries = _applied(self._durable, some)
            safe = {path: number for path, number in entries.items() if self._kept(path)}
            for there in [entries] if safe == entries else [safe, entries]:
                loose = sorted(n for n in there.values() if not self._synced[n])[-self.LOOSE :]
                choices = (range(VARIANTS if n in loose else 1) for n in there.values())
                for variants in product(*choices):
                    yield frozenset(zip(there, there.values(), variants, strict=True)), told

    def _kept(self, path: str) -> bool:
        """Whether the folders above a file are durable."""
        parents = Path(path).parents
        return all(str(parent) in self._folders for parent in parents)

    def bytes_of(self, number: int, variant: int) -> bytes:
        """What is in a file."""
        data = self.data[number]
        return (data, data[: len(data) // 2], bytes(len(data)), b"")[variant]

    def restore(self, state: State, root: Path) -> None:
        """Make the files of a state."""
        for path, number, variant in state[0]:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(self.bytes_of(number, variant))

    def torn_or_lost(self, state: State) -> tuple[bool, bool]:
        """Whether a file under its final name is not whole; whether an acknowledged one is gone."""
        final = {p: v for p, _, v in state[0] if not Path(p).name.startswith(".")}
        return any(v != WHOLE for v in final.values()), not state[1] <= final.keys()


def _applied(entries: dict[str, int], changes: list[tuple[str, str, int]]) -> dict[str, int]:
    entries = dict(entries)
    for old, new, number in changes:
        entries.pop(old, None)
        if new:
            entries[new] = number
    return entries


# ---- real limits, in a process of its own --------------------------------------------------------


def small_disks(root: Path, options: list[str]) -> dict:
    """A run into a tmpfs of each of `options`, which then gets room: failures and what is wrong."""

    @contextmanager
    def disk_of(option: str, place: Path) -> Iterator[None]:
        command = ["mount", "-t", "tmpfs", "-o", option, "none", place]
        subprocess.run(command, check=True)
        yield
        subprocess.run(["mount", "-o", "remount,size=256m,nr_inodes=10000", place], check=True)

    return _tried(root, options, disk_of)  # the namespace's end unmounts them


def quotas(root: Path, sizes: list[str]) -> dict:
    """A run that may write no file larger than each of `sizes`, and then may."""
    return _tried(root, sizes, lambda size, _: file_limit(int(size)))


def _tried(root: Path, options: list[str], limited: Callable) -> dict:
    whole = root / "whole"
    with using(QuickDisk()):
        assert run(FORMULA, whole) is None
    reference, failed, bad = stored(whole), 0, []
    room = shutil.disk_usage("/")._replace(free=10**12)
    for number, option in enumerate(options):
        place = root / str(number)
        place.mkdir()
        with limited(option, place), patch.object(shutil, "disk_usage", lambda _: room):
            error = run(FORMULA, place)
        failed += error is not None
        wrong = [*badly_told(error), *unfit(place)]
        wrong += [f"{path} is left" for path in place.glob("**/.*.tmp")]
        wrong += ends_wrong(FORMULA, place, reference)
        bad += [f"{option}: {each}" for each in wrong]
    return {"failed": failed, "bad": bad}


def sample(population: list, number: int) -> list:
    """So many of them, always the same."""
    return random.Random(0).sample(population, min(number, len(population)))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests" / "plugins"))
    os.environ["TAQDIT_PLUGINS"] = "analytic"
    task = {"small_disks": small_disks, "quotas": quotas}[sys.argv[1]]
    print(json.dumps(task(Path(sys.argv[2]), sys.argv[3:])))
