"""The commands that make again what a store lacks."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from taqdit.store_tools import Survey, Surveyed
from taqdit.store_tools.stage_folder import IMPORTED


def commands(survey: Survey, stages: Iterable[Surveyed]) -> list[str]:
    """The commands that make again what is missing in the stages: of each, the last of the largest
    runs that refer to it, as few as will do."""
    chosen: dict[str, None] = {}
    orphans = []
    for stage in stages:
        if stage.kind == IMPORTED:
            orphans.append(f"taqdit store import of the file that {stage.name} was made of")
            continue
        referring = survey.references(stage)
        runs = [run for run in referring if run.pointer is None]
        if not runs:
            why = "its runs cannot be reached" if referring else "no run refers to it"
            orphans.append(f"the command that made {stage.name} ({why})")
            continue
        most = max(run.trajectories for run in runs)
        best = [run for run in runs if run.trajectories == most][-1]
        chosen[f"taqdit rerun {shlex.quote(str(best.folder))}"] = None
    return [*chosen, *orphans]
