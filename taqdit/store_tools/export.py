"""Exports of a run: a folder of images or latents with metadata.jsonl, or a calibration.npz.

An export can be cut off and repeated: what is there and is right stays, what is missing is added,
and metadata.jsonl, which lists the files, comes last. Nothing that is not of the same export is
written over, or left lying among the images for a tool to count in.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from taqdit.errors import CorruptError, InputError, StorageError
from taqdit.report.run_folder import RunFolder
from taqdit.runs.api import open_run
from taqdit.store import disk, make_folder, npz, publish_bytes, sha256_file
from taqdit.store.lock import hold
from taqdit.store_tools.image_set import Entry, ImageSet, lacks
from taqdit.trajectories import pictures as images
from taqdit.trajectories.shards import read_trajectory

FORMATS = ("images", "npz", "latents")
METADATA = "metadata.jsonl"
CALIBRATION = "calibration.npz"
_FRESH = ".new"  # an export made to compare it with the file that is there
_TEMPORARY = r"\.[0-9]+-[0-9a-f]+\.tmp"  # ends the name of a file that is being published
_LEFTOVER = re.compile(rf"\.(.+?\.npz)\{_FRESH}|\.(?:\.(.+?\.npz)\{_FRESH}|([^.].+?)){_TEMPORARY}")


def export_run(run: Path, to: Path, form: str) -> tuple[int, int]:
    """Export a run in one of FORMATS; files written, and files that were there.

    InputError for a folder that holds other things, CorruptError, once all that is whole is
    exported, if something is not.
    """
    store = (run / RunFolder(run).record()["store"]).resolve()
    if store in (to.resolve(), *to.resolve().parents):
        raise InputError(f"{to} lies in the store; choose another folder with --to")
    if form == "npz":
        target = _Export(to, [CALIBRATION])
        target.produce(CALIBRATION, lambda path: open_run(run).calibration().export_npz(path))
        return target.counts
    image_set = ImageSet.of_run(run)
    if form == "images" and not image_set.pictures:
        raise InputError(f"{run} decoded no images (sampler.images=false); use --format latents")
    return _export_set(image_set, to, ".png" if form == "images" else ".npz")


def _export_set(image_set: ImageSet, to: Path, suffix: str) -> tuple[int, int]:
    names = {index: f"{index:06d}{suffix}" for index in image_set.numbers}
    target = _Export(to, [*names.values(), METADATA])
    lines: dict[int, str] = {}
    lacking: dict[int, str] = {}
    for index, name in names.items():
        try:
            entry = image_set.entry(index)
        except (CorruptError, StorageError) as error:
            lacking[index] = str(error)
            continue
        lines[index] = _line(image_set, entry, name)
        if suffix == ".png":
            source = image_set.stage.path(images.picture_name(index))  # verified by `entry`
            target.picture(name, source, owner=image_set.owner(index))
        else:
            target.produce(name, partial(_write_latents, image_set, index))
    if lacking:
        raise CorruptError(
            f"{image_set.stage.folder}: of {image_set.count} images {lacks(lacking)}; the others"
            f" are in {to}, without {METADATA}: repeat the run, then the export"
        )
    target.text(METADATA, lines.values())
    return target.counts


def _line(image_set: ImageSet, entry: Entry, name: str) -> str:
    """One line of metadata.jsonl: ASCII, so that no reader takes a character for a line's end."""
    return json.dumps({"file_name": name, "image_id": entry.index, **image_set.described(entry)})


def _write_latents(image_set: ImageSet, index: int, path: Path) -> None:
    arrays = read_trajectory(image_set.stage, index)
    npz.write(path, [npz.Member(k, v.dtype, v.shape, [v]) for k, v in sorted(arrays.items())])


class _Export:
    """A folder that holds files of one export and nothing else. InputError if it does not."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder, allowed = folder, set(names)
        self._written = self._present = 0
        make_folder(folder)
        with disk.guarded("list", folder):
            listed = sorted(path.name for path in folder.iterdir())
        for name in listed:
            leftover = _LEFTOVER.fullmatch(name)
            if leftover and not allowed.isdisjoint(leftover.groups()):
                disk.discard_dead(folder / name)
            elif name not in allowed and not name.startswith("."):  # no tool reads hidden files
                raise InputError(
                    f"{folder} holds {name!r}, which is not of this export; give --to a folder of"
                    " its own"
                )

    @property
    def counts(self) -> tuple[int, int]:
        """Files written, and files that were there already."""
        return self._written, self._present

    def picture(self, name: str, source: Path, *, owner: str) -> None:
        """Copy a verified PNG; one that is there must be the same picture of the same owner."""
        path = self._folder / name
        if not os.path.lexists(path):
            with disk.guarded("read", source):
                data = source.read_bytes()
            self._publish(path, data)
            return
        try:
            images.read_picture(path, owner=owner)
        except (CorruptError, StorageError) as error:
            raise InputError(f"{path} is there and is not of this export: {error}") from error
        self._present += 1

    def produce(self, name: str, write: Callable[[Path], object]) -> None:
        """Let `write` publish a file; one that is there must hold the same bytes."""
        path = self._folder / name
        if not os.path.lexists(path):
            write(path)
            self._written += 1
            return
        fresh = self._folder / f".{name}{_FRESH}"
        try:
            write(fresh)
            with disk.guarded("read", fresh), fresh.open("rb") as file:
                hold(file)  # so that another export takes it for no dead one's
                same = path.is_file() and sha256_file(path) == sha256_file(fresh)
        finally:
            disk.remove(fresh)
        if not same:
            raise InputError(f"{path} is there and is not of this export; give --to another folder")
        self._present += 1

    def text(self, name: str, lines: Iterable[str]) -> None:
        """Publish lines; a file that is there may hold some of them, as of a smaller run."""
        path, wanted = self._folder / name, [f"{line}\n".encode() for line in lines]
        if os.path.lexists(path):
            known = path.read_bytes() if path.is_file() else b"?"
            if known == b"".join(wanted):
                self._present += 1
                return
            if not set(known.splitlines(keepends=True)) <= set(wanted):
                raise InputError(f"{path} is there and is of another export; give --to another")
        self._publish(path, b"".join(wanted))

    def _publish(self, path: Path, data: bytes) -> None:
        publish_bytes(path, data)
        self._written += 1
