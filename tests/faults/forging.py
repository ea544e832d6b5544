"""Safetensors files taken apart and put together anew, right or wrong, by code of its own.

Nothing here is taqdit's: what a shard's digest covers is spelled out a second time.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


def canonical(value) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass
class Parts:
    """A file's metadata and its tensors: name -> [dtype, shape, bytes], in the file's order."""

    metadata: dict[str, Any]
    tensors: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes) -> "Parts":
        """Take a file apart without checking it. Raises anything where that cannot be."""
        length = int.from_bytes(data[:8], "little")
        fields = json.loads(data[8 : 8 + length])
        metadata = json.loads(fields.pop("__metadata__")["taqdit"])
        body = data[8 + length :]
        tensors = {}
        for name, entry in fields.items():
            begin, end = entry["data_offsets"]
            tensors[name] = [entry["dtype"], entry["shape"], body[begin:end]]
        if not isinstance(metadata, dict):
            raise TypeError("metadata")
        return cls(metadata, tensors)

    def copy(self) -> "Parts":
        tensors = {name: [d, list(s), b] for name, (d, s, b) in self.tensors.items()}
        return Parts(dict(self.metadata), tensors)

    def digest(self) -> str:
        """As the store makes it: of the metadata without itself, then of each tensor by name."""
        described = {key: value for key, value in self.metadata.items() if key != "sha256"}
        found = hashlib.sha256(canonical(described).encode())
        for name in sorted(self.tensors):
            dtype, shape, data = self.tensors[name]
            found.update(canonical([name, dtype, shape]).encode() + data)
        return found.hexdigest()

    def file(self, *, anew: bool, **changes) -> bytes:
        """The file, with its digest as it was or made anew; `changes` as `assembled` takes them."""
        metadata = {**self.metadata, "sha256": self.digest()} if anew else self.metadata
        return assembled(canonical(metadata), self.tensors, **changes)


def assembled(metadata: object, tensors, *, fields=None, ordered=True, padded=True) -> bytes:
    """A file of `metadata` (the text under `taqdit`) and tensors; `fields` replaces entries of the
    header after it was made."""
    width = {"8": 1, "L": 1, "6": 2, "2": 4, "4": 8}  # by the last character of a dtype
    names = list(tensors)
    if ordered:
        names.sort(key=lambda name: (-width.get(str(tensors[name][0])[-1:], 1), name))
    header: dict[str, Any] = {"__metadata__": {"taqdit": metadata}}
    end, body = 0, b""
    for name in names:
        dtype, shape, data = tensors[name]
        begin, end = end, end + len(data)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        body += data
    return framed({**header, **(fields or {})}, body, padded=padded)


def framed(header: object, body: bytes = b"", *, length=None, padded=True) -> bytes:
    """A header, given as bytes or as what JSON can hold, and what follows it."""
    text = header if isinstance(header, bytes) else None
    if text is None:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
        text = text.encode("utf-8", "surrogatepass")
        text += b" " * (-len(text) % 8 if padded else 0)
    said = len(text) if length is None else length
    return said.to_bytes(8, "little") + text + body
