"""`taqdit store repair`: what is corrupt is moved aside, for the next run to make again.

Nothing is deleted but a seal, which a run writes again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from taqdit.errors import StorageError
from taqdit.store import Stage
from taqdit.store.aside import set_aside
from taqdit.store.digest import SEAL, STAGE
from taqdit.store.disk import Identity, identity_at
from taqdit.store_tools.look import STAGE_HELP, parser, survey_of, tell
from taqdit.store_tools.remedies import commands
from taqdit.store_tools.stage_folder import IMPORTED, Surveyed, survey_stage
from taqdit.store_tools.survey import Survey
from taqdit.store_tools.verification import Checked, Finding, verify
from taqdit.words import counted

MOVED, UNSEALED, REPLACED, LEFT = "moved aside", "unsealed", "set aside", "left alone"


@dataclass(frozen=True)
class Repaired:
    """What was done (or would be) about a finding, and where the file is now."""

    action: str
    finding: Finding
    target: Path | None = None
    why: str = ""


def repair_stages(checked: Iterable[Checked], *, dry_run: bool) -> Iterator[Repaired]:
    """Repair the stages, yielding what is done with each finding that says corrupt.

    A stage that a living process works on is left alone. StorageError as the disk gives it.
    """
    for verified in checked:
        if verified.corrupt:
            yield from _Repair(verified.stage, dry_run).run(verified.corrupt)


class _Repair:
    """Of one stage."""

    def __init__(self, stage: Surveyed, dry_run: bool) -> None:
        self.stage, self.dry_run = stage, dry_run
        self._seen: dict[str, Identity | None] = {}

    def run(self, findings: list[Finding]) -> Iterator[Repaired]:
        """Do about each finding what can be done."""
        if self.stage.unlisted:
            yield from (Repaired(LEFT, finding) for finding in findings)
            return
        self._see(STAGE, SEAL)
        now = self.stage = survey_stage(self.stage.folder)
        if not now.held:
            self._see(*now.files)
            (checked,) = verify([now])  # as it is now
            corrupt = checked.corrupt
            now = survey_stage(now.folder)  # a run may have begun while all that was read
        if now.held:
            why = f"another process works on it ({now.held[0]}); repair when it has ended, or"
            why += " delete that file if there is none"
            yield from (Repaired(LEFT, finding, why=why) for finding in findings)
            return
        files = {finding.file for finding in corrupt}
        for finding in findings:
            if finding.file not in files:
                yield Repaired(LEFT, finding, why="it is whole by now")
        whole = [finding for finding in corrupt if finding.kind == "stage"]
        for finding in whole[:1] or _by_file(corrupt):
            yield self._repair(finding)

    def _see(self, *names: str) -> None:
        """Note which files these are, before they are read."""
        self._seen |= {name: identity_at(self.stage.folder / name) for name in names}

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
        """What was made anew while the stage was read is left as it is."""
        name, seen = finding.file or "", self._seen
        changed = Repaired(LEFT, finding, why="it has changed since it was read")
        if name in seen and identity_at(self.stage.folder / name) != seen[name]:
            return changed
        if finding.kind == "stage":
            return self._replace(finding)
        if finding.kind == "unreadable":
            return Repaired(LEFT, finding, why="check the disk and the file's permissions")
        imported, in_place = self.stage.kind == IMPORTED, name in self.stage.files
        if not name and imported:
            return Repaired(LEFT, finding, why="import it again, which moves aside what differs")
        if finding.kind == "missing" and imported:  # only the seal has each file's digest
            return Repaired(LEFT, finding, why="import it again, which stores it again")
        if self.dry_run:
            return Repaired(MOVED if in_place else UNSEALED, finding)
        stage = Stage(self.stage.folder, self.stage.kind, self.stage.fingerprint)
        if in_place:
            judged = seen[name]
            target = stage.quarantine(name, finding.words, judged=judged, keep_seal=imported)
            return Repaired(MOVED, finding, target) if target else changed
        stage.unseal()
        return Repaired(UNSEALED, finding)


def _by_file(findings: list[Finding]) -> Iterator[Finding]:
    """All that is wrong with a file as one finding."""
    for file in dict.fromkeys(finding.file for finding in findings):
        of_file = [finding for finding in findings if finding.file == file]
        yield replace(of_file[0], words="; ".join(finding.words for finding in of_file))


def repair(arguments: Sequence[str]) -> int:
    """Move what is corrupt aside, so that the next run makes it again; deletes nothing."""
    options = parser(
        "repair",
        "Verify a store, and move what is corrupt aside, for the next run to make it again. Deletes"
        " nothing; the exit code is 4 if something had to be left alone.",
    )
    options.add_argument("--stage", metavar="NAME", help=STAGE_HELP)
    options.add_argument(
        "--dry-run", action="store_true", help="say what would be done, do nothing"
    )
    given = options.parse_args(list(arguments))
    survey = survey_of(given.folder)
    logging.getLogger("taqdit").addHandler(logging.NullHandler())  # all of it is printed here
    checked = verify(survey.chosen(given.stage))
    done = []
    for repaired in repair_stages(checked, dry_run=given.dry_run):
        done.append(repaired)
        tell(_line(repaired, dry_run=given.dry_run))
    _print_summary(survey, done, dry_run=given.dry_run)
    return StorageError.exit_code if any(repaired.action == LEFT for repaired in done) else 0


def _line(repaired: Repaired, *, dry_run: bool) -> str:
    parts = [
        f"{'would be ' if dry_run and repaired.action != LEFT else ''}{repaired.action}",
        str(repaired.finding),
    ]
    if repaired.target is not None:
        parts.append(f"-> {repaired.target.name}")
    if repaired.why:
        parts.append(f"({repaired.why})")
    return "  ".join(parts)


def _print_summary(survey: Survey, done: Sequence[Repaired], *, dry_run: bool) -> None:
    if not done:
        tell("nothing is corrupt; nothing was changed")
        return
    mended = [repaired for repaired in done if repaired.action != LEFT]
    if dry_run:
        tell(f"nothing was changed; repair would deal with {len(mended)} of {len(done)}")
        return
    tell(f"{len(mended)} of {len(done)} dealt with")
    if mended:
        names = {repaired.finding.stage for repaired in mended}
        for command in commands(survey, [s for s in survey.stages if s.name in names]):
            tell(f"go on with: {command}")
