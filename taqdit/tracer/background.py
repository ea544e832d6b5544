"""Work beside the work: one job at a time on a thread of its own, in the order it was given."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache


class Background:
    """Runs a job while the caller goes on; the next one waits until it has ended.

    An error of a job is raised by the next `run` or `wait`.
    """

    def __init__(self) -> None:
        self._job: Future[None] | None = None

    def run(self, job: Callable[[], None]) -> None:
        """Begin a job."""
        self.wait()
        self._job = _thread().submit(job)

    def wait(self) -> None:
        """Until the last job has ended."""
        job, self._job = self._job, None
        if job is not None:
            job.result()


@lru_cache(maxsize=1)
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="taqdit-tracer")
