"""`taqdit store ...`: what is in the store, whether it is intact, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taqdit.errors import ConfigError
from taqdit.store_tools import (
    gc as store_gc,
)
from taqdit.store_tools import (
    import_data as store_import,
)
from taqdit.store_tools import (
    look as store_look,
)
from taqdit.store_tools import (
    manifest as store_data,
)
from taqdit.store_tools import (
    repair as store_repair,
)

SubVerb = Callable[[Sequence[str]], int]

SUBVERBS: dict[str, SubVerb] = {
    "ls": store_look.ls,
    "du": store_look.du,
    "verify": store_look.verify,
    "repair": store_repair.repair,
    "manifest": store_data.manifest,
    "export": store_data.export,
    "import": store_import.import_data,
    "gc": store_gc.gc,
}


def store(arguments: Sequence[str]) -> int:
    """Run a sub-verb; without a word, say which there are."""
    what, *rest = arguments or ("",)
    if what in SUBVERBS:
        return SUBVERBS[what](rest)
    if what in ("", "-h", "--help"):
        print(about())
        return 0 if what else ConfigError.exit_code
    raise ConfigError(f"taqdit store: {what!r} is unknown; there are: {', '.join(SUBVERBS)}")


def about() -> str:
    """The sub-verbs, each with the first line of what it does."""
    lines = [f"  {name:<10}{_first_line(verb)}" for name, verb in SUBVERBS.items()]
    head = "usage: taqdit store WORD [options] [FOLDER]"
    return "\n".join([head, "", *lines, "", "See taqdit store WORD --help."])


def _first_line(verb: SubVerb) -> str:
    return (verb.__doc__ or "").partition("\n")[0]
