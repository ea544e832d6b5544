"""The record every run has: events.jsonl, one JSON object a line, complete whatever else fails."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from taqdit.store import Journal
from taqdit.tracking.tracker import RunInfo

EVENTS = "events.jsonl"


class LocalSink:
    """Writes each event as a line {"kind": ..., "time": ..., ...} of <run folder>/events.jsonl.

    The first line has kind `run`, the last one `finish`. Paths are relative to the run's folder.
    """

    def __init__(self, run: RunInfo) -> None:
        self._folder = run.folder
        self._journal = Journal(run.folder / EVENTS)
        about = {"run_id": run.run_id, "name": run.name, "group": run.group}
        what = {"job_type": run.job_type, "tags": list(run.tags), "config": dict(run.config)}
        self.emit("run", about | what)

    @property
    def location(self) -> str:
        """The path of events.jsonl."""
        return str(self._folder / EVENTS)

    def emit(self, kind: str, fields: dict[str, Any]) -> None:
        """One line, on disk when this returns."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        if "path" in fields:
            relative = os.path.relpath(fields["path"], self._folder)
            fields = fields | {"path": Path(relative).as_posix()}
        self._journal.append({"kind": kind, "time": now, **fields})

    def finish(self, ok: bool) -> None:
        """The last line."""
        self.emit("finish", {"ok": ok})
        self._journal.close()
