"""One way to write JSON, one way to hash, and JSON documents that carry their own digest."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taqdit.errors import CorruptError
from taqdit.store.disk import guarded, reading

STAGE, SEAL = "stage.json", "SEALED.json"  # what describes a stage, and lists its finished files
MAX_DOCUMENT, MAX_STAMPED = 2**23, 2**28  # bytes; the latter is a seal of 2.5 million files
_FREE_VALUES, _BYTES_EACH = 2**16, 24  # lists, objects and texts of a document; a seal has 31
_ADVICE = "; restore it, or have it moved aside (taqdit store repair) and make it again"
_TEXT = re.compile(rb'"[^"]*"?')


def canonical_json(value: object) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, non-ASCII characters as they are.

    Tuples become lists and all keys strings, so that reading the text and writing it again gives
    the same text. ValueError for NaN, infinity or a lone surrogate (no UTF-8 file can hold one);
    TypeError for what JSON has no form for, keys of mixed types included.
    """
    try:
        return _spelled(json.loads(json.dumps(value, sort_keys=True, allow_nan=False))).decode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _spelled(plain: object) -> bytes:
    """Canonical JSON of what JSON gave. ValueError for what UTF-8 cannot hold, or not finite."""
    form: dict[str, Any] = {"separators": (",", ":"), "ensure_ascii": False, "allow_nan": False}
    return json.dumps(plain, sort_keys=True, **form).encode()


def sha256_hex(data: bytes) -> str:
    """SHA-256 of `data`, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes. StorageError when it cannot be read."""
    with guarded("read", path), reading(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as plain JSON data, plus `sha256`, the digest of its canonical JSON."""
    text = canonical_json(value)
    return {**json.loads(text), "sha256": sha256_hex(text.encode())}


def read_stamped(path: Path) -> dict[str, Any]:
    """The stamped document in a file, without its digest. CorruptError when that does not fit."""
    try:
        with guarded("read", path):
            value = read_object(path, most=MAX_STAMPED)
        stored = value.pop("sha256", None)
        fits = stored == sha256_hex(_spelled(value))
    except (ValueError, RecursionError) as error:
        raise corrupt(path, str(error)) from error
    if not fits:
        raise corrupt(path, "its contents do not fit its sha256")
    return value


def read_object(path: Path, *, most: int = MAX_DOCUMENT) -> dict[str, Any]:
    """The JSON object in a file. OSError when it cannot be read; ValueError for anything else, and
    for what would take far more memory than the file has bytes."""
    with reading(path) as file:
        data = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return parse_bounded(data)


def parse_bounded(data: bytes) -> dict[str, Any]:
    """A JSON object that takes little more memory than its bytes. ValueError for anything else."""
    bare = _TEXT.sub(b'"', data.replace(b"\\\\", b"").replace(b'\\"', b""))
    if sum(map(bare.count, (b"[", b"{", b'"'))) > _FREE_VALUES + len(data) // _BYTES_EACH:
        raise ValueError("it holds more lists, objects and texts than any document of taqdit")
    return parse_object(data)


def parse_object(text: bytes | str) -> dict[str, Any]:
    """A JSON object. ValueError for anything else, however hostile, and for a key that comes twice:
    readers differ in what they make of that."""
    try:
        value = _DECODER.decode(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it holds no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError("its JSON is not an object")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"{key[:80]!r} comes twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_each_once)


def is_stage(document: Mapping[str, Any]) -> bool:
    """Whether a stage.json has the inputs and backends that one reads of it."""
    return isinstance(document.get("inputs"), dict) and _all(document.get("backends"), dict)


def _all(values: object, kind: type) -> bool:
    """Whether it is a list of such things."""
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def texts_by_name(pairs: Any) -> dict[str, str] | None:
    """The pairs of texts in a list; None if it is no such list."""
    if _all(pairs, list) and all(len(pair) == 2 and _all(pair, str) for pair in pairs):
        return dict(pairs)
    return None


def corrupt(path: Path, reason: str) -> CorruptError:
    """The error to raise for a file that does not hold what was written."""
    return CorruptError(f"{path} is corrupt: {reason}{_ADVICE}")


def reason_of(error: Exception, path: Path) -> str:
    """What is wrong with a file, without its path and what to do about it."""
    return str(error).removeprefix(f"{path} is corrupt: ").removesuffix(_ADVICE)
