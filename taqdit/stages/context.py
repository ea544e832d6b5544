"""What the stages of one run share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from taqdit.errors import StorageError
from taqdit.stages.fingerprints import fingerprint
from taqdit.stages.plan import Plan
from taqdit.stages.stage_kind import StageKind
from taqdit.store import Stage
from taqdit.store.document import UNKNOWN, described

log = logging.getLogger(__name__)
POLL_SECONDS = 0.2  # how often work that another process does is looked at
PATIENCE = 30.0  # seconds after which a process that waits says for whom
T = TypeVar("T")


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


class StageContext:
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

    def open(
        self, kind: StageKind, inputs: Mapping[str, Any], *, lost: Mapping[str, Any] | None
    ) -> Stage:
        """The stage's folder; `refresh` moves an existing one aside first. `lost`: as in
        `Stage.open`."""
        mark = fingerprint(inputs)
        if kind.name in self.plan.refresh:
            aside = Stage.set_aside(self.store, kind.name, mark)
            if aside is not None:
                log.info("refresh: the former %s was moved aside to %s", kind.name, aside.name)
        return Stage.open(
            self.store, kind.name, fingerprint=mark, inputs=inputs, backend=self.backend, lost=lost
        )

    @contextmanager
    def stage(self, kind: StageKind) -> Iterator[tuple[Stage, StageReport]]:
        """Open the folder that the plan names of a kind, and report on it."""
        started = time.perf_counter()
        assert kind.inputs is not None
        lost = UNKNOWN if self.plan.allow_backend_change else None
        stage = self.open(kind, kind.inputs(self.plan), lost=lost)
        report = StageReport(kind.name, f"{kind.name}/{stage.folder.name}")
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

    def admit(self, stage: Stage, missing: Iterable[object]) -> None:
        """Ask leave to compute what is missing of a stage, if anything is.

        Raises StorageError if this run may not compute it, or not on this backend.
        """
        count = len(list(missing))
        if not count:
            return
        if stage.name not in self.plan.stages:
            raise StorageError(
                f"the stage {stage.name} lacks {count} units and stages={list(self.plan.stages)}"
                f" does not compute it; add {stage.name} to stages"
                + (", or set tracer=none" if stage.name == "statistics" else "")
            )
        stage.admit(self.backend, allow_change=self.plan.allow_backend_change)


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


def stored(stage: Stage, name: str, read: Callable[[], T]) -> T | None:
    """What `read` gives of a file; None if it is not there, or corrupt, and then moved aside."""
    values: list[T] = []
    stage.valid([name], verify=lambda _: values.append(read()))
    return values[-1] if values else None


def once(
    stage: Stage,
    unit: str,
    read: Callable[[], T | None],
    compute: Callable[[], T],
    write: Callable[[T], object],
) -> T:
    """What is stored of a unit, or what `compute` gives and `write` publishes.

    One process at a time computes; the others wait for it, or take over if it dies. `read` gives
    None as long as nothing is stored.
    """
    value, waiting = read(), Waiting(stage, unit)
    while value is None:
        with stage.claim(unit) as mine:
            value = read()  # another process may have been faster
            if mine and value is None:
                value = compute()
                write(value)
        if value is None:
            waiting.pause()
    return value


def seal(stage: Stage) -> None:
    """Write SEALED.json unless it lists just what the folder holds."""
    if stage.unsealed_or_changed(stage.names()):
        stage.seal()
