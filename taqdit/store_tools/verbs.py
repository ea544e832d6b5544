"""`taqdit store ...`: what is in the store, whether it is intact, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taqdit.errors import ConfigError
from taqdit.store_tools import gc, import_data, look, manifest, repair

SubVerb = Callable[[Sequence[str]], int]

SUBVERBS: dict[str, SubVerb] = {
    "ls": look.ls,
    "du": look.du,
    "verify": look.verify,
    "repair": repair.repair,
    "manifest": manifest.manifest,
    "export": manifest.export,
    "import": import_data.import_data,
    "gc": gc.gc,
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
