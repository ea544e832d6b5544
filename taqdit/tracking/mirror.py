"""The mirror of a run in Weights & Biases: `python -m taqdit.tracking.mirror`, a child of the run
(`process.py`) or of `taqdit sync`. The only process that loads wandb.

It reads the run's events.jsonl from its beginning, hands every event to W&B, and ends when the run
has ended: by its last event, or because the process that wrote it is gone. A call that takes too
long ends this process, whatever it hangs in. What it has to say goes to its parent as lines of
JSON: `opened` (where the run is), `note`, `failed` (why it ends), `whole` (W&B has everything).
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from taqdit.store import Journal, make_folder
from taqdit.tracking.events import follow, run_info, runs_in
from taqdit.tracking.process import MirrorOptions
from taqdit.tracking.tracker import RunInfo
from taqdit.words import spaced

STATE = "wandb/mirror.jsonl"  # in the run's folder: what W&B has taken wholly
MAX_LINES = 64  # of one chart: more are slow to draw and cannot be told apart
MAX_CHART_ROWS = 10000  # W&B leaves out what a chart's table holds beyond
MAX_EXIT = 10.0  # seconds for W&B's own exit hooks
MAX_NAME = 64  # of a tag, a job type
X_AXES = ("sigma", "timestep", "step")  # what curves are drawn against, by preference
CHECKSUM_BYTES = 64 * 2**20  # larger references are identified by their address alone
_GRACE = 5.0  # seconds more for what hangs where no signal is seen
_POLL = 0.1  # seconds between looks at a file that grows


class Parent:
    """The process that started this one. The standard output belongs to what is said to it."""

    def __init__(self) -> None:
        self._pid, self._line = os.getppid(), os.dup(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def say(self, **what: Any) -> None:
        """One line; nobody may be there any more to read it."""
        with suppress(OSError):
            os.write(self._line, json.dumps(what).encode() + b"\n")

    def silent(self) -> bool:
        """Whether it has written all it will, looking for a moment: our standard input, which it
        never uses, is closed, or it is no longer our parent."""
        return bool(select.select([0], [], [], _POLL)[0]) or os.getppid() != self._pid


class Limits:
    """Ends this process when a call into wandb raises, or is not back in time."""

    def __init__(self, parent: Parent, options: MirrorOptions) -> None:
        self._parent, self._options, self._end = parent, options, math.inf

    def over(self) -> bool:
        """Whether no more events are written; from then on `finish_timeout` holds for the rest."""
        over = self._parent.silent()
        if over and self._end == math.inf:
            self._end = time.monotonic() + self._options.finish_timeout
        return over

    @contextmanager
    def within(self, what: str, seconds: float) -> Iterator[None]:
        """So long may the call in the block take. Only these blocks may end the process."""
        late = f"{what} gave no answer within {seconds:g} s"
        if (left := self._end - time.monotonic()) < seconds:
            late = f"finish did not end within {self._options.finish_timeout:g} s"

        def stop(*_: Any) -> None:
            self._fail(late)

        signal.signal(signal.SIGALRM, stop)
        limit = max(0.001, min(left, seconds))
        signal.setitimer(signal.ITIMER_REAL, limit)
        # What hangs in C never comes to that handler; a thread that needs no Python ends it.
        faulthandler.dump_traceback_later(limit + _GRACE, exit=True)
        try:
            yield
        except BaseException as error:  # whatever of W&B's many kinds
            self._fail(f"{what} failed ({describe(error)})")
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()

    def _fail(self, reason: str) -> None:
        """End without W&B's exit hooks: they would wait for something that never comes."""
        self._parent.say(failed=reason)
        os._exit(1)


def main(folder: Path, run_id: str, options: MirrorOptions) -> None:
    """Mirror one run of a folder from its first event to its last."""
    parent = Parent()
    limits = Limits(parent, options)
    events = (event for run, event in runs_in(follow(folder, limits.over)) if run == run_id)
    with limits.within("init", options.init_timeout):
        mirror = _Mirror(run_info(folder, next(events)), options, parent)
    taken, ok = 1, False
    for event in events:
        taken += 1
        if event.get("kind") == "finish":
            ok = bool(event.get("ok"))
            break
        with limits.within(str(event.get("kind")), options.call_timeout):
            mirror.take(event)
    with limits.within("finish", options.finish_timeout):
        mirror.close(ok)
        record_taken(folder, run_id, taken, online=options.online)
    parent.say(whole=taken)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, min(MAX_EXIT, options.finish_timeout))


def record_taken(folder: Path, run_id: str, events: int, *, online: bool) -> None:
    """Note in the run's folder how many of its events W&B has taken: all that there are."""
    make_folder((folder / STATE).parent)
    state = Journal(folder / STATE)
    state.append({"run_id": run_id, "online": online, "events": events})
    state.close()


class _Mirror:
    """A run in W&B, told by the events of another: one method per kind."""

    def __init__(self, run: RunInfo, options: MirrorOptions, parent: Parent) -> None:
        import wandb

        self._info, self._options, self._parent = run, options, parent
        self._wandb: Any = wandb
        self._run = self._init()
        self._defined: set[str] = set()
        self._uses: dict[str, str] = {}
        folder = str(Path(self._run.dir).parent)
        parent.say(opened=self._run.url if options.online else folder)

    def take(self, event: dict[str, Any]) -> None:
        """Hand one event to W&B. Kinds that are not known (yet) are left out."""
        fields = {name: value for name, value in event.items() if name not in ("kind", "time")}
        if "path" in fields:
            fields["path"] = str((self._info.folder / fields["path"]).resolve())
        if event.get("kind") in KINDS:
            getattr(self, event["kind"])(**fields)

    def scalars(self, axis: dict[str, Any], values: dict[str, Any]) -> None:
        """The numbers of one point: a row."""
        along = next((x for x in X_AXES if x in axis), next(iter(axis), None))
        self._define(values, axis, along)
        self._log_row(axis | values)

    def histograms(
        self, axis: dict[str, Any], along: str, scalars: dict[str, Any], values: dict[str, Any]
    ) -> None:
        """The histograms and numbers of one point: a row."""
        self._define([*scalars, *values], axis, along)
        drawn = {
            name: self._wandb.Histogram(np_histogram=(found["counts"], found["edges"]))
            for name, found in values.items()
        }
        self._log_row(axis | scalars | drawn)

    def curves(self, name: str, x_name: str, x: list[Any], ys: dict[str, list[Any]]) -> None:
        """One chart of whole curves; none without points."""
        if x and ys:
            self._log_row({name: self._chart(name, x_name, x, ys)})

    def table(self, name: str, columns: list[Any], rows: list[Any]) -> None:
        """Rows of plain values."""
        table = self._wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        self._log_row({name: table})

    def image(self, name: str, path: str, caption: str) -> None:
        """A picture, if its file is still there."""
        if Path(path).is_file():
            self._log_row({name: self._wandb.Image(path, caption=caption or None)})
        else:
            self._parent.say(note=f"{path} is not there any more")

    def artifact(self, name: str, type: str, path: str, metadata: dict[str, Any]) -> None:
        """A reference to a file or folder."""
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
            self._parent.say(note=f"{name} is not linked to this run ({describe(error)})")

    def summary(self, values: dict[str, Any]) -> None:
        """Final values."""
        self._run.summary.update(values)

    def close(self, ok: bool) -> None:
        self._run.finish(exit_code=0 if ok else 1)

    def _init(self) -> Any:
        info, options, wandb = self._info, self._options, self._wandb
        place = info.wandb or info.config.get("tracking") or {}  # older events have the latter
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
            project=place.get("project") or "taqdit",
            entity=place.get("entity"),
            dir=options.scratch or str(info.folder),
            mode="online" if options.online else "offline",
            id=info.run_id,
            resume=None if options.scratch else "never",
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
        small = where.exists() and _bytes(where) <= CHECKSUM_BYTES
        made.add_reference(where.as_uri(), checksum=small)
        return made

    def _log_row(self, row: dict[str, Any]) -> None:
        self._run.log({metric_name(name): value for name, value in row.items()})

    def _chart(self, name: str, x_name: str, x: list[Any], ys: dict[str, list[Any]]) -> Any:
        """At most MAX_LINES lines, evenly spread over `ys`; NaN and infinities are gaps."""
        most = max(1, min(MAX_LINES, MAX_CHART_ROWS // len(x)))
        keys = spaced(list(ys), most)
        if len(keys) < len(ys):
            words = f"the chart {name} shows {len(keys)} of {len(ys)} curves"
            self._parent.say(note=f"{words}; events.jsonl has them all")
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


KINDS = ("scalars", "histograms", "curves", "table", "image", "artifact", "uses", "summary")


def metric_name(name: str) -> str:
    """What a metric is called in W&B: of one whose name has a dot, it does not find the x axis."""
    return name.replace(".", "/")


def _artifact_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)[:128]


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def describe(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], MirrorOptions(**json.loads(sys.argv[3])))
