"""The record every run has: events.jsonl, one JSON object a line, complete whatever else fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from taqdit.errors import CorruptError
from taqdit.store import Journal, reading
from taqdit.store.digest import parse_object
from taqdit.store.disk import guarded
from taqdit.tracking.tracker import RunInfo

EVENTS = "events.jsonl"
_ABOUT = [field.name for field in fields(RunInfo) if field.name != "folder"]


class LocalSink:
    """Writes each event as a line {"kind": ..., "time": ..., ...} of <run folder>/events.jsonl.

    The first line has kind `run`, the last one `finish`. Paths are relative to the run's folder.
    """

    def __init__(self, run: RunInfo) -> None:
        self._folder = run.folder
        self._journal = Journal(run.folder / EVENTS)
        about = {name: getattr(run, name) for name in _ABOUT}
        self.emit("run", about | {"tags": list(run.tags), "config": dict(run.config)})

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


def follow(folder: Path, over: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """The events of a run's folder, also those that are still to be written: until `over()`, which
    may wait a little, has said that no more come. A line that is no event, or whose writer was
    killed in the midst of it, is left out. Raises StorageError if the file cannot be read."""
    rest, last = b"", False
    path = folder / EVENTS
    with guarded("read", path), reading(path) as file:
        while not last:
            last = over()
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                with suppress(ValueError):
                    yield parse_object(line)


def runs_in(events: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each event with the id of the run it belongs to: a folder that was used again holds more
    than one run, each begun by an event `run`."""
    run_id = ""
    for event in events:
        if event.get("kind") == "run":
            run_id = str(event.get("run_id"))
        yield run_id, event


def run_info(folder: Path, event: dict[str, Any]) -> RunInfo:
    """What an event `run` says of its run; older ones say nothing of W&B. Raises CorruptError if
    it does not say what it must."""
    wanted = {"run_id": str, "name": str, "tags": list, "config": dict}
    odd = [name for name, kind in wanted.items() if not isinstance(event.get(name), kind)]
    if odd:
        raise CorruptError(f"{folder / EVENTS}: an event `run` without {' or '.join(odd)}")
    about = {name: event[name] for name in _ABOUT if name in event}
    return RunInfo(folder, **about | {"tags": tuple(map(str, event["tags"]))})
