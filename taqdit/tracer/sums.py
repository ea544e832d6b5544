"""What was reduced of each site of one forward becomes the sums of a batch at a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from taqdit.activations import BatchSums, BinCounts, ChannelSums, Layout
from taqdit.errors import NumericError

STATIC = "embed.context_in"  # the conditioning: the same at every step of a batch


class SiteSums(NamedTuple):
    """One site of one forward, on the host: `tokens` token vectors, their channels, the lowest and
    highest value of each row (R,), and the bin counts of all values by fold and of the tokens'
    absmax."""

    tokens: int
    channels: ChannelSums
    row_low: np.ndarray
    row_high: np.ndarray
    values: BinCounts
    peaks: BinCounts


class RowFolds:
    """Which rows of a guided batch belong to which fold.

    Row r of a forward of N trajectories is trajectory r mod N: positives, then negatives. `place`
    (R,) is the place of a row's fold among those `seen`.
    """

    def __init__(self, indices: Sequence[int], *, folds: int) -> None:
        self.folds = folds
        self.of_row = np.tile(np.array([index % folds for index in indices]), 2)
        seen, self.place = np.unique(self.of_row, return_inverse=True)
        self.seen: list[int] = seen.tolist()

    def extremes(self, row_low: np.ndarray, row_high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(F, S) lowest and highest value per fold, of (S, R) per row; +-Inf for unseen folds."""
        low = np.full((self.folds, len(row_low)), np.inf, np.float32)
        high = np.full_like(low, -np.inf)
        for fold in self.seen:
            rows = self.of_row == fold
            low[fold], high[fold] = row_low[:, rows].min(axis=1), row_high[:, rows].max(axis=1)
        return low, high


class BatchSide:
    """Puts the sites of each forward in their order, looks for NaN and Inf, and calls
    `add(step, sums)`.

    `indices` are the numbers of the batch's trajectories, or of another `unit`; `texts` their
    prompts.
    """

    def __init__(
        self,
        layout: Layout,
        indices: Sequence[int],
        texts: Sequence[str],
        add: Callable[[int, BatchSums], None],
        folds: RowFolds,
        *,
        masked: bool,
        unit: str = "trajectory",
    ) -> None:
        self._layout, self._indices, self._texts = layout, indices, texts
        self._add, self._folds = add, folds
        self._masked, self._unit = masked, unit
        self._static: dict[str, SiteSums] = {}

    def take(self, step: int, read: Mapping[str, SiteSums]) -> None:
        """The sites of a forward; the static one only of the batch's first.

        Raises NumericError naming site, step and prompt if a value is NaN or Inf, unless masked.
        """
        self._static |= {name: sums for name, sums in read.items() if name == STATIC}
        known = {**read, **self._static}
        sites = [known[site.name] for site in self._layout.sites]
        low, high = np.stack([s.row_low for s in sites]), np.stack([s.row_high for s in sites])
        if not self._masked:
            self._refuse_nonfinite(sites, step, np.isfinite(low) & np.isfinite(high))
        fold_low, fold_high = self._folds.extremes(low, high)
        channels = zip(*(site.channels for site in sites), strict=True)
        sums = BatchSums(
            tokens=np.array([site.tokens for site in sites]),
            channels=ChannelSums(*map(_side_by_side, channels)),
            fold_low=fold_low,
            fold_high=fold_high,
            values=[site.values for site in sites],
            peaks=[site.peaks for site in sites],
        )
        self._add(step, sums)

    def _refuse_nonfinite(self, sites: Sequence[SiteSums], step: int, finite: np.ndarray) -> None:
        """`finite` (S, R) bool: whether the extremes of a row are."""
        for site, sums, rows in zip(self._layout.sites, sites, finite, strict=True):
            if not ((sums.values.rows & 0xFF) == 0xFF).any():
                continue
            row = int(rows.argmin()) % len(self._indices)  # the first that is not
            raise NumericError(
                f"{site.name} holds NaN or Inf at step {step} of {self._unit}"
                f" {self._indices[row]} (prompt {self._texts[row]!r}); nothing of its"
                " batch was stored. Try model.a16=false or a lower sampler.cfg_scale;"
                " tracer.nonfinite=count counts such values and goes on"
            )


def _side_by_side(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    arrays = [part for part in parts if part is not None]
    return np.concatenate(arrays) if arrays else None


def on_host(array: Any) -> np.ndarray:
    """An evaluated array as the host sees it, not copied."""
    return np.array(array, copy=False)
