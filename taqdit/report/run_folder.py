"""A run's folder, read without trust, for the pages and for every verb: the one reader of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taqdit.errors import CorruptError, InputError
from taqdit.prompts.options import Prompts
from taqdit.store.digest import MAX_DOCUMENT, read_object

RECORD, SUMMARY, ANALYSIS = "run.json", "summary.json", "analysis.json"
OVERRIDES, COMPOSED = ".hydra/overrides.yaml", ".hydra/config.yaml"  # as Hydra leaves them
EARLIER = "earlier"  # in run.json: what it names of former runs in the folder
OK = "ok"  # status of a run that went well
MOST_TRAJECTORIES = 2**20  # as sampler.num_trajectories may be
_MOST = {ANALYSIS: 2**26}  # bytes; that of 300 sites at 300 steps has 8 million
_RESTORE = "restore it, or remove the folder of this run"
_RECORD = {  # what every verb reads of run.json; older ones lack `imported..`
    "config": dict,
    "store": str,
    "stages": {str: str},
    "imported": ({"path": str, "sha256": str},),
    "imported_statistics": (str,),
    EARLIER: (list,),
}


@dataclass(frozen=True)
class RunFolder:
    """A folder in which a run may have left its documents."""

    path: Path

    def document(self, name: str) -> dict[str, Any]:
        """The JSON object in one of its files. OSError or ValueError if it cannot be read."""
        return read_object(self.path / name, most=_MOST.get(name, MAX_DOCUMENT))

    def record(self) -> dict[str, Any]:
        """run.json, of a run that has finished or not: what `taqdit.runs.record.run_record` makes.

        InputError if there is none, CorruptError if it is no record of a run.
        """
        path = self.path / RECORD
        try:
            record = {"imported": None, "imported_statistics": None} | self.document(RECORD)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(f"{self.path} is no run's folder: it has no {RECORD}") from error
        except (OSError, ValueError) as error:
            raise CorruptError(f"{path} cannot be read ({error}); {_RESTORE}") from error
        try:
            shaped(record, _RECORD)
            Prompts.kept(record)
        except ValueError as error:
            raise CorruptError(f"{path} is no record of a run ({error}); {_RESTORE}") from error
        for name in (*files_named(record), self.path / record["store"]):
            resolved(name, path)
        return record

    def summary(self) -> dict[str, Any]:
        """summary.json. InputError if there is none, CorruptError if it is no JSON object."""
        try:
            return self.document(SUMMARY)
        except FileNotFoundError as error:
            raise InputError(f"{self.path} is no finished run: it has no {SUMMARY}") from error
        except (OSError, ValueError) as error:
            raise CorruptError(f"{self.path / SUMMARY} is not JSON ({error})") from error

    def legible(self, name: str) -> dict[str, Any]:
        """The document of this name; {} where it cannot be read."""
        try:
            return self.document(name)
        except (OSError, ValueError):
            return {}

    @property
    def went_well(self) -> bool:
        """Whether a run in it has ended well."""
        return self.legible(SUMMARY).get("status") == OK

    @property
    def is_run(self) -> bool:
        """Whether a run has begun or ended in it."""
        return any((self.path / name).is_file() for name in (RECORD, SUMMARY))


def shaped(value: Any, shape: Any, name: str = "it") -> Any:
    """A value of a document in the shape that is wanted of it. ValueError if it has another one.

    A shape is a type; `(shape,)`, that or null; `[shape]`, a list of such, as a tuple;
    `{str: shape}`, an object of such; `{"key": shape, ..}`, an object with these keys: one that
    may be null may be absent, others are left out. A float that is not finite becomes None.
    """
    if isinstance(shape, tuple):
        return None if value is None else shaped(value, shape[0], name)
    if isinstance(shape, list) and isinstance(value, list):
        return tuple(shaped(item, shape[0], name) for item in value)
    if isinstance(shape, dict) and isinstance(value, dict):
        shapes = dict.fromkeys(value, shape[str]) if str in shape else shape
        if absent := [key for key in shapes if key not in value and not _nullable(shapes[key])]:
            raise ValueError(f"no {' or '.join(absent)}")
        return {key: shaped(value.get(key), inner, key) for key, inner in shapes.items()}
    if shape is float and type(value) in (int, float):
        return float(value) if math.isfinite(value) else None
    if type(value) is not shape:
        raise ValueError(f"{name}={str(value)[:60]!r}")
    return value


def _nullable(shape: Any) -> bool:
    return isinstance(shape, tuple)


def trajectories_asked(record: Mapping[str, Any]) -> int:
    """How many trajectories a run asked for. CorruptError if its record does not say."""
    count = options(record, "sampler").get("num_trajectories")
    if type(count) is not int or not 1 <= count <= MOST_TRAJECTORIES:
        raise CorruptError(
            f"{RECORD} says sampler.num_trajectories={count!r}; it must lie in"
            f" [1, {MOST_TRAJECTORIES}]"
        )
    return count


def images_asked(record: Mapping[str, Any]) -> bool:
    """Whether a run decoded a picture of each trajectory."""
    return bool(options(record, "sampler").get("images"))


def options(record: Mapping[str, Any], group: str) -> dict[str, Any]:
    """What stands under a config group; {} where nothing legible does."""
    node = record["config"].get(group)
    return node if isinstance(node, dict) else {}


def files_named(record: Mapping[str, Any]) -> list[str]:
    """The files made elsewhere that a record or a pointer names, and what former runs did."""
    imported = record.get("imported")
    named = [imported.get("path") if isinstance(imported, dict) else None]
    named += [record.get("imported_statistics"), *(record.get(EARLIER) or ())]
    return [name for name in named if isinstance(name, str)]


def resolved(path: str | Path, file: Path) -> Path:
    """A path in full that stands in a file. CorruptError for what is none."""
    try:
        return Path(path).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise corrupt(file, f"{str(path)[-80:]!r} is no path ({error})") from error


def corrupt(file: Path, reason: str) -> CorruptError:
    """The error for a record or a pointer; nothing moves these aside, as what they tell of would
    be forgotten with them."""
    advice = _RESTORE
    if file.name != RECORD:
        advice = (
            f"it keeps the data of run {file.stem}, whose folder lies elsewhere: delete it if that"
            " run is gone, or once a `taqdit rerun` of its folder refers to the same data"
        )
    return CorruptError(f"{file} is corrupt: {reason}; {advice}")
