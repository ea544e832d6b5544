"""What in a store nothing needs: found, and removed so that no run can lose by it.

Nothing but the order of looking and renaming keeps a run and a removal apart:

- A run writes down what it refers to (`taqdit.runs.record`), and only then looks for any stage.
- A removal looks at the runs, renames folders away, looks at the runs again, and deletes them: of
  stages, and of what `refresh` has replaced. Where it is stopped before, it puts them back.

A run whose record is there at the first look keeps its stages. One whose record comes between the
looks is seen at the second, and all the folders are put back, but for what that run has made itself
meanwhile, which then stays. One whose record comes later looks after the folders have gone: it
finds nothing and makes its own. So no stage goes that a run has found, and none comes back over
what a run has made. A run that looks in the instant between the renamings may find a stage gone
under its hands: it then ends with a StorageError, has lost nothing, and finds the stage when it is
started again.

`refresh` and `repair` rename folders too. Each renaming holds the claim beside the folder, and one
that does not get it leaves the folder alone. A repair moves single files aside, within a folder
that is renamed as a whole, or finds it gone.

This holds wherever renaming is atomic and a record that was written is seen by whoever lists its
folder next. A network file system may show other hosts an old list for some seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taqdit.errors import TaqditError
from taqdit.runs.record import POINTERS
from taqdit.stages import kinds
from taqdit.store import disk
from taqdit.store.aside import REMOVED, claim_of, delete, put_back, rename_away
from taqdit.store.claim import claim
from taqdit.store.digest import STAGE
from taqdit.store.lock import is_held
from taqdit.store_tools import Survey, Surveyed
from taqdit.store_tools.referred import is_named, needed
from taqdit.store_tools.runs_found import pointed_to, pointers, runs_of
from taqdit.store_tools.stage_folder import IMPORTED, is_stage_name, sizes_below, survey_stage

UNREFERRED = "no run refers to it"
REPLACED = "replaced by a newer one"
INTERRUPTED = "left by a removal that was cut off"
BAD = "moved aside as damaged"
LEFTOVER = "left by a process that has died"
DELETED = "its run is gone from the folder that it names"
BATCH = 100  # stages whose claims are held at once: each is an open file, of which macOS allows 256


@dataclass(frozen=True)
class Garbage:
    """Something that can be removed: where, how large (bytes), and why nothing needs it."""

    path: Path
    size: int
    why: str


@dataclass(frozen=True)
class Found:
    """A store's garbage, what of it is in use by a process, and how many stages are kept.
    `unlisted` are those that cannot be listed: they and all that they may be made from are kept."""

    garbage: list[Garbage]
    busy: list[Path]
    kept: int
    there: Survey

    @property
    def unlisted(self) -> list[Surveyed]:
        """What nobody knows about."""
        return [each for each in self.there.stages if each.unlisted]


def find_garbage(store: Path) -> Found:
    """Look through a store; nothing changes. Errors as `needed`."""
    there = Survey.of(store)
    kept = needed(there)
    free = [
        each for each in there.stages if each.kind in kinds.stored() and each.folder not in kept
    ]
    garbage = [_garbage(each.folder, UNREFERRED) for each in free if not each.held]
    going = {each.path for each in garbage}
    garbage += [each for each in _remnants(there) if each.path.parent not in going]
    return Found(garbage, [each.folder for each in free if each.held], len(kept), there)


def remove_all(garbage: Sequence[Garbage], store: Path) -> dict[Garbage, TaqditError | None]:
    """Remove it. What is left, with the error that says why; None: it is needed or in use by now,
    or gone."""
    left: dict[Garbage, TaqditError | None] = dict.fromkeys(garbage)
    stages: dict[Path, Garbage] = {}
    for each in garbage:
        with _noted(left, each):
            if each.why in (UNREFERRED, REPLACED):
                stages[each.path] = each
            elif _remove(each):
                del left[each]
            elif each.why == INTERRUPTED and not each.path.exists():
                stages[_before(each.path)] = each  # put back, to be judged anew
    # What was replaced goes while what took its place is still there.
    folders = sorted(stages, key=lambda folder: is_stage_name(folder.name))
    for start in range(0, len(folders), BATCH):
        batch = folders[start : start + BATCH]
        try:
            kept = _remove_folders(batch, store)
        except TaqditError as problem:  # of a run that has just begun, say
            kept = dict.fromkeys(batch, problem)
        for folder in batch:
            if folder in kept:
                left[stages[folder]] = kept[folder]
            else:
                del left[stages[folder]]
    return left


def _remove(garbage: Garbage) -> bool:
    path = garbage.path
    if garbage.why == INTERRUPTED:
        return _finish(path)
    if garbage.why == LEFTOVER:
        disk.discard_dead(path)
        return not path.exists()
    if garbage.why == DELETED and pointed_to(path) is not None:
        return False
    delete(path)
    return True


def _remove_folders(folders: Sequence[Path], store: Path) -> dict[Path, TaqditError | None]:
    """Remove the folders of stages, and replaced ones; what is left."""
    left: dict[Path, TaqditError | None] = dict.fromkeys(folders)
    away: dict[Path, Path] = {}
    with ExitStack() as claims:
        mine = _claimed(folders, claims, left)
        before = Survey.of(store)
        kept = needed(before) | {each.folder for each in before.replaced} - {*_replaced(before)}
        undo = True  # also if it is interrupted, or the runs cannot be looked at again
        try:
            for folder in mine:
                with _noted(left, folder):
                    if folder not in kept:
                        away[folder] = rename_away(folder, REMOVED)
            undo = bool(away) and runs_of(store) != [*before.beside]
        finally:
            for folder in [*away] if undo else []:
                with _noted(left, folder):
                    removed = away.pop(folder)
                    if not put_back(removed, folder):
                        away[folder] = removed
    for folder, removed in away.items():
        with _noted(left, folder):
            delete(removed)
            del left[folder]
    return left


def _claimed(
    folders: Sequence[Path], claims: ExitStack, left: dict[Path, TaqditError | None]
) -> list[Path]:
    """Those of the folders at which nobody else is at work, claimed: a stage and what it has
    replaced share a claim."""
    obtained: dict[Path, bool] = {}
    mine = []
    for folder in folders:
        with _noted(left, folder):
            file = claim_of(folder)
            if file not in obtained:
                obtained[file] = claims.enter_context(claim(file))
            if obtained[file] and folder.is_dir() and not survey_stage(folder).held:
                mine.append(folder)
    return mine


@contextmanager
def _noted(left: dict[Any, TaqditError | None], key: object) -> Iterator[None]:
    try:
        yield
    except TaqditError as problem:
        left[key] = problem


def _finish(away: Path) -> bool:
    """Finish a removal. A folder that is whole is put back (False), to be judged anew: a run that
    began when the removal was cut off may refer to it."""
    folder = _before(away)
    with claim(claim_of(folder)) as mine:
        if not mine or not away.is_dir():
            return False
        with disk.guarded("read", away):
            whole = (away / STAGE).exists()
        if whole and put_back(away, folder):
            return False
    delete(away)
    return True


def _before(away: Path) -> Path:
    """What a folder that was renamed away was called."""
    return away.with_name(away.name.partition(REMOVED)[0])


def _remnants(there: Survey) -> Iterator[Garbage]:
    """Folders that were replaced or renamed away, damaged files, and what dead processes left."""
    cut_off = (each.folder for each in there.replaced if REMOVED in each.folder.name)
    yield from (_garbage(folder, INTERRUPTED) for folder in cut_off)
    yield from (_garbage(folder, REPLACED) for folder in _replaced(there))
    for stage in there.stages:
        if stage.kind != IMPORTED:  # nobody can make it again, and what is damaged may be mended
            bad = stage.aside.items()
            yield from (Garbage(stage.folder / name, size, BAD) for name, size in bad)
        dead = stage.leftovers.items()
        yield from (Garbage(stage.folder / name, size, LEFTOVER) for name, size in dead)
    folders = [there.store / kind for kind in (*kinds.stored(), IMPORTED)]
    left = [path for folder in folders for path in folder.glob("*.claim")]
    left = [path for path in left if is_stage_name(path.stem)]
    left += (there.store / POINTERS).glob(".*.tmp")
    yield from (_garbage(path, LEFTOVER) for path in sorted(left) if not is_held(path))
    yield from (_garbage(p, DELETED) for p in pointers(there.store) if pointed_to(p) is None)


def _replaced(there: Survey) -> Iterator[Path]:
    """The replaced folders that no run names, where what took their place is whole."""
    whole = {each.folder for each in there.stages if each.seal and not each.problem}
    for folder in (each.folder for each in there.replaced):
        of_whole = REMOVED not in folder.name and folder.with_suffix("") in whole
        if of_whole and not is_named(folder, there.beside):
            yield folder


def _garbage(path: Path, why: str) -> Garbage:
    sizes = sizes_below(path)
    return Garbage(path, sum(sizes.values()), why)
