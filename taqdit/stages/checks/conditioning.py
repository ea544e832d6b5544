"""What the shards of conditioning must be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from taqdit.stages.checks.check import Alike, Check, Problem, not_finite, told
from taqdit.store import Shard
from taqdit.trajectories import conditioning


class ConditioningCheck(Check):
    """Rows of one shape, named by their texts."""

    def __init__(self, stage: str, inputs: Mapping[str, Any], files: Sequence[str]) -> None:
        super().__init__(stage, inputs, files)
        self._shapes = Alike()

    def index(self, name: str, shard: Shard) -> str | None:
        """The digest of its text."""
        text = str(shard.metadata.get("text"))
        return conditioning.text_digest(text) if conditioning.shard_name(text) == name else None

    def shard(self, name: str, shard: Shard) -> Iterator[Problem]:
        """A row under another's name is no stray file."""
        if self.index(name, shard) is None:
            yield "place", "it holds the row of another text than its name says"
        else:
            yield from super().shard(name, shard)

    def contents(self, name: str, shard: Shard) -> Iterator[Problem]:
        """`tokens (n, 4096)` and `pooled (d,)`, not all the same."""
        shapes = {key: each.shape for key, each in shard.tensors.items()}
        if set(shapes) != {"tokens", "pooled"}:
            yield "shape", f"it holds {told(shapes)}, not tokens and pooled"
            return
        self._shapes.add(name, told(shapes))
        bad = list(not_finite(shard.tensors))
        yield from bad
        if not bad and any(np.ptp(each) == 0 for each in shard.tensors.values()):
            yield "dead", "an embedding has one value throughout"

    def close(self) -> Iterator[tuple[str | None, str, str]]:
        """Rows of another shape than most."""
        for name, found, usual in self._shapes.odd():
            yield name, "shape", f"it holds {found}, others {usual}"
