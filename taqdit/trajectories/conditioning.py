"""Text conditioning, encoded once per unique text and kept in the store, or encoded when needed.

One shard per text, named by the text's digest: `tokens (n, 4096)` and `pooled (d,)` as DiffusionKit
encodes the text beside an empty negative. The empty text is the negative row that all share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from taqdit.errors import CorruptError, NumericError
from taqdit.store import Shard, Stage, sha256_hex
from taqdit.store.digest import corrupt

KIND = "conditioning"
NEGATIVE = ""
AT_ONCE = 64  # texts that are encoded together where nothing is stored
OPEN_ROWS = 32  # mapped at once: each holds a file descriptor

Encode = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""text -> tokens (n, 4096) and pooled (d,)."""


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
    encode_text: Encode,
) -> Iterator[str]:
    """Write the shard of each text, yielding the text when its shard is published.

    Raises NumericError if an embedding is not finite.
    """
    for text in texts:
        tokens, pooled = _finite(text, encode_text)
        stage.write(
            shard_name(text),
            {"tokens": tokens, "pooled": pooled},
            kind=KIND,
            index=text_digest(text),
            metadata={"text": text},
        )
        yield text


def _finite(text: str, encode_text: Encode) -> tuple[np.ndarray, np.ndarray]:
    tokens, pooled = encode_text(text)
    if not (np.isfinite(tokens).all() and np.isfinite(pooled).all()):
        raise NumericError(f"the text encoder gave NaN or Inf for the prompt {text!r}")
    return tokens, pooled


def _read(stage: Stage, text: str) -> Shard:
    shard = stage.read(shard_name(text), kind=KIND, index=text_digest(text))
    found = {name: (array.ndim, array.dtype.kind) for name, array in shard.tensors.items()}
    if found != {"tokens": (2, "f"), "pooled": (1, "f")}:
        raise corrupt(
            stage.path(shard_name(text)), "it does not hold tokens (n, d) and pooled (d,)"
        )
    return shard


def _row(stage: Stage, text: str) -> tuple[np.ndarray, np.ndarray]:
    """`tokens (n, 4096)` and `pooled (d,)` of one text; verified when read."""
    tensors = _read(stage, text).tensors
    return tensors["tokens"], tensors["pooled"]


class Conditioning:
    """Read access to the conditioning rows of a stage."""

    def __init__(self, stage: Stage) -> None:
        # of no method: in a cycle, what is mapped would stay open for a while
        self.row = lru_cache(maxsize=OPEN_ROWS)(partial(_row, stage))

    def guided(self, texts: Iterable[str]) -> tuple[Any, Any]:
        """Rows for one guided forward, see `guided_rows`."""
        return guided_rows(self.row, texts)


class UnstoredConditioning:
    """Conditioning rows that are encoded when they are needed, AT_ONCE texts at a time.

    `texts` come in the order in which they will be asked for; `done` is called after each group
    was encoded, so that the encoders can be dropped. The rows are those that a store would hold.
    """

    def __init__(self, texts: Sequence[str], encode_text: Encode, done: Callable[[], None]) -> None:
        self._texts, self._encode, self._done = list(dict.fromkeys(texts)), encode_text, done
        self._rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def row(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """`tokens (n, 4096)` and `pooled (d,)` of one text."""
        if text not in self._rows:
            start = self._texts.index(text) if text in self._texts else 0
            group = [NEGATIVE, text, *self._texts[start : start + AT_ONCE]]
            kept = {NEGATIVE: self._rows[NEGATIVE]} if self._rows else {}
            missing = [each for each in dict.fromkeys(group) if each not in kept]
            self._rows = kept | {each: _finite(each, self._encode) for each in missing}
            self._done()
        return self._rows[text]

    def guided(self, texts: Iterable[str]) -> tuple[Any, Any]:
        """Rows for one guided forward, see `guided_rows`."""
        return guided_rows(self.row, texts)


def guided_rows(row: Encode, texts: Iterable[str]) -> tuple[Any, Any]:
    """Rows for one guided forward, the positives first, then one negative for each.

    Returns tokens (2N, n, 4096) and pooled (2N, d) as mlx arrays.
    """
    from taqdit.backend import mx

    positive = [row(text) for text in texts]
    rows = positive + [row(NEGATIVE)] * len(positive)
    if len({(tokens.shape, pooled.shape) for tokens, pooled in rows}) > 1:
        raise CorruptError(
            "rows of the conditioning differ in shape; refresh=[conditioning] makes them again"
        )
    tokens, pooled = (np.stack([each[part] for each in rows]) for part in (0, 1))
    return mx.array(tokens), mx.array(pooled)
