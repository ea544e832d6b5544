"""`taqdit sync [FOLDER ...]`: upload the runs that W&B kept offline."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from taqdit import config
from taqdit.config.arguments import Arguments
from taqdit.errors import ConfigError, InputError, StorageError
from taqdit.tracking.credentials import key_configured
from taqdit.tracking.upload import is_uploaded, offline_runs, upload


def sync(arguments: Sequence[str]) -> int:
    """Upload what is not uploaded yet. Raises ConfigError without a key, InputError for a folder
    that is not there, StorageError for runs that W&B did not take."""
    parser = Arguments("sync", "Upload the runs that W&B kept offline, each of them once.")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="default: the output folder")
    named = [Path(name) for name in parser.parse_args(list(arguments)).folders]
    if missing := [folder for folder in named if not folder.is_dir()]:
        raise InputError(*(f"{folder} is not a folder; give one with runs" for folder in missing))
    folders = named or [Path(config.compose_config().output_dir)]
    found = list(dict.fromkeys(file for folder in folders for file in offline_runs(folder)))
    waiting = [file for file in found if not is_uploaded(file)]
    under_way = [file for file in waiting if not (_has_ended(file) or _is_named(file, named))]
    ready = [file for file in waiting if file not in under_way]
    for file in under_way:
        print(f"left out: {file.parents[2]} has not ended; name it to upload what there is")
    if ready:
        _upload(ready)
    print(f"{len(ready)} uploaded, {len(found) - len(waiting)} were already")
    return 0


def _upload(files: list[Path]) -> None:
    if find_spec("wandb") is None:
        raise ConfigError("wandb is not installed; install it to upload runs")
    if not key_configured():
        raise ConfigError("W&B: no key configured; set WANDB_API_KEY or run `wandb login`")
    if left := upload(files):
        names = ", ".join(str(file.parent) for file in left)
        raise StorageError(f"W&B took {len(files) - len(left)} of {len(files)} runs, not {names}")


def _has_ended(file: Path) -> bool:
    """Whether no process writes the run any more: W&B would take the part for the whole."""
    run = file.parents[2]
    return (run / "summary.json").exists() or not (run / "run.json").exists()


def _is_named(file: Path, named: Sequence[Path]) -> bool:
    """Whether one of the given folders is this very run's."""
    return not {each.resolve() for each in named}.isdisjoint(file.resolve().parents[:3])
