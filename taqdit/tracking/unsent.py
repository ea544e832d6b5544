"""Runs that W&B does not have, or not wholly: where they lie, and their upload."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from taqdit.errors import CorruptError
from taqdit.store import publish_bytes, read_journal
from taqdit.tracking.events import EVENTS, follow, run_info, runs_in
from taqdit.tracking.mirror import STATE
from taqdit.tracking.process import MirrorOptions, MirrorProcess
from taqdit.tracking.tracker import RunInfo

_log = logging.getLogger(__name__)
START, PATIENCE = 60.0, 3600.0  # seconds that W&B may take to answer, and for all of a run


@dataclass
class RecordedRun:
    """A run in the events.jsonl of a folder: all that W&B is told of it."""

    info: RunInfo
    events: int = 0
    finished: bool = False

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.info.folder

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all other runs."""
        return str(self.folder.resolve()), self.info.run_id

    @property
    def tracked(self) -> bool:
        """Whether W&B is to know it; older records do not say so."""
        return self.info.wandb is not None

    @property
    def offline(self) -> list[Path]:
        """The .wandb files in which W&B kept it."""
        return sorted(self.folder.glob(f"wandb/offline-run-*-{self.info.run_id}/*.wandb"))

    @property
    def uploaded(self) -> bool:
        """Whether W&B has all of it: from a mirror online, or from the file of one offline."""
        return self._taken(online=True) or (
            self._taken(online=False) and any(map(_marked, self.offline))
        )

    @property
    def ended(self) -> bool:
        """Whether no more events come: the part would be taken for the whole."""
        return self.finished or self._taken(online=False) or _has_ended(self.folder)

    def upload(self) -> tuple[str, str]:
        """Hand all of it to W&B under its own id, which replaces what W&B has of it. Returns its
        address, and what went wrong."""
        with TemporaryDirectory(prefix="taqdit-sync-", ignore_cleanup_errors=True) as scratch:
            options = MirrorOptions(True, START, PATIENCE, PATIENCE, scratch)
            mirror = MirrorProcess(self.folder, self.info.run_id, options)
            try:
                mirror.finish()
            finally:
                mirror.stop("interrupted")
        if mirror.whole:
            for file in self.offline:
                publish_bytes(_mark(file), b"")
        return mirror.location, mirror.failure

    def _taken(self, *, online: bool) -> bool:
        state = self.folder / STATE
        whole = {"run_id": self.info.run_id, "online": online, "events": self.events}
        return state.is_file() and whole in read_journal(state)


@dataclass(frozen=True)
class OfflineRun:
    """A run that W&B kept offline in a .wandb file, and that no events.jsonl could replace."""

    file: Path
    tracked = True

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all other runs."""
        return str(self.folder.resolve()), self.file.name

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.file.parents[2]

    @property
    def uploaded(self) -> bool:
        """Whether `wandb sync` has left its mark."""
        return _marked(self.file)

    @property
    def ended(self) -> bool:
        """Whether no process writes it any more."""
        return _has_ended(self.folder)

    def upload(self) -> tuple[str, str]:
        """Hand it to `wandb sync`, which tells its progress on stderr and asks nothing. Returns
        its address, which is not known, and what went wrong."""
        kept = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
        line = [sys.executable, "-m", "wandb", "sync", str(self.file.resolve())]
        subprocess.run(line, env=kept, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
        return "", "" if self.uploaded else f"`wandb sync {self.file.parent}` failed"


def runs_below(folder: Path) -> list[RecordedRun | OfflineRun]:
    """The runs in and below a folder that W&B could have. The store has none."""
    paths = sorted(_walk(folder))
    files = [path for path in paths if path.name != EVENTS]
    homes = [path.parent if path.name == EVENTS else path.parents[2] for path in paths]
    recorded = [run for home in dict.fromkeys(homes) for run in _recorded(home)]
    replaced = {file for run in recorded if run.tracked for file in run.offline}
    older = [OfflineRun(file) for file in files if file not in replaced]
    said = {run.file for run in older}
    return [*(run for run in recorded if said.isdisjoint(run.offline)), *older]


def _recorded(folder: Path) -> list[RecordedRun]:
    runs: dict[str, RecordedRun] = {}
    if not (folder / EVENTS).is_file():
        return []
    for run_id, event in runs_in(follow(folder, lambda: True)):
        if event.get("kind") == "run" and run_id not in runs:
            try:
                runs[run_id] = RecordedRun(run_info(folder, event))
            except CorruptError as error:
                _log.warning("left out: %s", error)
        if run_id in runs and not runs[run_id].finished:
            runs[run_id].events += 1
            runs[run_id].finished = event.get("kind") == "finish"
    return list(runs.values())


def _walk(folder: Path) -> Iterator[Path]:
    """Every events.jsonl, and every .wandb file of an offline run."""
    for where, below, files in os.walk(folder):
        here = Path(where)
        if here.name.startswith("offline-run-"):
            below.clear()
            yield from (here / name for name in files if name.endswith(".wandb"))
        elif EVENTS in files:
            yield here / EVENTS
        below[:] = [name for name in below if name != "store"]


def _has_ended(folder: Path) -> bool:
    return (folder / "summary.json").exists() or not (folder / "run.json").exists()


def _mark(file: Path) -> Path:
    """What `wandb sync` leaves beside a .wandb file that it has uploaded."""
    return file.with_suffix(".wandb.synced")


def _marked(file: Path) -> bool:
    return _mark(file).exists()
