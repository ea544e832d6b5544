"""Bin counts that hold only the exponents seen, in 32 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from taqdit.activations.bins import PER_ROW, ROWS, SIGN, SIGN_BIT

MOST = 2**32 - 1


@dataclass(eq=False)
class BinCounts:
    """How often each bin was hit, per fold.

    `rows` (K,) uint16 are the signs and exponents seen, sorted; `counts` (F, K, 16) uint32.
    """

    rows: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls, folds: int) -> BinCounts:
        """No value counted, of `folds` folds."""
        return cls(np.empty(0, np.uint16), np.empty((folds, 0, PER_ROW), np.uint32))

    @classmethod
    def of(
        cls, dense: np.ndarray, seen: Sequence[int], *, folds: int, rows: np.ndarray | None = None
    ) -> BinCounts:
        """From counts (P, K * 16), integers below 2^32, of the folds `seen` (P,), on `rows` (K,),
        which are all 512 unless given."""
        rows = np.arange(ROWS) if rows is None else rows
        tables = dense.reshape(len(dense), len(rows), PER_ROW)
        hit = np.flatnonzero(tables.any(axis=(0, 2)))
        counts = np.zeros((folds, len(hit), PER_ROW), np.uint32)
        counts[seen] = tables[:, hit]
        return cls(rows[hit].astype(np.uint16), counts)

    @classmethod
    def of_codes(cls, codes: np.ndarray, of_row: np.ndarray, *, folds: int) -> BinCounts:
        """Count codes (R, ..) uint16, row r in the fold `of_row` (R,) of `folds`.

        Only the exponents between the lowest and the highest have a place in the table that is
        counted on, so that it stays in the cache: first those of positive values, then the others.
        """
        seen, place = np.unique(of_row, return_inverse=True)
        codes = codes.reshape(len(codes), -1)
        magnitudes = codes & np.uint16(SIGN - 1)
        first = int(magnitudes.min()) // PER_ROW
        exponents = np.arange(first, int(magnitudes.max()) // PER_ROW + 1)
        half = len(exponents) * PER_ROW  # bins of either sign
        bins = len(seen) * 2 * half
        places = magnitudes.astype(np.uint16 if bins <= 2**16 else np.uint32)
        np.add(places, (codes >> SIGN_BIT) * half, out=places)
        begin = (place * 2 * half - first * PER_ROW).astype(places.dtype)  # may wrap, and back
        np.add(places, begin[:, None], out=places)
        dense = np.bincount(places.reshape(-1), minlength=bins)
        rows = np.concatenate([exponents, exponents + ROWS // 2])
        return cls.of(dense.reshape(len(seen), -1), seen.tolist(), folds=folds, rows=rows)

    @property
    def total(self) -> int:
        """Values counted, NaN and Inf among them."""
        return int(self.counts.sum(dtype=np.int64))

    def without_zero(self) -> BinCounts:
        """The counts of magnitudes from 2^-126 on."""
        normal = (self.rows & 0xFF) > 0
        return BinCounts(self.rows[normal], self.counts[:, normal])

    def merged(self, other: BinCounts) -> BinCounts:
        """Both together. Raises OverflowError beyond 32 bits."""
        if len(self.rows) == len(other.rows) and (self.rows == other.rows).all():
            return BinCounts(self.rows, _added(self.counts, other.counts))
        rows = np.union1d(self.rows, other.rows)
        return BinCounts(rows, _added(self._on(rows), other._on(rows)))

    def _on(self, rows: np.ndarray) -> np.ndarray:
        """The counts (F, K, 16) on `rows`, which hold those of its own."""
        counts = np.zeros((len(self.counts), len(rows), PER_ROW), np.uint32)
        counts[:, np.searchsorted(rows, self.rows)] = self.counts
        return counts


def _added(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    both = one + other
    if (both < one).any():
        raise OverflowError("a bin was hit more than 2^32 - 1 times; raise tracer.folds")
    return both


def joined(tables: Sequence[BinCounts]) -> dict[str, np.ndarray]:
    """Tables of the same folds side by side: rows (sum K,), counts (F, sum K, 16), ends (S,)."""
    return {
        "rows": np.concatenate([table.rows for table in tables]),
        "counts": np.concatenate([table.counts for table in tables], axis=1),
        "ends": np.cumsum([len(table.rows) for table in tables]).astype(np.int64),
    }


def table_shapes(*, rows: int, folds: int, sites: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """What `joined` gives: name -> dtype and shape."""
    return {
        "rows": (np.uint16, (rows,)),
        "counts": (np.uint32, (folds, rows, PER_ROW)),
        "ends": (np.int64, (sites,)),
    }


def split(joint: Mapping[str, np.ndarray]) -> list[BinCounts]:
    """The tables that `joined` put together, as views. Raises ValueError if they do not fit."""
    rows, counts, ends = joint["rows"], joint["counts"], joint["ends"]
    starts = np.concatenate([[0], ends[:-1]])
    if (ends < starts).any() or ends[-1] != len(rows) or (rows >= ROWS).any():
        raise ValueError("its histogram tables do not fit together")
    return [BinCounts(rows[a:b], counts[:, a:b]) for a, b in zip(starts, ends, strict=True)]
