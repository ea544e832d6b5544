"""Text conditioning, encoded once per unique text and kept in the store.

One shard per text, named by the text's digest: `tokens (n, 4096)` and `pooled (d,)` as DiffusionKit
encodes the text beside an empty negative. The empty text is the negative row that all share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from taqdit.errors import NumericError
from taqdit.store import Shard, Stage, sha256_hex

KIND = "conditioning"
NEGATIVE = ""


def text_digest(text: str) -> str:
    """SHA-256 of the text in UTF-8, 64 hex digits."""
    return sha256_hex(text.encode())


def shard_name(text: str) -> str:
    """File name of the text's shard."""
    return f"{text_digest(text)[:16]}.safetensors"


def missing_texts(stage: Stage, texts: Iterable[str]) -> list[str]:
    """Those of `texts`, and the negative, that have no valid shard; in order, each once."""
    wanted = list(dict.fromkeys([NEGATIVE, *texts]))
    owner = {shard_name(text): text for text in wanted}
    present = stage.valid(owner, verify=lambda path: _read(stage, owner[path.name]))
    return [text for text in wanted if shard_name(text) not in present]


def encode(
    stage: Stage,
    texts: Iterable[str],
    encode_text: Callable[[str], tuple[np.ndarray, np.ndarray]],
) -> Iterator[str]:
    """Write the shard of each text, yielding the text when its shard is published.

    Raises NumericError if an embedding is not finite.
    """
    for text in texts:
        tokens, pooled = encode_text(text)
        if not (np.isfinite(tokens).all() and np.isfinite(pooled).all()):
            raise NumericError(f"the text encoder gave NaN or Inf for the prompt {text!r}")
        stage.write(
            shard_name(text),
            {"tokens": tokens, "pooled": pooled},
            kind=KIND,
            index=text_digest(text),
            metadata={"text": text},
        )
        yield text


def _read(stage: Stage, text: str) -> Shard:
    return stage.read(shard_name(text), kind=KIND, index=text_digest(text))


class Conditioning:
    """Read access to the conditioning rows of a stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.row = lru_cache(maxsize=64)(self._row)

    def _row(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """`tokens (n, 4096)` and `pooled (d,)` of one text; verified when read."""
        tensors = _read(self._stage, text).tensors
        return tensors["tokens"], tensors["pooled"]

    def guided(self, texts: Iterable[str]) -> tuple[Any, Any]:
        """Rows for one guided forward, the positives first, then one negative for each.

        Returns tokens (2N, n, 4096) and pooled (2N, d) as mlx arrays.
        """
        from taqdit.backend import mx

        positive = [self.row(text) for text in texts]
        rows = positive + [self.row(NEGATIVE)] * len(positive)
        tokens, pooled = (np.stack([row[part] for row in rows]) for part in (0, 1))
        return mx.array(tokens), mx.array(pooled)
