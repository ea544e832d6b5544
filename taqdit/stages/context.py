"""What the stages of one run share."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from taqdit.errors import StorageError
from taqdit.stages.plan import Plan, fingerprint
from taqdit.store import Stage
from taqdit.store.document import UNKNOWN, described

log = logging.getLogger(__name__)
POLL_SECONDS = 0.2  # how often work that another process does is looked at
PATIENCE = 30.0  # seconds after which a process that waits says for whom


@dataclass
class StageReport:
    """What a stage made and what it found in the store."""

    name: str
    folder: str
    made: int = 0
    reused: int = 0
    seconds: float = 0.0
    moved_aside: list[tuple[str, str]] = field(default_factory=list)
    note: str | None = None


class Bench:
    """What the stages of one run share: the plan, the store, the backend, the model once loaded."""

    def __init__(self, plan: Plan, store: Path) -> None:
        self.plan, self.store = plan, store
        self.reports: list[StageReport] = []

    @cached_property
    def backend(self) -> dict[str, Any]:
        """Versions, device and BLAS of the arithmetic."""
        from taqdit.backend import describe

        return dict(describe())

    @cached_property
    def model(self) -> Any:
        """The model, loaded when first asked for."""
        log.info("loading %s", self.plan.model.name)
        return self.plan.model.load()

    @contextmanager
    def stage(self, name: str, inputs: dict[str, Any]) -> Iterator[tuple[Stage, StageReport]]:
        """Open a stage's folder and report on it; `refresh` moves an existing one aside first."""
        started = time.perf_counter()
        mark = fingerprint(inputs)
        if name in self.plan.refresh and (aside := Stage.set_aside(self.store, name, mark)):
            log.info("refresh: the former %s was moved aside to %s", name, aside.name)
        stage = Stage.open(
            self.store,
            name,
            fingerprint=mark,
            inputs=inputs,
            backend=self.backend,
            lost=UNKNOWN if self.plan.allow_backend_change else None,
        )
        report = StageReport(name, f"{name}/{stage.folder.name}")
        report.note = stage.backend_note(self.backend)
        if report.note:
            here = described(self.backend)
            log.warning("%s was %s; this is %s", report.folder, report.note, here)
        self.reports.append(report)
        try:
            yield stage, report
        finally:
            report.seconds = round(time.perf_counter() - started, 3)
            report.moved_aside = list(stage.moved_aside)

    def report(self, name: str) -> StageReport:
        """What a stage that has run made and found."""
        return next(report for report in self.reports if report.name == name)

    def require(self, name: str, missing: Iterable[object]) -> None:
        """Raise StorageError if something is missing in a stage that this run may not compute."""
        count = len(list(missing))
        if count and name not in self.plan.stages:
            raise StorageError(
                f"the stage {name} lacks {count} units and stages={list(self.plan.stages)} does"
                f" not compute it; add {name} to stages"
                + (", or set tracer=none" if name == "statistics" else "")
            )


class Waiting:
    """Waits for work that other processes have claimed, and says so once it takes long."""

    def __init__(self, stage: Stage, units: str = "") -> None:
        self._stage, self._units = stage, units
        self._since = time.monotonic()
        self._told = False

    def pause(self) -> None:
        """Sleep until it is time to look again."""
        time.sleep(POLL_SECONDS)
        if not self._told and time.monotonic() - self._since > PATIENCE:
            claims = self._stage.claimants(self._units)
            log.info("waiting for %s", "; ".join(claims) or "another process")
            self._told = True

    def over(self) -> None:
        """There is work again."""
        self._since, self._told = time.monotonic(), False


def seal(stage: Stage) -> None:
    """Write SEALED.json unless it lists just what the folder holds."""
    if stage.unsealed_or_changed(stage.names()):
        stage.seal()
