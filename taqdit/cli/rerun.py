"""`taqdit rerun RUN_DIR [overrides]`: the command line that repeats a run, and what differs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taqdit import config as configuration
from taqdit.cli.differences import differences
from taqdit.cli.verbs import checked_single_run
from taqdit.config.building import plain
from taqdit.config.overrides import agrees, flatten, hides, spell
from taqdit.config.parser import Arguments
from taqdit.errors import ConfigError, CorruptError, InputError
from taqdit.report.run_folder import OVERRIDES, RECORD, RunFolder
from taqdit.store import plain_yaml
from taqdit.store.secrets import mask_secrets

# A run of its own, over the store of then, in which what was asked for anew is by now; and what was
# only planned is run.
GONE = {"tracking.queue_size"}  # keys that there are no more
NOT_REPEATED = ("hydra", "sweep", "output_dir", "refresh", "preflight")


@dataclass(frozen=True)
class Rerun:
    """Overrides that repeat a run, and in words what is not as it was then."""

    folder: Path
    overrides: list[str]
    words: list[str]

    def __str__(self) -> str:
        return "\n".join([f"rerun of {self.folder}", *(self.words or ["nothing differs"])])


@dataclass(frozen=True)
class _Composed:
    """What overrides compose to today: values by dotted key, and the chosen options."""

    values: dict[str, Any]
    choices: dict[str, str]

    @classmethod
    def of(cls, overrides: Sequence[str]) -> _Composed:
        composed = configuration.compose_config(overrides, with_hydra=True)
        job = plain(configuration.without_hydra(composed))
        return cls(flatten(job), configuration.choices(composed.hydra))


def prepare(arguments: Sequence[str]) -> Rerun:
    """How to repeat a run with some overrides more. Nothing runs yet.

    The recorded values hold, also where a default has changed since. Raises InputError if the
    folder holds no run or a value that the run needs was masked, ConfigError for what does not
    compose, CorruptError for a damaged record.
    """
    parser = Arguments("rerun", "Repeat a run in a new folder, over the same store.")
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="the folder of a run")
    parser.add_argument("overrides", nargs="*", help="changes: key=value, as for taqdit itself")
    given = parser.parse_args(list(arguments))
    if odd := [each for each in given.overrides if "=" not in each and not each.startswith("~")]:
        raise ConfigError(f"rerun takes one folder, then key=value; not {' '.join(odd)}")
    record = _record(given.folder)
    store = (given.folder / record["store"]).resolve()
    base, today = _base(given.folder, record)
    base = [*base, f"output_dir={spell(str(store.parent))}"]
    changed = _Composed.of([*base, *given.overrides])
    kept = _kept(record, today, changed, _keys(given.overrides))
    overrides = [*base, *(f"++{key}={spell(value)}" for key, value in kept.items())]
    overrides += given.overrides
    final = configuration.compose_config(overrides)
    words = [*_defaults(kept, today), *_config_words(record, final)]
    words += differences(record, store, configuration.plan(final))
    return Rerun(given.folder, overrides, words)


def _record(folder: Path) -> dict[str, Any]:
    record, needed = RunFolder(folder).record(), ("choices", "versions")
    if not all(isinstance(record.get(key), dict) for key in needed):
        raise CorruptError(f"{folder / RECORD} is no record to repeat: no {' or '.join(needed)}")
    return record


def _base(folder: Path, record: Mapping[str, Any]) -> tuple[list[str], _Composed]:
    """The run's own overrides, else its chosen options where those are gone or do not compose."""
    options = [f"{group}={choice}" for group, choice in record["choices"].items()]
    written = _overrides(folder / OVERRIDES)
    for overrides in [options] if written is None else [written, options]:
        kept = [
            each
            for each in overrides
            if not (_root(each) in NOT_REPEATED or hides(each) or _keys([each]) & GONE)
        ]
        try:
            return kept, _Composed.of(kept)
        except ConfigError as error:
            refused = error
    raise refused


def _overrides(path: Path) -> list[str] | None:
    try:
        overrides = plain_yaml.read(path)
    except (OSError, ValueError):
        return None
    return list(map(str, overrides)) if isinstance(overrides, list) else None


def _kept(
    record: Mapping[str, Any], today: _Composed, changed: _Composed, named: set[str]
) -> dict[str, Any]:
    """Recorded values that today's configuration would not give and that no override changes."""
    groups = {
        group
        for group in today.choices | changed.choices
        if today.choices.get(group) != changed.choices.get(group)
    }
    kept, hidden = {}, []
    for key, value in flatten(record["config"]).items():
        if key in GONE:
            continue
        now, then = changed.values.get(key), today.values.get(key)
        overridden = now != then or key.split(".")[0] in groups or key in named
        if overridden or _root(key) in NOT_REPEATED or agrees(value, then):
            continue
        if key in today.values or value is not None:
            (hidden.append(key) if hides(value) else kept.update({key: value}))
    if hidden:
        raise InputError(*(f"{RECORD} hides {key}; give it: {key}=..." for key in hidden))
    return kept


def _keys(overrides: Sequence[str]) -> set[str]:
    return {each.partition("=")[0].strip().lstrip("+~") for each in overrides}


def _root(override: str) -> str:
    key = override.partition("=")[0].lstrip("+~")
    return key.split(".")[0].split("/")[0].split("@")[0]


def _defaults(kept: Mapping[str, Any], today: _Composed) -> Iterator[str]:
    """What is kept as it was though the configuration would give something else today."""
    now = mask_secrets(today.values)
    for key, value in kept.items():
        other = spell(now[key]) if key in now else "no such key"
        yield f"  kept      {key}={spell(value)}; the default is now {other}"


def _config_words(record: Mapping[str, Any], final: Any) -> Iterator[str]:
    """What is not as recorded: the overrides, and keys that there were not then."""
    then = flatten(record["config"])
    now = flatten(plain(final))
    shown = flatten(mask_secrets(plain(final)))
    for key in sorted(set(then) | set(now)):
        if _root(key) in NOT_REPEATED or (key in then and agrees(then[key], now.get(key))):
            continue
        before = spell(then[key]) if key in then else "no such key"
        yield f"  config    {key}: {before} then, {spell(shown[key]) if key in now else 'gone'} now"


def rerun(arguments: Sequence[str]) -> int:
    """Say what differs, then run what repeats the run, as this process's command line."""
    from taqdit import run

    again = prepare(arguments)
    print(again, flush=True)
    sys.argv[1:] = again.overrides  # Hydra reads them there
    return run.application(checked_single_run(again.overrides))
