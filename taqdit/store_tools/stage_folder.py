"""A stage's folder as one finds it: nothing is opened for writing, no lock is taken for long."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from taqdit.activations.step_shards import CHECKPOINT, PART
from taqdit.errors import CorruptError, StorageError
from taqdit.stages import kinds
from taqdit.store.aside import REMOVED, REPLACED
from taqdit.store.digest import SEAL, STAGE, is_stage, read_stamped, reason_of, texts_by_name
from taqdit.store.disk import guarded
from taqdit.store.document import SCHEMA
from taqdit.store.lock import is_held
from taqdit.store.stage import DATA

IMPORTED = "imported"  # files made elsewhere, whose bytes stage.json and the seal know
SEALED, UNFINISHED, AT_WORK = "sealed", "unfinished", "at work"
DAMAGED, FOREIGN, UNLISTED = "damaged", "foreign schema", "not listable"
_ASIDE = re.compile(r".+\.bad-\d+")
_MARK = re.compile(r"[0-9a-f]{12}")  # the beginning of a fingerprint
_OLD, _GOING = (rf"({re.escape(word)}\d+)" for word in (REPLACED, REMOVED))
_REPLACED = re.compile(rf"{_MARK.pattern}({_OLD}{_GOING}?|{_GOING})")
Sizes = Mapping[str, int]
"""File name -> bytes."""


@dataclass(frozen=True, eq=False)
class Surveyed:
    """One stage folder. `files` are its shards and images; `aside` those moved aside as corrupt;
    `leftovers` what dead writers left; `held` the claims and temporary files of living ones.

    `document` is stage.json, `seal` the list of SEALED.json; None where absent or damaged, and
    `faults` then says why, by file. `unlisted` is the error of a folder that cannot be listed: of
    what is in it nothing is known then.
    """

    folder: Path
    files: Sizes
    about: Sizes
    aside: Sizes
    leftovers: Sizes
    held: tuple[str, ...]
    document: Mapping[str, Any] | None
    seal: Mapping[str, str] | None
    faults: Mapping[str, str]
    unlisted: StorageError | None = None

    @property
    def kind(self) -> str:
        """`trajectories`, `statistics` ..."""
        return self.folder.parent.name

    @property
    def name(self) -> str:
        """Kind and folder, as runs name it."""
        return f"{self.kind}/{self.folder.name}"

    @property
    def state(self) -> str:
        """`sealed`, `unfinished`, `at work`, `damaged`, `foreign schema` or `not listable`."""
        if self.unlisted:
            return UNLISTED
        if self.is_foreign:
            return FOREIGN
        if STAGE in self.faults:
            return DAMAGED
        if self.held:
            return AT_WORK
        if self.faults or self.lost:
            return DAMAGED
        return SEALED if self.seal is not None and set(self.seal) == set(self.files) else UNFINISHED

    @property
    def problem(self) -> str | None:
        """Why it is damaged or not known, as far as the listing shows."""
        if self.unlisted:
            return str(self.unlisted)
        words = [f"{name}: {reason}" for name, reason in self.faults.items()]
        if self.lost:
            words.append(f"{len(self.lost)} of {len(self.seal or ())} sealed files are missing")
        return "; ".join(words) or None

    @property
    def is_foreign(self) -> bool:
        """Whether another version wrote it, in a form that this one does not read."""
        return self.document is not None and self.document.get("schema") != SCHEMA

    @cached_property
    def lost(self) -> list[str]:
        """Files that the seal lists and that are not there."""
        return [] if self.held else sorted(set(self.seal or ()) - set(self.files))

    @property
    def moved_aside(self) -> set[str]:
        """What the files that were moved aside were called, whether or not they are there again."""
        return {name.rpartition(".bad-")[0] for name in self.aside}

    @cached_property
    def beyond(self) -> list[str]:
        """Files that the seal does not list: strays, or of a process that died before it sealed
        again. A run takes the seal off before it adds trajectories or what is made for them."""
        sealed = None if self.held else self.seal
        return [] if sealed is None else [name for name in self.files if name not in sealed]

    @property
    def fingerprint(self) -> str:
        """In full, as stage.json has it; "" without one."""
        return str((self.document or {}).get("fingerprint", ""))

    @property
    def inputs(self) -> dict[str, Any]:
        """What the fingerprint was taken of."""
        found = (self.document or {}).get("inputs")
        return found if isinstance(found, dict) else {}

    @property
    def backends(self) -> list[dict[str, Any]]:
        """On which backends it was made; those that say nothing are left out."""
        found = (self.document or {}).get("backends")
        listed = found if isinstance(found, list) else []
        return [each for each in listed if each and isinstance(each, dict)]

    @property
    def working(self) -> dict[str, int]:
        """Checkpoints and parts of unfinished statistics."""
        begin = (f"{CHECKPOINT}_", f"{PART}_")
        return {name: size for name, size in self.files.items() if name.startswith(begin)}

    @property
    def units(self) -> int:
        """Finished units of work; of a sealed stage those that the seal lists."""
        found = set(self.files) - set(self.working) - set(self.beyond)
        return sum(self.kind == IMPORTED or name.endswith(".safetensors") for name in found)

    @property
    def unit(self) -> str:
        """What a unit is called."""
        kind = kinds.stored().get(self.kind)
        return kind.unit if kind else "file"

    @property
    def bytes(self) -> int:
        """Of the data and what describes them; without files moved aside and leftovers."""
        return sum(self.files.values()) + sum(self.about.values())


@dataclass(frozen=True)
class Replaced:
    """A stage's folder that `refresh` or a repair moved aside as a whole."""

    folder: Path
    files: int
    bytes: int

    @property
    def name(self) -> str:
        """Kind and folder."""
        return f"{self.folder.parent.name}/{self.folder.name}"


def stages_of(store: Path) -> list[Surveyed]:
    """Every stage folder, the kinds in the order of the data flow."""
    return [_surveyed(folder) for folder in _folders(store) if not _is_replaced(folder)]


def _surveyed(folder: Path) -> Surveyed:
    """As `survey_stage`; a folder that cannot be listed is one of which nothing is known."""
    try:
        return survey_stage(folder)
    except StorageError as problem:
        return Surveyed(folder, {}, {}, {}, {}, (), None, None, {}, problem)


def replaced_in(store: Path) -> list[Replaced]:
    """Every folder that was moved aside."""
    found = []
    for folder in _folders(store):
        if _is_replaced(folder):
            sizes = sizes_below(folder)
            found.append(Replaced(folder, len(sizes), sum(sizes.values())))
    return found


def sizes_below(path: Path) -> dict[str, int]:
    """Every file below a folder, or the file itself, and its bytes. Links are counted as links."""
    below = (Path(place, name) for place, _, names in os.walk(path) for name in names)
    found = {}
    for file in below if path.is_dir() else (path,):
        with suppress(FileNotFoundError):  # somebody is at work
            found[str(file.relative_to(path))] = file.lstat().st_size
    return found


def survey_stage(folder: Path) -> Surveyed:
    """One stage folder. StorageError if it cannot be listed."""
    sizes = _sizes(folder)
    transient = {name for name in sizes if _is_transient(name)}
    held = tuple(sorted(name for name in transient if is_held(folder / name)))
    data = {n: s for n, s in sizes.items() if n.endswith(DATA) and not n.startswith(".")}
    faults: dict[str, str] = {}
    document = _stamped(folder / STAGE, STAGE in sizes, faults)
    if document is None and data:
        faults.setdefault(STAGE, "it is missing, though there are data")
    elif document is not None and (reason := _strange(document, folder)):
        faults[STAGE] = reason
    return Surveyed(
        folder=folder,
        files=data,
        about={name: sizes[name] for name in (STAGE, SEAL) if name in sizes},
        aside={n: s for n, s in sizes.items() if _ASIDE.fullmatch(n)},
        leftovers={name: sizes[name] for name in sorted(transient - set(held))},
        held=held,
        document=document,
        seal=_seal(folder / SEAL, SEAL in sizes, faults),
        faults=faults,
    )


def is_stage_name(name: str) -> bool:
    """Whether a name is the beginning of a fingerprint, as stages are named."""
    return _MARK.fullmatch(name) is not None


def _folders(store: Path) -> list[Path]:
    """Stages and what was moved aside of them, in the order of the data flow.

    Links, and folders of other kinds or names, are somebody else's.
    """
    with guarded("list", store):
        return [
            folder
            for kind in (*kinds.stored(), IMPORTED)
            if (store / kind).is_dir()
            for folder in sorted((store / kind).iterdir())
            if folder.is_dir() and not folder.is_symlink()
            if is_stage_name(folder.name) or _is_replaced(folder)
        ]


def _is_replaced(folder: Path) -> bool:
    return _REPLACED.fullmatch(folder.name) is not None


def _sizes(folder: Path) -> dict[str, int]:
    with guarded("list", folder), os.scandir(folder) as entries:
        found = {}
        for entry in entries:
            with suppress(FileNotFoundError):  # somebody is at work, or the link leads nowhere
                if entry.is_file(follow_symlinks=False) or entry.is_symlink():
                    found[entry.name] = entry.stat().st_size
    return dict(sorted(found.items()))


def _is_transient(name: str) -> bool:
    return name.endswith(".claim") or (name.startswith(".") and name.endswith(".tmp"))


def _stamped(path: Path, there: bool, faults: dict[str, str]) -> dict[str, Any] | None:
    if not there:
        return None
    try:
        return read_stamped(path)
    except CorruptError as error:
        faults[path.name] = reason_of(error, path)
    except StorageError as error:
        if path.exists():
            faults[path.name] = str(error)
    return None


def _strange(document: Mapping[str, Any], folder: Path) -> str | None:
    """Why an intact stage.json is not that of this folder."""
    if document.get("schema") != SCHEMA:
        return None
    mark = document.get("fingerprint")
    if not (isinstance(mark, str) and is_stage(document)):
        return "it names no fingerprint, inputs or backends"
    if (document.get("stage"), mark[:12]) != (folder.parent.name, folder.name):
        return f"it belongs to {document.get('stage')}/{mark[:12]}"
    return None


def _seal(path: Path, there: bool, faults: dict[str, str]) -> dict[str, str] | None:
    document = _stamped(path, there, faults)
    if document is None or document.get("schema") != SCHEMA:
        return None
    found = texts_by_name(document.get("files"))
    if found is None:
        faults[SEAL] = "it holds no list of files"
    return found
