"""The records (run.json) of the runs in an output folder: what each of them refers to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from taqdit.errors import CorruptError, InputError
from taqdit.store import disk

RECORD = "run.json"
_INSIDE_A_RUN = {"figures", "wandb", ".hydra"}  # large, and no place for another run


def read_record(folder: Path) -> dict[str, Any]:
    """The run.json of a run's folder, finished or not.

    InputError if there is none, CorruptError if it is no record of a run.
    """
    path = folder / RECORD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} is no run's folder: it has no {RECORD}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptError(f"{path} cannot be read as JSON ({error})") from error
    needed = {"config": dict, "store": str, "stages": dict}
    if not isinstance(found, dict) or not all(
        isinstance(found.get(key), kind) for key, kind in needed.items()
    ):
        raise CorruptError(f"{path} is no record of a run; it must hold {', '.join(needed)}")
    return found


def run_folders(outputs: Path) -> Iterator[Path]:
    """The folders below `outputs` that hold a run.json, the store left out; links are followed.

    StorageError where a folder cannot be listed: a run that is not seen would lose its data.
    """
    waiting, seen = [outputs], {(outputs / "store").resolve()}
    while waiting:
        folder = waiting.pop()
        if (place := folder.resolve()) in seen or not folder.is_dir():
            continue
        seen.add(place)
        with disk.guarded("list", folder):
            inner = sorted(path for path in folder.iterdir() if path.is_dir())
        if (folder / RECORD).exists():
            yield folder
            inner = [path for path in inner if path.name not in _INSIDE_A_RUN]
        waiting.extend(inner)


def marks_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Stage -> fingerprint of the stages that a run was made with."""
    return {str(name): str(mark) for name, mark in record["stages"].items()}


def paths_of(record: Mapping[str, Any]) -> list[Path]:
    """Files and folders made elsewhere that a run read."""
    imported = record.get("imported")
    named = [imported.get("path") if isinstance(imported, dict) else None]
    named.append(record.get("imported_statistics"))
    return [Path(each) for each in named if isinstance(each, str)]


def trajectories_asked(record: Mapping[str, Any]) -> int:
    """How many trajectories a run asked for. CorruptError if its record does not say."""
    found = _sampler(record).get("num_trajectories")
    if type(found) is not int or found < 1:
        raise CorruptError(f"{RECORD} says sampler.num_trajectories={found!r}; expected a count")
    return found


def images_asked(record: Mapping[str, Any]) -> bool:
    """Whether a run decoded a picture of each trajectory."""
    return bool(_sampler(record).get("images"))


def _sampler(record: Mapping[str, Any]) -> dict[str, Any]:
    found = record["config"].get("sampler")
    return found if isinstance(found, dict) else {}
