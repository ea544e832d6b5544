"""What is corrupt is moved aside, so that the next run makes just that again.

Nothing is deleted but a seal, which a run writes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from taqdit.errors import StorageError
from taqdit.store import Stage
from taqdit.store.aside import set_aside
from taqdit.survey.stages import IMPORTED, STAGE, Surveyed, survey_stage
from taqdit.survey.verifying import Checked, Finding, verify
from taqdit.survey.words import counted

MOVED, UNSEALED, REPLACED, LEFT = "moved aside", "unsealed", "set aside", "left alone"


@dataclass(frozen=True)
class Repaired:
    """What was done (or would be) about a finding, and where the file is now."""

    action: str
    finding: Finding
    target: Path | None = None
    why: str = ""


def repair(checked: Iterable[Checked], *, dry_run: bool) -> Iterator[Repaired]:
    """Repair the stages, yielding what is done with each finding that says corrupt.

    A stage that a living process works on is left alone. StorageError as the disk gives it.
    """
    for each in checked:
        if each.corrupt:
            yield from _Repair(each.stage, dry_run).run(each.corrupt)


class _Repair:
    """Of one stage."""

    def __init__(self, stage: Surveyed, dry_run: bool) -> None:
        self.stage, self.dry_run = stage, dry_run

    def run(self, findings: list[Finding]) -> Iterator[Repaired]:
        """Do about each finding what can be done."""
        if self.stage.unlisted:
            yield from (Repaired(LEFT, each) for each in findings)
            return
        now = survey_stage(self.stage.folder)
        if now.held:
            why = f"another process works on it ({now.held[0]}); repair when it has ended, or"
            why += " delete that file if there is none"
            yield from (Repaired(LEFT, each, why=why) for each in findings)
            return
        self.stage = now
        found = [each for checked in verify([now]) for each in checked.corrupt]  # as it is now
        for each in findings:
            if each.file not in {still.file for still in found}:
                yield Repaired(LEFT, each, why="it is whole by now")
        for each in found:
            if each.kind == "stage":
                yield self._replace(each)
                return
        for each in _by_file(found):
            yield self._repair(each)

    def _replace(self, finding: Finding) -> Repaired:
        """The shards say whose they are; on which backends they were made, only stage.json did. A
        run goes on with them where that may be."""
        units = counted(self.stage.units, self.stage.unit)
        why = f"all of it, {units}, is made again"
        if self.stage.kind != IMPORTED:
            why += f"; to keep them, rename it back without its {STAGE} and run with"
            why += " allow_backend_change=true"
        if self.dry_run:
            return Repaired(REPLACED, finding, why=why)
        try:
            return Repaired(REPLACED, finding, set_aside(self.stage.folder), why)
        except StorageError as error:
            return Repaired(LEFT, finding, why=str(error))

    def _repair(self, finding: Finding) -> Repaired:
        if finding.kind == "unreadable":
            return Repaired(LEFT, finding, why="check the disk and the file's permissions")
        name = finding.file
        in_place = name is not None and name in self.stage.files
        if self.dry_run:
            return Repaired(MOVED if in_place else UNSEALED, finding)
        stage = Stage(self.stage.folder, self.stage.kind, self.stage.fingerprint)
        if in_place and name is not None and stage.path(name).exists():
            return Repaired(MOVED, finding, stage.quarantine(name, finding.words))
        stage.unseal()
        return Repaired(UNSEALED, finding)


def _by_file(findings: list[Finding]) -> Iterator[Finding]:
    """All that is wrong with a file as one finding."""
    for file in dict.fromkeys(each.file for each in findings):
        of_file = [each for each in findings if each.file == file]
        yield replace(of_file[0], words="; ".join(each.words for each in of_file))
