"""`taqdit store import FILE.npz|FOLDER`: data made elsewhere, checked and put into the store."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from taqdit import config
from taqdit.activations.opened import ImportedStatistics
from taqdit.calibration.imported import import_npz
from taqdit.config.overrides import spell
from taqdit.config.parser import Arguments
from taqdit.errors import InputError, StorageError
from taqdit.runs.summary import describe_calibration, describe_statistics
from taqdit.stages.fingerprints import fingerprint
from taqdit.store import Stage, disk, publish, publish_bytes, sha256_file, sha256_hex
from taqdit.store.disk import identity_at
from taqdit.store_tools.foreign_images import METADATA, ForeignImages

NAME = "imported"
_CHUNK = 2**20
_KINDS = {"calibration": "calibration.npz", "statistics": "activation_statistics.npz"}


def import_data(arguments: Sequence[str]) -> int:
    """Check an .npz or a folder of images made elsewhere and put it into the store.

    InputError for anything that is no such data, however hostile; nothing of it is stored then.
    """
    parser = Arguments("store import", "Check data made elsewhere and put it into the store.")
    parser.add_argument(
        "source",
        type=Path,
        metavar="FILE.npz|FOLDER",
        help="a calibration set, activation statistics, or PNGs with a metadata.jsonl",
    )
    parser.add_argument("--output-dir", type=Path, metavar="FOLDER", help="default: output_dir")
    given = parser.parse_args(list(arguments))
    store = (given.output_dir or Path(config.compose_config().output_dir)) / "store"
    take = _images if given.source.is_dir() else _file
    print("\n".join(take(given.source, store)))
    return 0


def _file(source: Path, store: Path) -> list[str]:
    """Take an .npz in; what to say about it."""
    if not source.is_file():
        raise InputError(f"{source} is no file; give an .npz, or a folder of images")
    digest = sha256_file(source)  # taken first: what is judged must be what is copied
    kind, contents = _described(source)
    name = _KINDS[kind]
    inputs: dict[str, Any] = {"kind": kind, "file": name, "sha256": digest, **contents}
    stage = _open(store, inputs)
    path = stage.path(name)
    with _claimed(stage):
        if not _holds(stage, name, digest):
            with disk.guarded("read", source), source.open("rb") as data:
                _copy(data, path, digest)
        _seal(stage, {name: digest})
    counts = ", ".join(f"{value} {key}" for key, value in contents.items() if type(value) is int)
    place = str(path)
    plain = re.fullmatch(r"[\w./-]+", place)
    override = f"inputs.{kind}={place}" if plain else shlex.quote(f"inputs.{kind}={spell(place)}")
    return [
        f"imported      {path}",
        f"{'':<14}{kind}: {counts}; use it with",
        f"{'':<14}taqdit {override}",
    ]


def _described(source: Path) -> tuple[str, dict[str, Any]]:
    """Which kind of file it is, and what it holds. InputError if it is of none."""
    try:
        contents = describe_calibration(import_npz(source))
        return "calibration", {**contents, "steps": len(contents["steps"])}
    except InputError as error:
        refused = error
    try:
        return "statistics", describe_statistics(ImportedStatistics.open(source))
    except InputError as error:
        raise InputError(
            f"no calibration set: {refused}", f"no activation statistics: {error}"
        ) from error


def _images(source: Path, store: Path) -> list[str]:
    """Take a folder of PNGs in; what to say about it."""
    pictures = ForeignImages.of(source)
    inputs: dict[str, Any] = {
        "kind": "images",
        "file": METADATA,
        "sha256": sha256_hex(pictures.text),
        "images": len(pictures.digests),
        "files": fingerprint({"files": [list(pair) for pair in pictures.digests.items()]}),
    }
    stage = _open(store, inputs)
    with _claimed(stage):
        for name, digest in pictures.digests.items():
            if not _holds(stage, name, digest):
                publish_bytes(stage.path(name), pictures.read(name))
        if not _holds(stage, METADATA, inputs["sha256"]):
            publish_bytes(stage.path(METADATA), pictures.text)
        _seal(stage, {**pictures.digests, METADATA: inputs["sha256"]})
    count = len(pictures.digests)
    return [
        f"imported      {stage.folder}",
        f"{'':<14}{count} images with prompts; FID tools and data loaders read the folder",
    ]


def _open(store: Path, inputs: dict[str, Any]) -> Stage:
    own = fingerprint(inputs)
    return Stage.open(store, NAME, fingerprint=own, inputs=inputs, backend={}, lost={})


@contextmanager
def _claimed(stage: Stage) -> Iterator[None]:
    with stage.claim(NAME) as mine:
        if not mine:
            raise StorageError(f"another process imports into {stage.folder}; wait for it to end")
        yield


def _holds(stage: Stage, name: str, digest: str) -> bool:
    """Whether a file is there and whole; one that is damaged is moved aside."""
    path = stage.path(name)
    if (identity := identity_at(path)) is None:
        return False
    if sha256_file(path) == digest:
        return True
    reason = "its bytes are not those that were imported"
    stage.quarantine(name, reason, judged=identity, keep_seal=True)
    return False


def _seal(stage: Stage, digests: Mapping[str, str]) -> None:
    """Seal the stage, unless its seal lists just these files."""
    if stage.seal_list != digests:
        stage.seal()


def _copy(data: BinaryIO, path: Path, digest: str) -> None:
    """Publish a copy, if it has that digest. InputError if the file changed meanwhile."""

    def write(file: BinaryIO) -> None:
        seen = hashlib.sha256()
        while chunk := data.read(_CHUNK):
            seen.update(chunk)
            file.write(chunk)
        if seen.hexdigest() != digest:
            raise InputError(f"{data.name} changed while it was read; import it again")

    publish(path, write, size_hint=Path(data.name).stat().st_size)
