"""Which stages of a store its runs refer to, themselves or through what they use.

A run's record names the stages it was made with, and files elsewhere that it read. A stage is
referred to as well if one that is was made from it (all its inputs are among the other's), or if no
run names its kind and it was made of data that are. Where something cannot be read,
what may belong to it is taken to be referred to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from taqdit.stages import kinds
from taqdit.store.digest import STAGE
from taqdit.store_tools import RunFound, Survey, Surveyed
from taqdit.store_tools.stage_folder import SEALED
from taqdit.store_tools.survey import digests_of

Inputs = Mapping[str, Any] | None
"""What a stage was made from; None if its stage.json cannot be read."""


def needed(there: Survey) -> set[Path]:
    """The folders of the stages that are named, and of those that these lead to.

    CorruptError or StorageError for a record that cannot be read: nobody knows what it names.
    """
    for run in there.beside:
        if run.problem is not None:
            raise run.problem
    stored = kinds.stored().values()
    known = {each: _inputs(each) for each in there.stages if each.kind in kinds.stored()}
    found = {s for s, inputs in known.items() if inputs is None or is_named(s.folder, there.beside)}
    # A stage that no run names is needed because of what it was made from, never the reverse.
    sources = {kind.name: kinds.with_sources(kind.made_from) for kind in stored if kind.inputs}
    found |= {
        s
        for s in known
        if any(
            s.kind in sources.get(top.kind, ()) and _made_from(known[top], known[s])
            for top in found
        )
    }
    marks = {(kind, mark[:12]) for run in there.beside for kind, mark in run.stages.items()}
    marks |= {(each.kind, each.folder.name) for each in found}
    return {each.folder for each in found | _shown(known, marks) | _analyses(known, found)}


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


def _made_from(whole: Inputs, part: Inputs) -> bool:
    """Whether a stage of the inputs `whole` was, or may have been, made from the other."""
    return whole is None or part is None or part.items() <= whole.items()


def _shown(known: Mapping[Surveyed, Inputs], marks: Collection[tuple[str, str]]) -> set[Surveyed]:
    """Those that name fingerprints of data that are all referred to, be they there or not: `marks`
    are kinds and names of folders."""
    found = set()
    for stage, inputs in known.items():
        if (data := kinds.stored()[stage.kind].data) is not None:
            shown = {} if inputs is None else data(inputs)
            if all(
                (kind, mark[:12]) in marks for kind, mark in shown.items() if isinstance(mark, str)
            ):
                found.add(stage)
    return found


def _analyses(known: Mapping[Surveyed, Inputs], found: Iterable[Surveyed]) -> set[Surveyed]:
    """Those that list digests of shards that are referred to; all of a kind while some of the
    stages that those lie in are not whole."""
    needed: set[Surveyed] = set()
    for kind in kinds.stored().values():
        entries = {
            s: inputs for s, inputs in known.items() if inputs is not None and s.kind == kind.name
        }
        if kind.digests_of is None or not entries:
            continue
        sources = [each for each in found if each.kind == kind.digests_of]
        digests = {digest for each in sources for digest in digests_of(each)}
        if None in digests or any(each.state != SEALED for each in sources):
            needed |= set(entries)
        else:
            needed |= {
                s
                for s, inputs in entries.items()
                if _is_among(inputs.get(kind.digests_of), digests)
            }
    return needed


def _is_among(listed: Any, digests: Collection[str | None]) -> bool:
    """Whether one of these is among the digests; so it is where they are no list of texts."""
    if not (isinstance(listed, list) and listed and all(isinstance(x, str) for x in listed)):
        return True
    return any(each in digests for each in listed)
