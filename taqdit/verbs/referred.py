"""Which folders of a store the runs beside it refer to, themselves or through what they use.

A run's record names the stages it was made with, and files elsewhere that it read. A stage is
referred to as well if one that is was made from it (all its inputs are among the other's), if it is
an analysis of statistics that are, or figures of data that are. Where something cannot be read, it
is taken to be referred to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from taqdit.errors import CorruptError, StorageError, TaqditError
from taqdit.store import Stage, disk, read_shard
from taqdit.verbs.records import marks_of, paths_of, read_record, run_folders

MADE_FROM = {"trajectories": ("conditioning",), "statistics": ("conditioning", "trajectories")}
KNOWN = ("conditioning", "trajectories", "statistics", "weights", "analysis", "figures")
DIGITS = 12  # of a fingerprint, in a folder's name

Inputs = Mapping[str, Any] | None
"""What a stage was made from; None if its stage.json cannot be read."""


class References:
    """What the runs below `outputs` name, as it is when this is made.

    CorruptError or StorageError for a record that cannot be read: nobody knows what it names.
    """

    def __init__(self, outputs: Path) -> None:
        self.store = outputs / "store"
        places = dict.fromkeys((outputs.resolve(), self.store.resolve().parent))  # it may be a link
        found = {folder.resolve(): folder for each in places for folder in run_folders(each)}
        records = [read_record(folder) for folder in found.values()]
        self.runs = len(records)
        self._marks = {
            (name, mark[:DIGITS]) for each in records for name, mark in marks_of(each).items()
        }
        self._paths = [path.resolve() for each in records for path in paths_of(each)]

    def __eq__(self, other: object) -> bool:
        """Whether the runs name the same."""
        if not isinstance(other, References):
            return NotImplemented
        return (self._marks, self._paths) == (other._marks, other._paths)

    __hash__ = None  # type: ignore[assignment]

    def names(self, folder: Path) -> bool:
        """Whether a run names this folder of the store, or read a file in it."""
        place = folder.resolve()
        read = any(place == path or place in path.parents for path in self._paths)
        return read or (folder.parent.name, folder.name) in self._marks

    def needed(self) -> set[Path]:
        """The stages of the store that are named, and those that these lead to."""
        known = {f: _inputs(f) for name in KNOWN for f in stages(self.store, name)}
        found = {folder for folder, inputs in known.items() if inputs is None or self.names(folder)}
        found |= {f for f in known if any(_made_from(top, f, known) for top in found)}
        figures = {f for f in known if f.parent.name == "figures" and self._shown(known[f], found)}
        return found | figures | _analyses(known, found)

    def _shown(self, inputs: Inputs, found: Iterable[Path]) -> bool:
        """Whether the data that figures show are referred to, be they there or not."""
        if inputs is None:
            return True
        data = [("trajectories", inputs.get("trajectories"))]
        if statistics := inputs.get("statistics"):
            data.append(("statistics", statistics[0]))
        kept = self._marks | {(folder.parent.name, folder.name) for folder in found}
        return all((name, str(mark)[:DIGITS]) in kept for name, mark in data)


def stages(store: Path, name: str) -> list[Path]:
    """The folders of a stage, by name. What is a link or has another name is none of ours."""
    root = store / name
    if not root.is_dir():
        return []
    with disk.guarded("list", root):
        return sorted(p for p in root.iterdir() if is_mark(p.name) and is_plain_folder(p))


def is_mark(name: str) -> bool:
    """Whether a name is the beginning of a fingerprint, as stages are named."""
    return len(name) == DIGITS and set(name) <= set("0123456789abcdef")


def is_plain_folder(path: Path) -> bool:
    """Whether a path is a folder and no link to one."""
    return path.is_dir() and not path.is_symlink()


def _inputs(folder: Path) -> Inputs:
    try:
        return Stage.at(folder).inputs
    except (TaqditError, KeyError, TypeError, ValueError):
        return None


def _made_from(top: Path, folder: Path, known: Mapping[Path, Inputs]) -> bool:
    """Whether the stage `top` was, or may have been, made from that in `folder`."""
    if folder.parent.name not in MADE_FROM.get(top.parent.name, ()):
        return False
    whole, part = known[top], known[folder]
    return whole is None or part is None or part.items() <= whole.items()


def _analyses(known: Mapping[Path, Inputs], found: Iterable[Path]) -> set[Path]:
    """The analyses of statistics that are referred to; all while some of those are not whole."""
    entries = {f: inputs for f, inputs in known.items() if inputs and f.parent.name == "analysis"}
    digests = _digests(f for f in found if f.parent.name == "statistics") if entries else set()
    if digests is None:
        return set(entries)
    return {f for f, inputs in entries.items() if not digests.isdisjoint(inputs["statistics"])}


def _digests(folders: Iterable[Path]) -> set[str] | None:
    """Of all shards in these stages of statistics; None if one is not whole, or not all there."""
    found = set()
    for folder in folders:
        try:
            stage = Stage.at(folder)
            if stage.seal_list is None:
                return None
            for name in stage.names(".safetensors"):
                found.add(str(read_shard(stage.path(name)).metadata["sha256"]))
        except (CorruptError, StorageError):
            return None
    return found
