"""The mirror of a run in Weights & Biases. The only file that imports wandb.

The run never waits for W&B and never fails with it: all calls are made by one worker thread
under time limits, and the first one that fails ends the mirror with one line of warning.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taqdit.store.secrets import mask_text
from taqdit.tracking.exit_hooks import ExitGuard
from taqdit.tracking.tracker import RunInfo
from taqdit.tracking.worker import Worker, describe

_log = logging.getLogger(__name__)
MAX_LINES = 64  # of one chart: more are slow to draw and cannot be told apart
MAX_CHART_ROWS = 10000  # W&B leaves out what a chart's table holds beyond
MAX_EXIT = 10.0  # seconds for W&B's own exit hooks
MAX_NAME = 64  # of a tag, a job type
X_AXES = ("sigma", "timestep", "step")  # what curves are drawn against, by preference
CHECKSUM_BYTES = 64 * 2**20  # larger references are identified by their address alone


@dataclass(frozen=True)
class MirrorOptions:
    """How to reach W&B, and for how many seconds to wait for it."""

    project: str
    entity: str | None
    online: bool
    init_timeout: float
    call_timeout: float
    finish_timeout: float
    queue_size: int


class WandbSink:
    """Forwards events to a W&B run of its own."""

    def __init__(self, run: RunInfo, options: MirrorOptions) -> None:
        self._options, self._guard = options, _guard(min(MAX_EXIT, options.finish_timeout))
        self._call = _Calls(run, options, opened=self._guard.arm)
        self._worker = Worker("wandb", capacity=options.queue_size, report=self._give_up)
        self._guard.opened(self._abandon)
        self._worker.submit("init", self._call.open, limit=options.init_timeout)
        # Two threads importing at once can meet half-made modules, so this one waits for that
        # part of the start, and for no other.
        self._call.imported.wait(options.init_timeout)
        self._worker.working()

    @property
    def location(self) -> str:
        """The run's address online, its folder offline; empty before W&B has started."""
        return self._call.location

    def emit(self, kind: str, fields: dict[str, Any]) -> None:
        """Queues the event, or counts it as dropped."""
        call = getattr(self._call, kind)
        self._worker.submit(kind, lambda: call(**fields), limit=self._options.call_timeout)

    def finish(self, ok: bool) -> None:
        """Waits for a start still under way, then at most `finish_timeout` seconds."""
        while self._worker.working() and not self._call.opened.wait(0.05):
            pass  # bounded by init_timeout: `working` watches it
        limit = self._options.finish_timeout
        self._worker.close("finish", lambda: self._call.close(ok), limit=limit)
        self._guard.closed(self._abandon)
        if self._worker.dropped:
            _log.warning(
                "W&B: %d records came faster than it took them and are in events.jsonl only",
                self._worker.dropped,
            )

    def _abandon(self) -> None:
        self.finish(False)

    def _give_up(self, reason: str) -> None:
        self._guard.distrust()
        rest = f"; what it took: wandb sync {self._call.folder}" if self._call.folder else ""
        _log.warning("W&B: %s; from here on events.jsonl alone%s", mask_text(reason), rest)


class _Calls:
    """What the worker does, one method per kind of event. Used by its thread alone."""

    def __init__(
        self, run: RunInfo, options: MirrorOptions, *, opened: Callable[[], object]
    ) -> None:
        self.imported, self.opened = threading.Event(), threading.Event()
        self.location = self.folder = ""
        self._info, self._options, self._on_open = run, options, opened
        self._wandb: Any = None
        self._run: Any = None
        self._defined: set[str] = set()
        self._uses: dict[str, str] = {}

    def open(self) -> None:
        if not self._options.online:
            # Or W&B's own telemetry would reach for the network when the process exits.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        finally:
            self.imported.set()
        self._wandb = wandb
        before = sys.exit, sys.excepthook
        self._run = self._init()
        _restore(*before)
        self._on_open()
        self.folder = str(Path(self._run.dir).parent)
        self.location = self._run.url if self._options.online else self.folder
        self.opened.set()

    def scalars(self, axis: dict[str, Any], values: dict[str, Any]) -> None:
        along = next((x for x in X_AXES if x in axis), next(iter(axis), None))
        self._define(values, axis, along)
        self._log_row(axis | values)

    def histograms(
        self, axis: dict[str, Any], along: str, scalars: dict[str, Any], values: dict[str, Any]
    ) -> None:
        self._define([*scalars, *values], axis, along)
        drawn = {
            name: self._wandb.Histogram(np_histogram=(found["counts"], found["edges"]))
            for name, found in values.items()
        }
        self._log_row(axis | scalars | drawn)

    def curves(self, name: str, x_name: str, x: list[Any], ys: dict[str, list[Any]]) -> None:
        if x and ys:
            self._log_row({name: self._chart(name, x_name, x, ys)})

    def table(self, name: str, columns: list[Any], rows: list[Any]) -> None:
        table = self._wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        self._log_row({name: table})

    def image(self, name: str, path: str, caption: str) -> None:
        self._log_row({name: self._wandb.Image(path, caption=caption or None)})

    def artifact(self, name: str, type: str, path: str, metadata: dict[str, Any]) -> None:
        made = self._reference(name, type, path, metadata)
        self._run.log_artifact(made, aliases=["latest"])

    def uses(self, name: str, type: str, path: str) -> None:
        """Offline W&B has no way to say it, so it stands in the config too: `uses.<type>`."""
        before = self._uses.get(type)
        self._uses[type] = name if before is None else f"{before}, {name}"
        self._run.config.update({"uses": dict(self._uses)}, allow_val_change=True)
        if not self._options.online:
            return
        try:
            self._run.use_artifact(self._reference(name, type, path, {}))
        except (self._wandb.errors.CommError, ValueError) as error:
            _log.info("W&B: %s is not linked to this run (%s)", name, describe(error))

    def summary(self, values: dict[str, Any]) -> None:
        self._run.summary.update(values)

    def close(self, ok: bool) -> None:
        self._run.finish(exit_code=0 if ok else 1)

    def _init(self) -> Any:
        info, options, wandb = self._info, self._options, self._wandb
        settings = wandb.Settings(
            init_timeout=options.init_timeout,
            console="off",
            reinit="create_new",
            save_code=False,
            symlink=False,
            disable_code=True,
            disable_git=True,
            label_disable=True,
            x_disable_stats=True,
            x_disable_meta=True,  # it holds the command line, and that may hold anything
        )
        wandb.setup(settings=wandb.Settings(silent=True))
        return wandb.init(
            project=options.project,
            entity=options.entity,
            dir=str(info.folder),
            mode="online" if options.online else "offline",
            id=info.run_id,
            resume="never",
            name=info.name,
            group=info.group,
            job_type=info.job_type and info.job_type[:MAX_NAME],
            tags=[tag[:MAX_NAME] for tag in info.tags],
            config=dict(info.config),
            settings=settings,
        )

    def _reference(self, name: str, type: str, path: str, metadata: dict[str, Any]) -> Any:
        made = self._wandb.Artifact(_artifact_name(name), type=type, metadata=metadata)
        where = Path(path).resolve()
        made.add_reference(where.as_uri(), checksum=_bytes(where) <= CHECKSUM_BYTES)
        return made

    def _log_row(self, row: dict[str, Any]) -> None:
        self._run.log({metric_name(name): value for name, value in row.items()})

    def _chart(self, name: str, x_name: str, x: list[Any], ys: dict[str, list[Any]]) -> Any:
        """At most MAX_LINES lines, evenly spread over `ys`; NaN and infinities are gaps."""
        most = max(1, min(MAX_LINES, MAX_CHART_ROWS // len(x)))
        keys = spread(list(ys), most)
        if len(keys) < len(ys):
            words = "W&B: the chart %s shows %d of %d curves; events.jsonl has them all"
            _log.info(words, name, len(keys), len(ys))
        lines = [[None if isinstance(y, str) else y for y in ys[key]] for key in keys]
        return self._wandb.plot.line_series(xs=x, ys=lines, keys=keys, title=name, xname=x_name)

    def _define(self, names: Any, axis: dict[str, Any], along: str | None) -> None:
        """Tells W&B once per name what it is drawn against."""
        for name in [name for name in axis if name not in self._defined]:
            self._run.define_metric(metric_name(name), hidden=True)
            self._defined.add(name)
        for name in [name for name in names if name not in self._defined]:
            self._run.define_metric(metric_name(name), step_metric=along and metric_name(along))
            self._defined.add(name)


_guards: dict[int, ExitGuard] = {}


def _guard(limit: float) -> ExitGuard:
    """This process's guard, made with its first mirror."""
    if os.getpid() not in _guards:
        _guards[os.getpid()] = ExitGuard("wandb", "opentelemetry", limit=limit)
    return _guards[os.getpid()]


def _restore(exit_function: Any, excepthook: Any) -> None:
    """Takes back the two functions that wandb replaces to learn the exit code: it is told it."""
    for name, before in (("exit", exit_function), ("excepthook", excepthook)):
        if (getattr(getattr(sys, name), "__module__", None) or "").startswith("wandb."):
            setattr(sys, name, before)


def metric_name(name: str) -> str:
    """What a metric is called in W&B: of one whose name has a dot, it does not find the x axis."""
    return name.replace(".", "/")


def spread(names: list[str], most: int) -> list[str]:
    """At most `most` of `names`, evenly spaced, with both ends."""
    if len(names) <= most:
        return names
    return [names[i * (len(names) - 1) // max(1, most - 1)] for i in range(most)]


def _artifact_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)[:128]


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
