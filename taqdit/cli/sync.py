"""`taqdit sync [FOLDER ...]`: upload the runs that W&B does not have, or not wholly."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from taqdit import config
from taqdit.config.parser import Arguments
from taqdit.errors import ConfigError, InputError, StorageError
from taqdit.tracking.credentials import key_configured
from taqdit.tracking.unsent import OfflineRun, RecordedRun, runs_below

ABOUT = """Upload the runs that W&B kept offline, and finish those whose upload broke off, each of
them once. A run that has not ended, or was tracked without W&B, is uploaded if you name it."""


def sync(arguments: Sequence[str]) -> int:
    """Upload what is not uploaded yet, and say of every run what was done. Raises ConfigError
    without a key, InputError for a folder that is not there, StorageError for runs that W&B did
    not take."""
    parser = Arguments("sync", ABOUT)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="default: the output folder")
    named = [Path(name) for name in parser.parse_args(list(arguments)).folders]
    if missing := [folder for folder in named if not folder.is_dir()]:
        raise InputError(*(f"{folder} is not a folder; give one with runs" for folder in missing))
    folders = named or [Path(config.compose_config().output_dir)]
    found = {run.key: run for folder in folders for run in runs_below(folder)}.values()
    runs = [run for run in found if run.tracked or _is_named(run.folder, named)]
    waiting = [run for run in runs if not run.uploaded]
    ready = [run for run in waiting if run.ended or _is_named(run.folder, named)]
    for run in waiting:
        if run not in ready:
            print(f"left out: {run.folder} has not ended; name it to upload what there is")
    if ready:
        _require_ready()
    failed = [run for run in ready if not _uploaded(run)]
    print(f"{len(ready) - len(failed)} uploaded, {len(runs) - len(waiting)} were already")
    if failed:
        names = ", ".join(str(run.folder) for run in failed)
        raise StorageError(f"W&B took {len(ready) - len(failed)} of {len(ready)} runs, not {names}")
    return 0


def _require_ready() -> None:
    if find_spec("wandb") is None:
        raise ConfigError("wandb is not installed; install it to upload runs")
    if not key_configured():
        raise ConfigError("W&B: no key configured; set WANDB_API_KEY or run `wandb login`")


def _uploaded(run: RecordedRun | OfflineRun) -> bool:
    location, failure = run.upload()
    if failure:
        print(f"not uploaded: {run.folder}: {failure}", flush=True)
    else:
        print(f"uploaded: {run.folder}{' -> ' * bool(location)}{location}", flush=True)
    return not failure


def _is_named(folder: Path, named: Sequence[Path]) -> bool:
    """Whether one of the given folders is this very run's, or what W&B has in it."""
    run = folder.resolve()
    given = [path.resolve() for path in named]
    return any(path == run or run / "wandb" in (path, *path.parents) for path in given)
