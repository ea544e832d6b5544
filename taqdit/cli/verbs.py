"""The `taqdit` command: Hydra overrides run the application, a bare first word is a verb."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from taqdit.errors import ConfigError
from taqdit.runs.exits import exit_with

if TYPE_CHECKING:
    from taqdit.config import Checked

VERBS = {  # word -> "module:function", of the arguments after the word, that gives an exit code
    "check": "taqdit.cli.verbs:check",
    "rerun": "taqdit.cli.rerun:rerun",
    "compare": "taqdit.cli.compare:compare",
    "sync": "taqdit.cli.sync:sync",
    "dashboard": "taqdit.cli.dashboard:dashboard",
    "store": "taqdit.store_tools.verbs:store",
}


def main() -> None:
    """Entry point of the console script."""
    exit_with(partial(dispatch, sys.argv[1:]))


def dispatch(arguments: Sequence[str]) -> int:
    """The exit code of a command line. Raises TaqditError."""
    word = arguments[0] if arguments else ""
    if word in VERBS:
        module, _, function = VERBS[word].partition(":")
        code: int = getattr(import_module(module), function)(arguments[1:])
        return code
    if word and not word.startswith("-") and not is_override(word):
        raise ConfigError(
            f"{word!r} is neither a verb ({', '.join(VERBS)}) nor an override (key=value);"
            " see taqdit --help"
        )
    from taqdit import run

    return run.application(checked_single_run(arguments))


def checked_single_run(arguments: Sequence[str]) -> Checked | None:
    """The configuration of a plain run, checked before Hydra makes its folder; None for anything
    with one of Hydra's flags, which is left to Hydra. Raises the error of all its problems."""
    from taqdit import config

    if not all(is_override(argument) for argument in arguments):
        return None
    composed = config.compose_config(arguments, with_hydra=True)
    if preset := config.choices(composed.hydra).get("sweep"):
        raise ConfigError(f"sweep={preset} makes several runs; ask for them: taqdit -m ...")
    if (launcher := composed.hydra.runtime.choices["hydra/launcher"]) != "basic":
        raise ConfigError(
            f"hydra/launcher={launcher} is for sweeps, and this is a single run; add -m"
        )
    checked = config.check(config.without_hydra(composed))
    config.raise_problems(checked.problems)
    return checked


def is_override(argument: str) -> bool:
    """Whether an argument is a Hydra override, not one of Hydra's flags."""
    return not argument.startswith("-") and ("=" in argument or argument.startswith(("~", "+")))


def check(overrides: Sequence[str]) -> int:
    """`taqdit check [overrides]`: report every problem of a configuration; runs nothing."""
    from taqdit import config

    if flags := [argument for argument in overrides if argument.startswith("-")]:
        raise ConfigError(f"check takes overrides (key=value) only, not {' '.join(flags)}")
    checked = config.check(config.compose_config(overrides))
    checked.log_notes()
    config.raise_problems(checked.problems)
    print("the configuration is sound")
    return 0


if __name__ == "__main__":
    main()
