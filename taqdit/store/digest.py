"""One way to write JSON, one way to hash, and JSON documents that carry their own digest."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taqdit.errors import CorruptError
from taqdit.store.disk import guarded


def canonical_json(value: object) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, non-ASCII characters as they are.

    Tuples become lists and all keys strings, so that reading the text and writing it again gives
    the same text. ValueError for NaN, infinity or a lone surrogate (no UTF-8 file can hold one);
    TypeError for what JSON has no form for, keys of mixed types included.
    """
    try:
        plain = json.loads(json.dumps(value, sort_keys=True, allow_nan=False))
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    text.encode()  # refuses what UTF-8 cannot hold
    return text


def sha256_hex(data: bytes) -> str:
    """SHA-256 of `data`, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes. StorageError when it cannot be read."""
    with guarded("read", path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as plain JSON data, plus `sha256`, the digest of its canonical JSON."""
    text = canonical_json(value)
    return {**json.loads(text), "sha256": sha256_hex(text.encode())}


def read_stamped(path: Path) -> dict[str, Any]:
    """The stamped document in a file, without its digest. CorruptError when that does not fit."""
    with guarded("read", path):
        data = path.read_bytes()
    try:
        value = parse_object(data)
        stored = value.pop("sha256", None)
        fits = stored == sha256_hex(canonical_json(value).encode())
    except ValueError as error:
        raise corrupt(path, str(error)) from error
    if not fits:
        raise corrupt(path, "its contents do not fit its sha256")
    return value


def parse_object(text: bytes | str) -> dict[str, Any]:
    """A JSON object. ValueError for anything else, however hostile."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it holds no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError("its JSON is not an object")
    return value


def corrupt(path: Path, reason: str) -> CorruptError:
    """The error to raise for a file that does not hold what was written."""
    return CorruptError(
        f"{path} is corrupt: {reason}; restore it, or move it away and make it again"
    )
