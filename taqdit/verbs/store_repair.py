"""`taqdit store repair`: corrupt files are moved aside, so that a run makes them again."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Sequence

from taqdit.errors import StorageError
from taqdit.survey import Repaired, Survey, Surveyed, verify
from taqdit.survey import repair as repair_stages
from taqdit.survey.repairing import LEFT
from taqdit.survey.stages import IMPORTED
from taqdit.verbs.store_look import STAGE_HELP, parser, survey, tell


def repair(arguments: Sequence[str]) -> int:
    """Move what is corrupt aside, so that the next run makes it again; deletes nothing."""
    found = parser(
        "repair",
        "Verify a store, and move what is corrupt aside, for the next run to make it again. Deletes"
        " nothing; the exit code is 4 if something had to be left alone.",
    )
    found.add_argument("--stage", metavar="NAME", help=STAGE_HELP)
    found.add_argument("--dry-run", action="store_true", help="say what would be done, do nothing")
    given = found.parse_args(list(arguments))
    there = survey(given.folder)
    logging.getLogger("taqdit").addHandler(logging.NullHandler())  # all of it is printed here
    checked = verify(there.chosen(given.stage))
    done = []
    for each in repair_stages(checked, dry_run=given.dry_run):
        done.append(each)
        tell(_line(each, dry_run=given.dry_run))
    _print_summary(there, done, dry_run=given.dry_run)
    return StorageError.exit_code if any(each.action == LEFT for each in done) else 0


def _line(each: Repaired, *, dry_run: bool) -> str:
    words = [
        f"{'would be ' if dry_run and each.action != LEFT else ''}{each.action}",
        str(each.finding),
    ]
    if each.target is not None:
        words.append(f"-> {each.target.name}")
    if each.why:
        words.append(f"({each.why})")
    return "  ".join(words)


def _print_summary(there: Survey, done: Sequence[Repaired], *, dry_run: bool) -> None:
    if not done:
        tell("nothing is corrupt; nothing was changed")
        return
    mended = [each for each in done if each.action != LEFT]
    if dry_run:
        tell(f"nothing was changed; repair would deal with {len(mended)} of {len(done)}")
        return
    tell(f"{len(mended)} of {len(done)} dealt with")
    if mended:
        names = {each.finding.stage for each in mended}
        for command in commands(there, [s for s in there.stages if s.name in names]):
            tell(f"go on with: {command}")


def commands(there: Survey, stages: Iterable[Surveyed]) -> list[str]:
    """The commands that make again what is missing in the stages: of each, the last of the largest
    runs that refer to it, as few as will do."""
    chosen: dict[str, None] = {}
    orphans = []
    for stage in stages:
        if stage.kind == IMPORTED:
            orphans.append(f"taqdit store import of the file that {stage.name} was made of")
            continue
        referring = there.references(stage)
        runs = [run for run in referring if run.pointer is None]
        if not runs:
            why = "its runs cannot be reached" if referring else "no run refers to it"
            orphans.append(f"the command that made {stage.name} ({why})")
            continue
        most = max(run.trajectories for run in runs)
        best = [run for run in runs if run.trajectories == most][-1]
        chosen[f"taqdit rerun {shlex.quote(str(best.folder))}"] = None
    return [*chosen, *orphans]
