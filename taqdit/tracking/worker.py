"""Calls into foreign code that may fail or hang, made where that harms nobody."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_POLL = 0.05  # seconds between looks at a call that has not come back


@dataclass(frozen=True)
class _Job:
    what: str
    call: Callable[[], Any]
    limit: float  # seconds


class Worker:
    """One daemon thread that makes the submitted calls in order.

    Nothing a call does reaches the caller. The first failure, an exception or a call over its
    limit, is reported once; from then on every submission is ignored. A full queue drops what is
    submitted and counts it.
    """

    def __init__(self, name: str, *, capacity: int, report: Callable[[str], None]) -> None:
        self.dropped = 0
        self._report = report
        self._jobs: queue.Queue[_Job | None] = queue.Queue(capacity)
        self._current: tuple[_Job, float] | None = None
        self._failed = False
        self._lock = threading.Lock()
        self._done = threading.Event()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, what: str, call: Callable[[], Any], *, limit: float) -> None:
        """Queues a call that may take `limit` seconds. Returns at once."""
        if self._done.is_set() or not self.working():
            return
        try:
            self._jobs.put_nowait(_Job(what, call, limit))
        except queue.Full:
            self.dropped += 1

    def working(self) -> bool:
        """False once a call has failed, or has now been found over its limit."""
        if current := self._current:
            job, began = current
            if time.monotonic() - began > job.limit:
                self.fail(f"{job.what} gave no answer within {job.limit:g} s")
        with self._lock:  # a failure counts once it has been reported
            return not self._failed

    def close(self, what: str, call: Callable[[], Any], *, limit: float) -> bool:
        """Makes one last call after all others; waits at most `limit` seconds for everything.

        Returns True if every queued call was made and none failed.
        """
        deadline = time.monotonic() + limit
        last: list[_Job | None] = [None, _Job(what, call, limit)]
        while self.working() and not self._done.is_set():
            if time.monotonic() > deadline:
                self.fail(f"{what} did not end within {limit:g} s")
            elif last:
                self._offer(last)
            else:
                self._done.wait(_POLL)
        return not self._failed

    def fail(self, reason: str) -> None:
        """Reports `reason` if it is the first one, and stops taking calls."""
        with self._lock:
            if not self._failed:
                self._failed = True
                self._report(reason)

    def _offer(self, last: list[_Job | None]) -> None:
        try:
            self._jobs.put(last[-1], timeout=_POLL)
            last.pop()
        except queue.Full:
            pass

    def _run(self) -> None:
        while not self._failed and (job := self._jobs.get()) is not None:
            self._current = job, time.monotonic()
            try:
                job.call()
            except BaseException as error:  # this thread is the end of the line for anything
                self.fail(f"{job.what} failed ({describe(error)})")
            self._current = None
        self._done.set()


def describe(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
