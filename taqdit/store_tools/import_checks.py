"""What was imported is held against the digests that stage.json has of it, sealed or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from taqdit.stages.checks.check import Check, Problem
from taqdit.stages.fingerprints import fingerprint
from taqdit.store.digest import parse_bounded
from taqdit.store.disk import guarded, reading
from taqdit.store_tools.stage_folder import Surveyed
from taqdit.trajectories import pictures as images
from taqdit.words import listed

_MAX_LIST = 2**24  # bytes of metadata.jsonl


class Imported(Check):
    """An .npz, or PNGs and the list of them.

    stage.json has the digest of the .npz, or of the list, and one of all PNGs together; the seal
    has every file's. Without it a PNG is held against its own checksums, and all against theirs.
    """

    def __init__(self, stage: Surveyed) -> None:
        super().__init__(stage.kind, stage.inputs, list(stage.files))
        self._stage = stage
        self._digests: dict[str, str] = {}
        self._listed: list[str] = []

    def foreign(self, name: str, path: Path, digest: str) -> Iterator[Problem]:
        """What is wrong with a file of this SHA-256."""
        self._digests[name] = digest
        if name == self.inputs.get("file"):
            if digest != self.inputs["sha256"]:
                yield "digest", "its bytes are not those that were imported"
            elif self._is_folder:
                self._listed = _listed(path)

    def close(self) -> Iterator[tuple[str | None, str, str]]:
        """What is missing since it was moved aside; without a seal also what else is, and PNGs
        that are not as they were imported."""
        moved = self._stage.moved_aside
        if self._stage.seal is not None:
            gone = moved & set(self._stage.lost)
        else:
            known = {self.inputs["file"], *self._listed} if self.inputs else set[str]()
            gone = (known | moved) - set(self.files)
            if self._is_folder and (gone or not self._complete):
                yield from self._pictures()
        if gone:
            source = "the folder" if self._is_folder else "the file"
            names = listed(sorted(gone), 1)
            yield None, "gap", f"missing: {names}; taqdit store import of {source} stores it again"

    @property
    def _is_folder(self) -> bool:
        return bool(self.inputs.get("kind") == "images")

    @property
    def _complete(self) -> bool:
        """Whether all PNGs together are those that were imported."""
        digests = [[name, self._digests.get(name)] for name in self._listed]
        return fingerprint({"files": digests}) == self.inputs["files"]

    def _pictures(self) -> Iterator[tuple[str | None, str, str]]:
        """PNGs that are damaged; if there are none, and all were read, that one is another."""
        pngs = [name for name in self._digests if name.endswith(".png")]
        damaged = {name: reason for name in pngs if (reason := _damage(self._stage.folder / name))}
        for name, reason in damaged.items():
            yield name, "digest", reason
        if self._listed and self._digests.keys() >= set(self._listed) and not damaged:
            yield None, "digest", "its PNGs are whole, but not all are those that were imported"


def _listed(path: Path) -> list[str]:
    """The PNGs that a metadata.jsonl names. ValueError or KeyError if it is none."""
    with guarded("read", path), reading(path) as file:
        lines = file.read(_MAX_LIST).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [str(parse_bounded(line)["file_name"]) for line in lines if line.strip()]


def _damage(path: Path) -> str | None:
    """Why a file is no whole PNG."""
    try:
        with reading(path) as file:
            images.decoded(file.read(images.MAX_BYTES + 1))
    except FileNotFoundError:  # another process is at work
        return None
    except (OSError, ValueError) as error:
        return f"it is not a whole PNG ({error})"
    return None
