"""`taqdit store gc [--yes] [--dry-run]`: remove from the store what no run refers to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from taqdit import config
from taqdit.errors import ConfigError
from taqdit.preflight import size
from taqdit.verbs.arguments import Arguments
from taqdit.verbs.garbage import Survey, remove, survey


def gc(arguments: Sequence[str]) -> int:
    """List what no run refers to, ask, and remove it.

    ConfigError where nobody can be asked and --yes is not given; as `survey` otherwise.
    """
    parser = Arguments("store gc", "Remove from the store what no run in the output folder needs.")
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help="an output folder (default: the configured output_dir); runs that were given a folder"
        " elsewhere are not seen",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="only list")
    given = parser.parse_args(list(arguments))
    outputs = given.folder or Path(config.compose_config().output_dir)
    found = survey(outputs)
    print(_described(found, outputs / "store"), flush=True)
    if given.dry_run or not found.found:
        return 0
    if not given.yes and not _agreed():
        print("nothing was removed")
        return 0
    gone = [each for each in found.found if remove(each, outputs, found.references)]
    print(f"removed       {size(sum(each.size for each in gone))} in {len(gone)} places")
    for each in found.found:
        if each not in gone:
            print(f"left          {each.path}: in use or referred to by now, or gone")
    return 0


def _described(found: Survey, store: Path) -> str:
    lines = [
        f"{each.path.relative_to(store)!s:<44} {size(each.size):>10}  {each.why}"
        for each in found.found
    ]
    lines += [
        f"{path.relative_to(store)!s:<44} {'':>10}  in use: left alone" for path in found.busy
    ]
    total = size(sum(each.size for each in found.found))
    lines.append(f"to remove     {total} in {len(found.found)} places of {store}")
    lines.append(f"kept          {found.kept} stages; looked at {found.references.runs} run(s)")
    if found.found:
        lines.append(
            "runs with a folder elsewhere (hydra.run.dir) are not seen; theirs is listed too"
        )
    if not found.references.runs:
        lines.append("there is not one run beside this store: nothing refers to anything in it")
    return "\n".join(lines)


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask on; say --yes to remove, or --dry-run")
    try:
        return input("remove them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
