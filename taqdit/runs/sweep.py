"""The course of a sweep: every job is checked before the first, failures are told, jobs compared.

What a job leaves is in its folder, so that it does not matter which launcher ran it, or where:
`fail` writes there how a job failed, `SweepReport` reads it when the last job has ended.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taqdit import config as configuration
from taqdit.config import SweepJob
from taqdit.errors import TaqditError
from taqdit.report.run_folder import OK, OVERRIDES, SUMMARY, RunFolder
from taqdit.store import make_folder, publish_json
from taqdit.words import listed

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)
GOOD = (OK, "preflight")  # how a job that did not fail ends
SHOWN = 3  # jobs that are named beside a problem that several have
report: SweepReport | None = None  # of the sweep that this process runs


class Refused(BaseException):
    """A sweep that must not start; `error` says why.

    No Exception: Hydra makes those of a callback a warning and goes on.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class SweepReport(configuration.Callback):
    """Hydra's callback around a sweep (`hydra.callbacks.sweep`); a single run takes no notice.

    `error` holds what went wrong once the sweep has ended, else None.
    """

    def __init__(self) -> None:
        self.jobs: list[SweepJob] | None = None
        self.error: TaqditError | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Compose and check every job. Raises Refused, and nothing runs, if one has a problem."""
        global report
        report = self
        try:
            self.jobs = configuration.sweep_jobs(config)
            problems = [*configuration.launcher_problems(config), *problems_of(self.jobs or [])]
            configuration.raise_problems(problems)
        except Exception as error:
            raise Refused(error) from error

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Find the jobs that failed and compare all of them, on a page in the sweep's folder."""
        into = Path(config.hydra.sweep.dir).resolve()
        jobs = _found(into) if self.jobs is None else self.jobs
        folders = [job.folder for job in jobs if job.folder is not None]
        self.error = failures(jobs)
        if any(RunFolder(folder).went_well for folder in folders):
            self._compare(folders, into)

    def _compare(self, folders: Sequence[Path], into: Path) -> None:
        """Write the page, then track what it says. A failure of either hides none of the jobs'."""
        what = "the jobs are not compared"
        try:
            from taqdit.report.comparison.side_by_side import compare, track

            comparison = compare(folders, into)
            print(f"comparison    {into / 'comparison.html'}", flush=True)
            what = "the comparison is not tracked"
            if tracked := track(comparison):
                print(f"{'tracking':<14}{tracked}", flush=True)
        except Exception as error:
            if not isinstance(error, TaqditError):
                traceback.print_exc()  # a fault of ours
            kind, texts = type(self.error or error), self.error.args if self.error else ()
            kind = kind if issubclass(kind, TaqditError) else TaqditError
            self.error = kind(*texts, f"{what}: {error}")


def _found(into: Path) -> list[SweepJob]:
    """The jobs of a sweeper that chose them as it went, by their folders' names."""
    folders = sorted(path.parent.parent for path in into.glob(f"*/{OVERRIDES}"))
    return [SweepJob(number, (path.name,), path) for number, path in enumerate(folders)]


def problems_of(jobs: Sequence[SweepJob]) -> list[configuration.Problem]:
    """The problems of all jobs, equal ones once, each with the jobs that have it."""
    jobs_with: dict[configuration.Problem, list[SweepJob]] = {}
    for job in jobs:
        for problem in job.problems:
            jobs_with.setdefault(problem, []).append(job)
    return [
        configuration.Problem(f"{problem.text}: {_named(having, of=len(jobs))}", problem.exit_code)
        for problem, having in jobs_with.items()
    ]


def _named(jobs: Sequence[SweepJob], *, of: int) -> str:
    if len(jobs) == of > SHOWN:
        return f"all {of} jobs"
    return listed(jobs, SHOWN)


def fail(folder: Path, error: Exception) -> None:
    """Say in a job's log and in its summary that it failed, how, and what it would exit with."""
    texts = error.args if isinstance(error, TaqditError) else (f"{type(error).__name__}: {error}",)
    for text in texts:
        log.error("the job failed: %s", text)
    log.debug("the job failed", exc_info=error)
    code = getattr(error, "exit_code", TaqditError.exit_code)
    ending = {"status": "failed", "error": "; ".join(map(str, texts)), "exit_code": code}
    try:
        make_folder(folder)
        publish_json(folder / SUMMARY, {**RunFolder(folder).legible(SUMMARY), **ending})
    except TaqditError as full:
        log.error("%s", full)


def failures(jobs: Sequence[SweepJob]) -> TaqditError | None:
    """One error for all jobs that failed, each with its overrides; of the first one's kind."""
    kinds = {kind.exit_code: kind for kind in TaqditError.__subclasses__()}
    texts: list[str] = []
    codes: list[int] = []
    for job in jobs:
        summary = RunFolder(job.folder).legible(SUMMARY) if job.folder is not None else {}
        if summary.get("status") in GOOD:
            continue
        missing = f"left no {SUMMARY}: it was not run to its end"
        said = summary.get("error") or summary.get("status") or missing
        texts.append(f"{job} failed: {said}")
        codes.append(summary.get("exit_code", TaqditError.exit_code))
    return kinds.get(codes[0], TaqditError)(*texts) if texts else None


def tell_failures() -> None:
    """Say on stderr which jobs of this process's sweep failed so far."""
    error = failures(report.jobs or []) if report else None
    for text in error.args if error else ():
        print(f"taqdit: {text}", file=sys.stderr)
