"""What in a store nothing needs: found, and removed so that no run can lose by it.

Nothing but the order of looking and renaming keeps a run and a removal apart:

- A run writes down what it refers to (`publish_record`), and only then looks for any stage.
- A removal looks at the runs, renames the folder away, looks at the runs again, and deletes.

A run whose record is there at the first look keeps its stages. One whose record comes between the
looks is seen at the second, and the folder is put back, unless that run has made its own
meanwhile, which then stays. One whose record comes later looks after the folder has gone: it finds
nothing and makes its own. So no stage goes that a run has found, and none comes back over what a
run has made. A run that looks in the instant between the renamings may find the stage gone under
its hands: it then ends with a StorageError, has lost nothing, and finds the stage when it is
started again.

`refresh` and `repair` rename folders too. Each renaming holds the claim beside the folder, and one
that does not get it leaves the folder alone. A repair moves single files aside, within a folder
that is renamed as a whole, or finds it gone.

This holds wherever renaming is atomic and a record that was written is seen by whoever lists its
folder next. A network file system may show other hosts an old list for some seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from taqdit.record import POINTERS
from taqdit.store import disk
from taqdit.store.aside import FIRST, REMOVED, claim_of, delete, put_back, rename_away
from taqdit.store.claim import claim
from taqdit.store.held import is_held
from taqdit.survey import KINDS, Survey
from taqdit.survey.runs import pointed_to, pointers, runs_of
from taqdit.survey.stages import IMPORTED, is_stage_name, sizes_below, survey_stage
from taqdit.verbs.referred import is_named, needed

UNREFERRED = "no run refers to it"
REPLACED = "replaced by a newer one"
INTERRUPTED = "left by a removal that was cut off"
BAD = "moved aside as damaged"
LEFTOVER = "left by a process that has died"
DELETED = "its run is gone from the folder that it names"


@dataclass(frozen=True)
class Garbage:
    """Something that can be removed: where, how large (bytes), and why nothing needs it."""

    path: Path
    size: int
    why: str


@dataclass(frozen=True)
class Found:
    """A store's garbage, what of it is in use by a process, and how many stages are kept."""

    garbage: list[Garbage]
    busy: list[Path]
    kept: int
    there: Survey


def find_garbage(store: Path) -> Found:
    """Look through a store; nothing changes. Errors as `needed`."""
    there = Survey.of(store)
    kept = needed(there)
    free = [each for each in there.stages if each.kind in KINDS and each.folder not in kept]
    garbage = [_garbage(each.folder, UNREFERRED) for each in free if not each.held]
    going = {each.path for each in garbage}
    garbage += [each for each in _remnants(there) if each.path.parent not in going]
    return Found(garbage, [each.folder for each in free if each.held], len(kept), there)


def remove(garbage: Garbage, store: Path) -> bool:
    """Remove it; False if it is needed or in use by now, or gone."""
    path = garbage.path
    if garbage.why == UNREFERRED:
        return _remove_stage(path, store)
    if garbage.why == INTERRUPTED:
        return _finish(path, store)
    if garbage.why == LEFTOVER:
        disk.discard_dead(path)
        return not path.exists()
    if garbage.why == DELETED and pointed_to(path) is not None:
        return False
    delete(path)
    return True


def _remove_stage(folder: Path, store: Path) -> bool:
    with claim(claim_of(folder)) as mine:
        if not mine or not folder.is_dir() or survey_stage(folder).held:
            return False
        before = Survey.of(store)
        if folder in needed(before):
            return False
        away = rename_away(folder, REMOVED)
        if runs_of(store) != [*before.beside] and put_back(away, folder):
            return False
    delete(away)
    return True


def _finish(away: Path, store: Path) -> bool:
    """Finish a removal. A folder that is whole is put back, to be judged anew: a run that began
    when the removal was cut off may refer to it."""
    folder = away.with_name(away.name.partition(REMOVED)[0])
    with claim(claim_of(folder)) as mine:
        if not mine or not away.is_dir():
            return False
        back = (away / FIRST).exists() and put_back(away, folder)
    if back:
        return _remove_stage(folder, store)
    delete(away)
    return True


def _remnants(there: Survey) -> Iterator[Garbage]:
    """Folders that were replaced or renamed away, damaged files, and what dead processes left."""
    complete = {each.folder for each in there.stages if each.seal and not each.problem}
    for folder in (each.folder for each in there.replaced):
        if REMOVED in folder.name:
            yield _garbage(folder, INTERRUPTED)
        elif folder.with_suffix("") in complete and not is_named(folder, there.beside):
            yield _garbage(folder, REPLACED)
    for stage in there.stages:
        yield from (Garbage(stage.folder / name, size, BAD) for name, size in stage.aside.items())
        dead = stage.leftovers.items()
        yield from (Garbage(stage.folder / name, size, LEFTOVER) for name, size in dead)
    left = [path for kind in (*KINDS, IMPORTED) for path in (there.store / kind).glob("*.claim")]
    left = [path for path in left if is_stage_name(path.stem)]
    left += (there.store / POINTERS).glob(".*.tmp")
    yield from (_garbage(path, LEFTOVER) for path in sorted(left) if not is_held(path))
    yield from (_garbage(p, DELETED) for p in pointers(there.store) if pointed_to(p) is None)


def _garbage(path: Path, why: str) -> Garbage:
    sizes = sizes_below(path)
    return Garbage(path, sum(sizes.values()), why)
