"""What shards and images of any stage must be, beyond being as they were written.

Each check gets the shards of one stage in the order of their names, and yields (kind, words) of
what is wrong. Kinds in WARNINGS are suspicious, all others are corrupt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np

from taqdit.store import Shard

Problem = tuple[str, str]
WARNINGS = ("dead", "exploding", "start", "blank", "gap", "undefined", "unexpected", "version")


class Alike:
    """Something that should be the same for all files of a stage."""

    def __init__(self) -> None:
        self._found: dict[str, Hashable] = {}

    def add(self, name: str, value: Hashable) -> None:
        """What it is for one file."""
        self._found[name] = value

    def odd(self) -> Iterator[tuple[str, Hashable, Hashable]]:
        """The files for which it is not what it is for most, with what it is and should be."""
        counts = Counter(self._found.values())
        for name, value in self._found.items():
            if value != (usual := counts.most_common(1)[0][0]):
                yield name, value, usual


class Check:
    """Any stage: kind and index of a shard are what its name says. `files` are all that there
    are."""

    kind: str | None = None  # of its shards
    tells_gaps = False  # whether `close` tells which units are missing

    def __init__(self, stage: str, inputs: Mapping[str, Any], files: Sequence[str]) -> None:
        self.stage, self.inputs, self.files = stage, inputs, files
        self.misplaced: set[str] = set()  # files that belong elsewhere, whatever they are called

    def index(self, name: str, shard: Shard) -> int | str | None:
        """The unit that a file of this name holds; None if there is no such name."""
        return name.removesuffix(".safetensors")

    def shard(self, name: str, shard: Shard) -> Iterator[Problem]:
        """What is wrong with an intact shard."""
        index, kind = self.index(name, shard), self.kind or self.stage
        found = shard.metadata.get("kind"), shard.metadata.get("index")
        if index is None:
            yield "unexpected", "no unit of this stage has such a name"
        elif found != (kind, index) or type(found[1]) is not type(index):
            yield "place", f"it holds {found[0]} {found[1]!r}, its name says {kind} {index!r}"
        else:
            yield from self.contents(name, shard)

    def contents(self, name: str, shard: Shard) -> Iterator[Problem]:
        """What is wrong with its numbers."""
        yield from not_finite(shard.tensors)

    def owner(self, name: str) -> str | None:
        """The unit that an image belongs to; None if the stage has none of such a name."""
        return None

    def picture(self, name: str, pixels: np.ndarray) -> Iterator[Problem]:
        """What is wrong with an intact image (H, W, 3)."""
        return iter(())

    def close(self) -> Iterator[tuple[str | None, str, str]]:
        """What only all together show: (file name or None, kind, words)."""
        return iter(())


class Unknown(Check):
    """Nothing is known of what the shards should be."""

    def shard(self, name: str, shard: Shard) -> Iterator[Problem]:
        """That it is as it was written is all that can be said."""
        return iter(())


class TableCheck(Check):
    """Tables that may say that something is not defined: NaN is a warning."""

    def contents(self, name: str, shard: Shard) -> Iterator[Problem]:
        """NaN, of a site that is constant for instance."""
        for key, array in sorted(shard.tensors.items()):
            if array.dtype.kind == "f" and (number := int(np.isnan(array).sum())):
                yield "undefined", f"{key} holds {number} NaN of {array.size}"


def not_finite(tensors: Mapping[str, np.ndarray]) -> Iterator[Problem]:
    """Tensors that hold NaN or infinities."""
    for name, array in sorted(tensors.items()):
        if array.dtype.kind != "f" or not array.size:
            continue
        if array.dtype == np.float16:
            array = array.astype(np.float32)  # numpy compares halves slowly
        if not (np.isfinite(array.min()) and np.isfinite(array.max())):
            at = np.flatnonzero(~np.isfinite(array))
            place = tuple(int(i) for i in np.unravel_index(at[0], array.shape))
            yield "nonfinite", f"{name} holds {at.size} NaN or Inf, the first at {place}"


def told(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Shapes of tensors, by name."""
    return ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))


def first_gap(numbers: set[int]) -> int:
    """The smallest number from 0 that is not among them."""
    return next(number for number in count() if number not in numbers)
