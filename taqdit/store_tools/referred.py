"""Which stages of a store its runs refer to, themselves or through what they use.

A run's record names the stages it was made with, and files elsewhere that it read. A stage is
referred to as well if one that is was made from it (all its inputs are among the other's), if it is
an analysis of statistics that are, or figures of data that are. Where something cannot be read,
what may belong to it is taken to be referred to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from taqdit.store.digest import STAGE
from taqdit.store_tools import KINDS, RunFound, Survey, Surveyed
from taqdit.store_tools.stage_folder import SEALED
from taqdit.store_tools.survey import digests_of

MADE_FROM = {"trajectories": ("conditioning",), "statistics": ("conditioning", "trajectories")}

Inputs = Mapping[str, Any] | None
"""What a stage was made from; None if its stage.json cannot be read."""


def needed(there: Survey) -> set[Path]:
    """The folders of the stages that are named, and of those that these lead to.

    CorruptError or StorageError for a record that cannot be read: nobody knows what it names.
    """
    for run in there.beside:
        if run.problem is not None:
            raise run.problem
    known = {each: _inputs(each) for each in there.stages if each.kind in KINDS}
    found = {s for s, inputs in known.items() if inputs is None or is_named(s.folder, there.beside)}
    found |= {s for s in known if any(_made_from(top, s, known) for top in found)}
    marks = {(kind, mark[:12]) for run in there.beside for kind, mark in run.stages.items()}
    marks |= {(each.kind, each.folder.name) for each in found}
    figures = {s for s in known if s.kind == "figures" and _shows(known[s], marks)}
    return {each.folder for each in found | figures | _analyses(known, found)}


def is_named(folder: Path, runs: Iterable[RunFound]) -> bool:
    """Whether a run names this folder of the store, or read a file in one of this name: where the
    store was then, and how a path to it was spelled, does not matter."""
    return any(
        run.stages.get(folder.parent.name, "").startswith(folder.name)
        or any(folder.name == part.casefold() for path in run.paths for part in path.parts)
        for run in runs
    )


def _inputs(stage: Surveyed) -> Inputs:
    readable = stage.document and not stage.is_foreign and STAGE not in stage.faults
    return stage.inputs if readable else None


def _made_from(top: Surveyed, stage: Surveyed, known: Mapping[Surveyed, Inputs]) -> bool:
    """Whether the stage `top` was, or may have been, made from the other."""
    if stage.kind not in MADE_FROM.get(top.kind, ()):
        return False
    whole, part = known[top], known[stage]
    return whole is None or part is None or part.items() <= whole.items()


def _shows(inputs: Inputs, marks: Collection[tuple[str, str]]) -> bool:
    """Whether the data that figures show are referred to, be they there or not: `marks` are kinds
    and names of folders."""
    if inputs is None:
        return True
    statistics = inputs.get("statistics")
    shown = [("trajectories", inputs.get("trajectories"))]
    if statistics is not None:
        shown.append(("statistics", statistics[0] if _listed(statistics) else None))
    return all(not isinstance(mark, str) or (kind, mark[:12]) in marks for kind, mark in shown)


def _analyses(known: Mapping[Surveyed, Inputs], found: Iterable[Surveyed]) -> set[Surveyed]:
    """The analyses of statistics that are referred to; all while some of those are not whole."""
    entries = {
        s: inputs for s, inputs in known.items() if inputs is not None and s.kind == "analysis"
    }
    statistics = [each for each in found if each.kind == "statistics"]
    digests = {digest for each in statistics for digest in digests_of(each)} if entries else set()
    if None in digests or any(each.state != SEALED for each in statistics):
        return set(entries)
    return {s for s, inputs in entries.items() if _analyses_any(inputs.get("statistics"), digests)}


def _analyses_any(statistics: Any, digests: Collection[str | None]) -> bool:
    """Whether one of these is among the digests; so it is where they are no list of texts."""
    if not _listed(statistics) or not all(isinstance(each, str) for each in statistics):
        return True
    return any(each in digests for each in statistics)


def _listed(value: Any) -> bool:
    return isinstance(value, list) and bool(value)
