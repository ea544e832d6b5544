"""stage.json: says what a stage is before there are data of it; written anew where it was lost."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from taqdit.errors import CorruptError, StorageError
from taqdit.store import disk
from taqdit.store.aside import rename_away
from taqdit.store.claim import claim
from taqdit.store.digest import (
    STAGE,
    canonical_json,
    corrupt,
    is_stage,
    read_stamped,
    reason_of,
    stamp,
)

SCHEMA = 1
_CLAIM, _POLL_SECONDS = "founding.claim", 0.1
_WAY_OUT = "or keep its data, made on an unknown backend, with allow_backend_change=true"
_log = logging.getLogger(__name__)

UNKNOWN: Mapping[str, Any] = {"backend": "unknown"}
"""Stands for all that a lost stage.json named. It equals no real one, which names its device."""
Names = Callable[[], list[str]]
"""Lists the data files of the stage as they are now."""


def document_of(
    name: str, fingerprint: str, inputs: Mapping[str, Any], backend: Mapping[str, Any]
) -> dict[str, Any]:
    """The stage.json of a new stage."""
    head = {"schema": SCHEMA, "stage": name, "fingerprint": fingerprint}
    return {**head, "inputs": inputs, "backends": [backend]}


def read_document(path: Path, fingerprint: str) -> dict[str, Any]:
    """A stage.json as it is now: another process may have added its backend.

    CorruptError when it is damaged, StorageError when it belongs to another fingerprint or
    version, or cannot be read.
    """
    document = read_stamped(path)
    if document.get("schema") != SCHEMA:
        raise StorageError(
            f"{path} has schema {repr(document.get('schema'))[:40]}, this version reads "
            f"{SCHEMA}; use another output_dir"
        )
    if not is_stage(document):
        raise corrupt(path, "its inputs or backends are none")
    if (other := document.get("fingerprint")) != fingerprint:
        raise StorageError(
            f"{path} belongs to fingerprint {str(other)[:64]!r}, not "
            f"{fingerprint}; move its folder away, or use another output_dir"
        )
    return document


def establish(
    path: Path, document: Mapping[str, Any], names: Names, *, lost: Mapping[str, Any] | None
) -> None:
    """Write a stage.json that is not there. One that is damaged, or gone though there are data,
    is moved aside and written anew; data there are, it then says, were made on the backend `lost`.

    CorruptError where there are data and `lost` is None; StorageError as `read_document`.
    """
    while (problem := _loss(path, document, names)) is not None:
        with claim(path.with_name(_CLAIM)) as mine:
            # Another process may have been faster, and have data and its backend there by now.
            if mine and (problem := _loss(path, document, names)) is not None:
                data = names()
                if data and lost is None:
                    raise CorruptError(f"{problem}, {_WAY_OUT}")
                backends = [lost] if data else document["backends"]
                _write_anew(path, {**document, "backends": backends}, problem)
                return
        if not mine:
            time.sleep(_POLL_SECONDS)
    if not path.exists():
        disk.publish_json(path, stamp(document))


def _loss(path: Path, document: Mapping[str, Any], names: Names) -> CorruptError | None:
    """Why the stage.json that was written is of no use; None if it is whole, or there was none."""
    try:
        read_document(path, document["fingerprint"])
    except CorruptError as error:
        return error
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        if names():
            return corrupt(path.parent, f"it holds data but no {STAGE}")
    return None


def _write_anew(path: Path, document: Mapping[str, Any], problem: CorruptError) -> None:
    """The seal, if there is one, stays: it tells of the data alone, and is as true as before."""
    damaged = path.exists()
    reason = reason_of(problem, path if damaged else path.parent)
    former = f" (kept as {rename_away(path, '.bad-').name})" if damaged else ""
    disk.publish_json(path, stamp(document))
    backends = document["backends"]
    where = f": made on {described(*backends)}" if any(backends) else ""
    _log.warning("%s is written anew%s; the former was lost: %s%s", path, where, reason, former)


def among(backend: Mapping[str, Any], backends: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a backend is one of several."""
    return canonical_json(backend) in map(canonical_json, backends)


def worded(backend: Mapping[str, Any]) -> str:
    """A backend in words."""
    if backend == UNKNOWN:
        return "an unknown backend"
    return ", ".join(f"{key} {value}" for key, value in backend.items())


def described(*backends: Mapping[str, Any]) -> str:
    """Backends in words, each that is known in brackets."""
    names = (worded(b) if b == UNKNOWN else f"({worded(b)})" for b in backends)
    return " and ".join(names)
