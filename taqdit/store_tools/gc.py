"""`taqdit store gc [--yes] [--dry-run]`: remove from the store what no run refers to."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from taqdit import config
from taqdit.errors import ConfigError, StorageError
from taqdit.runs.record import FOLDERS
from taqdit.store_tools import find_store
from taqdit.store_tools.garbage import Found, Garbage, find_garbage, remove_all
from taqdit.store_tools.listing import notes
from taqdit.store_tools.look import parser, tell
from taqdit.words import counted, size


def gc(arguments: Sequence[str]) -> int:
    """Remove what no run refers to; lists it and asks first.

    What cannot be removed is told, and the rest removed: the exit code is that of the first error.
    ConfigError where nobody can be asked and --yes is not given; as `find_garbage` otherwise.
    """
    options = parser(
        "gc",
        "List what no run refers to, ask, and remove it. A run counts while its folder lies where"
        " it was made, or below the output folder (where the store is a link: also in the folders"
        f" {' and '.join(FOLDERS)} beside what it leads to); of one made elsewhere by a version of"
        " taqdit that left nothing in STORE/runs, nobody knows. The exit code is 4 if something"
        " cannot be removed, or a stage not looked into.",
    )
    options.add_argument("--yes", action="store_true", help="do not ask")
    options.add_argument("--dry-run", action="store_true", help="only list")
    given = options.parse_args(list(arguments))
    store = find_store(given.folder or Path(config.compose_config().output_dir))
    search = find_garbage(store)
    for line in _described(search):
        tell(line)
    code = StorageError.exit_code if search.unlisted else 0
    if given.dry_run or not search.garbage:
        return code
    if not given.yes and not _agreed():
        tell("nothing was removed")
        return code
    left = remove_all(search.garbage, store)
    gone = [item for item in search.garbage if item not in left]
    tell(f"{'removed':<14}{_total(gone)}")
    for item, problem in left.items():
        tell(f"{'left':<14}{item.path}: {problem or 'in use or referred to by now, or gone'}")
    return next((problem.exit_code for problem in left.values() if problem), code)


def _described(search: Found) -> Iterator[str]:
    store = search.there.store
    for item in search.garbage:
        yield f"{size(item.size):>11}  {item.path.relative_to(store)}: {item.why}"
    for path in search.busy:
        yield f"{'':>11}  {path.relative_to(store)}: in use, left alone"
    for stage in search.unlisted:
        yield f"{'left':<14}{stage.problem}"
        yield f"{'':<14}{stage.name} and all that it may be made from are kept"
    runs = search.there.beside
    nothing = f"nothing to remove from {store}"
    yield f"{'to remove':<14}{_total(search.garbage)} of {store}" if search.garbage else nothing
    yield f"{'kept':<14}{counted(search.kept, 'stage')} for {counted(len(runs), 'run')}"
    yield from notes(runs)
    if not runs:
        yield "there is not one run beside this store: nothing refers to anything in it"


def _total(garbage: Sequence[Garbage]) -> str:
    return f"{size(sum(item.size for item in garbage))} in {counted(len(garbage), 'place')}"


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask on; say --yes to remove, or --dry-run")
    try:
        return input("remove them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
