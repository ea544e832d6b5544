"""Byte-pair encoding in CLIP's file format, learnt from the grammar, and a fast encoder."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from taqdit.models.tiny.captions import grammar_words

MAX_LENGTH = 16  # tokens of a text, start and end included
START, END = "<|startoftext|>", "<|endoftext|>"
Merge = tuple[str, str]
_PIECES = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")


def build() -> tuple[dict[str, int], list[Merge]]:
    """Vocabulary and merges: printable ASCII without capitals (id 0 is `!`, with which the second
    text encoder pads), the same characters ending a word, then merges until every word of the
    grammar is one token. The end token has the largest id (the pooled row is found by argmax)."""
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    words = [_letters(word) for word in grammar_words()]
    merges: list[Merge] = []
    while any(len(word) > 1 for word in words):
        counts = Counter(pair for word in words for pair in pairwise(word))
        best = max(sorted(counts), key=lambda pair: counts[pair])
        merges.append(best)
        words = [_merged(word, best) for word in words]
    tokens = [*letters, *(c + "</w>" for c in letters), *map("".join, merges), START, END]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


def files() -> dict[str, str]:
    """The text of `vocab.json` and `merges.txt`."""
    vocab, merges = build()
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "\n".join(lines) + "\n",
    }


class Encoder:
    """Texts to token ids, the same as DiffusionKit's tokenizer gives for ASCII, much faster."""

    def __init__(self) -> None:
        self.vocab, merges = build()
        self._rank = {merge: i for i, merge in enumerate(merges)}
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Two `(N, 16)` id arrays: padded with the end token (first encoder), and with 0."""
        rows = [self._row(text) for text in texts]
        return self._padded(rows, self.vocab[END]), self._padded(rows, 0)

    def _row(self, text: str) -> list[int]:
        ids = [i for piece in _PIECES.findall(text.lower()) for i in self._piece(piece)]
        return [self.vocab[START], *ids[: MAX_LENGTH - 2], self.vocab[END]]

    @staticmethod
    def _padded(rows: list[list[int]], fill: int) -> NDArray[np.int64]:
        return np.array([row + [fill] * (MAX_LENGTH - len(row)) for row in rows], np.int64)

    def _piece(self, text: str) -> list[int]:
        if text not in self._known:
            word = _letters(text)
            while ranked := [p for p in pairwise(word) if p in self._rank]:
                word = _merged(word, min(ranked, key=self._rank.__getitem__))
            self._known[text] = [self.vocab[token] for token in word]
        return self._known[text]


def _letters(word: str) -> list[str]:
    return [*word[:-1], word[-1] + "</w>"]


def _merged(word: list[str], pair: Merge) -> list[str]:
    """`word` with every occurrence of `pair` joined, from the left."""
    joined: list[str] = []
    for symbol in word:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined
