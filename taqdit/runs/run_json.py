"""run.json of a run's folder, read without trust."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from taqdit.errors import CorruptError, InputError
from taqdit.prompts.options import Prompts
from taqdit.runs.record import EARLIER, RECORD
from taqdit.store.digest import read_object

MOST_TRAJECTORIES = 2**20  # as sampler.num_trajectories may be
_NEEDED: dict[str, type | tuple[type, ...]] = {  # of run.json, and what it must be
    "config": dict,
    "store": str,
    "stages": dict,
    "imported": (dict, NoneType),
    "imported_statistics": (str, NoneType),
}
_ABSENT = {"imported": None, "imported_statistics": None}  # older records lack these


def read_record(folder: Path) -> dict[str, Any]:
    """The run.json of a run's folder, finished or not: what `taqdit.runs.record.run_record` makes.

    InputError if there is none, CorruptError if it is no record of a run.
    """
    path = folder / RECORD
    try:
        found = _ABSENT | read_object(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} is no run's folder: it has no {RECORD}") from error
    except (OSError, ValueError) as error:
        raise CorruptError(
            f"{path} cannot be read ({error}); restore it, or remove the folder of this run"
        ) from error
    try:
        _check_record(found)
    except ValueError as error:
        raise CorruptError(
            f"{path} is no record of a run ({error}); restore it, or remove the folder of this run"
        ) from error
    for name in _files_named(found):
        _place(name, path)
    _place(folder / found["store"], path)
    return found


def _check_record(found: Mapping[str, Any]) -> None:
    """Raise ValueError unless what every verb reads of it is there and is what it should be."""
    for key, kind in _NEEDED.items():
        if key not in found or not isinstance(found[key], kind):
            raise ValueError(f"{key}={str(found.get(key))[:60]!r}" if key in found else f"no {key}")
    marks, imported = found["stages"], found["imported"]
    if not all(isinstance(mark, str) for mark in marks.values()):
        raise ValueError("a stage without its fingerprint")
    if not isinstance(found.get(EARLIER, []), list):
        raise ValueError(f"{EARLIER}={str(found[EARLIER])[:60]!r}")
    if imported and not all(isinstance(imported.get(key), str) for key in ("path", "sha256")):
        raise ValueError("imported without path or sha256")
    Prompts.kept(found)


def trajectories_asked(record: Mapping[str, Any]) -> int:
    """How many trajectories a run asked for. CorruptError if its record does not say."""
    found = _part(record, "sampler").get("num_trajectories")
    if type(found) is not int or not 1 <= found <= MOST_TRAJECTORIES:
        raise CorruptError(
            f"{RECORD} says sampler.num_trajectories={found!r}; it must lie in"
            f" [1, {MOST_TRAJECTORIES}]"
        )
    return found


def images_asked(record: Mapping[str, Any]) -> bool:
    """Whether a run decoded a picture of each trajectory."""
    return bool(_part(record, "sampler").get("images"))


def _files_named(record: Mapping[str, Any]) -> list[str]:
    """The files made elsewhere that a record or a pointer names, and what former runs did."""
    imported = record.get("imported")
    named = [imported.get("path") if isinstance(imported, dict) else None]
    named += [record.get("imported_statistics"), *record.get(EARLIER, ())]
    return [each for each in named if isinstance(each, str)]


def _place(path: str | Path, file: Path) -> Path:
    """A path in full that stands in a file. CorruptError for what is none."""
    try:
        return Path(path).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise _corrupt(file, f"{str(path)[-80:]!r} is no path ({error})") from error


def _corrupt(file: Path, reason: str) -> CorruptError:
    """The error for a record or a pointer; nothing moves these aside, as what they tell of would
    be forgotten with them."""
    advice = "restore it, or remove the folder of this run"
    if file.name != RECORD:
        advice = (
            f"it keeps the data of run {file.stem}, whose folder lies elsewhere: delete it if that"
            " run is gone, or once a `taqdit rerun` of its folder refers to the same data"
        )
    return CorruptError(f"{file} is corrupt: {reason}; {advice}")


def _part(record: Mapping[str, Any], group: str) -> dict[str, Any]:
    found = record["config"].get(group)
    return found if isinstance(found, dict) else {}
