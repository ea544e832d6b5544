"""The `taqdit` command: Hydra overrides run the application, a bare first word is a verb."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from taqdit.errors import ConfigError
from taqdit.runs.exits import exit_with


def check(overrides: Sequence[str]) -> int:
    """`taqdit check [overrides]`: report every problem of a configuration; runs nothing."""
    from taqdit import config

    if flags := [argument for argument in overrides if argument.startswith("-")]:
        raise ConfigError(f"check takes overrides (key=value) only, not {' '.join(flags)}")
    config.raise_problems(config.check(config.compose_config(overrides)).problems)
    print("the configuration is sound")
    return 0


def rerun(arguments: Sequence[str]) -> int:
    """`taqdit rerun RUN_DIR [overrides]`: repeat a run, and say what is not as it was then."""
    from taqdit.cli.rerun import repeat

    return application(repeat(arguments))


def compare(arguments: Sequence[str]) -> int:
    """`taqdit compare RUN_DIR RUN_DIR ... [--into FOLDER]`: one page about several runs."""
    from taqdit.cli.compare import compare

    return compare(arguments)


def sync(arguments: Sequence[str]) -> int:
    """`taqdit sync [FOLDER ...]`: upload the runs that W&B kept offline."""
    from taqdit.cli.sync import sync

    return sync(arguments)


def dashboard(arguments: Sequence[str]) -> int:
    """`taqdit dashboard push [--entity E] [--project P]`: a W&B workspace for the runs."""
    from taqdit.cli.dashboard import dashboard

    return dashboard(arguments)


def store(arguments: Sequence[str]) -> int:
    """`taqdit store ls|du|verify|repair|...`: what is stored, whether it is intact."""
    from taqdit.store_tools.verbs import store

    return store(arguments)


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "check": check,
    "rerun": rerun,
    "compare": compare,
    "sync": sync,
    "dashboard": dashboard,
    "store": store,
}


def application(arguments: Sequence[str]) -> int:
    """Run the Hydra application. A plain run is checked before Hydra makes its folder."""
    from taqdit import config, run

    checked = None
    if all(is_override(argument) for argument in arguments):
        composed = config.compose_config(arguments, with_hydra=True)
        if preset := config.choices(composed.hydra).get("sweep"):
            raise ConfigError(f"sweep={preset} makes several runs; ask for them: taqdit -m ...")
        if (launcher := composed.hydra.runtime.choices["hydra/launcher"]) != "basic":
            raise ConfigError(
                f"hydra/launcher={launcher} is for sweeps, and this is a single run; add -m"
            )
        checked = config.check(config.without_hydra(composed))
        config.raise_problems(checked.problems)
    return run.application(checked)


def is_override(argument: str) -> bool:
    """Whether an argument is a Hydra override, not one of Hydra's flags."""
    return not argument.startswith("-") and ("=" in argument or argument.startswith(("~", "+")))


def dispatch(arguments: Sequence[str]) -> int:
    """The exit code of a command line. Raises TaqditError."""
    first = arguments[0] if arguments else ""
    if first in VERBS:
        return VERBS[first](arguments[1:])
    if first and not first.startswith("-") and not is_override(first):
        raise ConfigError(
            f"{first!r} is neither a verb ({', '.join(VERBS)}) nor an override (key=value);"
            " see taqdit --help"
        )
    return application(arguments)


def main() -> None:
    """Entry point of the console script."""
    exit_with(lambda: dispatch(sys.argv[1:]))


if __name__ == "__main__":
    main()
