"""How well the steps that a selection shows stand for all of them.

What counts is what a user pays: a per-tensor quantizer is calibrated on the selection by least
squared error, applied to every step, and compared with the best one there is for all steps.
All of it is computed from histograms; no model is run.

The points of a selection count alike, as they do for whoever calibrates on them; all steps, by
which it is judged, are weighted. A selection counts by cell (fold of trajectories, step). Intervals
come from drawing folds of trajectories again; the selections are held fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from taqdit.activations import Site
from taqdit.activations.overview import Steps
from taqdit.analysis.channels import channel_sqnr
from taqdit.analysis.distances import jensen_shannon, wasserstein
from taqdit.analysis.distribution import Distribution
from taqdit.analysis.estimates import RunningMean, half_width, resamples
from taqdit.analysis.products import product
from taqdit.analysis.static import StaticErrors
from taqdit.quantizer import BITS, decibel

FITTED, ROUGH = "†", "~"  # marks: steps chosen from the same statistics; see Candidate.exact
SILENT = 1e-12  # of the signal: less noise than this (120 dB) is none


@dataclass(frozen=True, eq=False)
class Candidate:
    """A selection to be scored.

    `cells` (F, n): how many calibration points a trajectory of a fold gives at a step, on average;
    `points`: how many a trajectory gives in all. `fitted`: the steps were chosen from the same
    statistics. `exact`: no two trajectories of a fold select different steps; else what they see
    is taken as what all of the fold shows at the steps of either, which flatters the selection.
    """

    rule: str
    cells: np.ndarray
    points: float
    fitted: bool = False
    exact: bool = True

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that any trajectory selects."""
        return tuple(np.flatnonzero(self.cells.any(axis=0)).tolist())


@dataclass(frozen=True, eq=False)
class Losses:
    """What calibrating on a selection costs: SQNR, in dB, below that of the best static quantizer
    of all steps, the mean over the sites with a signal. R selections, widths as in BITS.

    `loss` (R, 3); `replicates` (B, R, 3): the same with the `folds` folds of trajectories drawn
    again B times.
    """

    loss: np.ndarray
    replicates: np.ndarray
    folds: int

    @cached_property
    def half_width(self) -> np.ndarray:
        """Half of the 95 % interval, (R, 3)."""
        return half_width(self.replicates, self.folds)

    @property
    def low(self) -> np.ndarray:
        """Lower end of the 95 % interval, (R, 3); no loss is below zero."""
        return np.maximum(self.loss - self.half_width, 0)

    @property
    def high(self) -> np.ndarray:
        """Upper end of the 95 % interval, (R, 3)."""
        return self.loss + self.half_width

    def of(self, chosen: slice) -> Losses:
        """The losses of the `chosen` selections."""
        return Losses(self.loss[chosen], self.replicates[:, chosen], self.folds)

    def difference(self, one: int, other: int, bits: int) -> tuple[float, float]:
        """How much more `one` loses than `other` at a width, and half of the interval of that."""
        width = BITS.index(bits)
        apart = self.loss[one, width] - self.loss[other, width]
        paired = self.replicates[:, one, width] - self.replicates[:, other, width]
        return float(apart), float(half_width(paired, self.folds))

    def differ(self, one: int, other: int, bits: int) -> bool:
        """Whether the difference is larger than the trajectories' spread explains; False where
        that is not known."""
        apart, half = self.difference(one, other, bits)
        return bool(np.isfinite(half) and abs(apart) > half)


@dataclass(frozen=True, eq=False)
class Scores:
    """R selections, S sites, three widths as in BITS.

    `range_coverage`: share of the range (widened to zero) that the selection's range contains;
    `step_coverage`: weighted share of steps whose extremes it contains; `clipped`: share of all
    values outside it; `w1`: Wasserstein-1 distance of the pooled distributions in standard
    deviations of the site, `js`: their Jensen-Shannon distance, both (R, S). `sqnr` (R, S, 3) dB
    of the static per-tensor quantizer; `channel_sqnr` (R, S, 3) dB of a static quantizer per
    channel by the model of uniform noise without clipping. The ends of the scale, (S, 3) dB:
    `oracle`, calibrated on every step as it is judged, and `dynamic`, a range of its own at each
    step, out of the same candidates.
    `counts` (R,): calibration points per trajectory. `own`: which selection is the run's.
    `fitted`, `exact` (R,) bool: see `Candidate`.
    """

    sites: tuple[Site, ...]
    rules: tuple[str, ...]
    counts: np.ndarray
    steps: tuple[tuple[int, ...], ...]
    range_coverage: np.ndarray
    step_coverage: np.ndarray
    clipped: np.ndarray
    w1: np.ndarray
    js: np.ndarray
    sqnr: np.ndarray
    channel_sqnr: np.ndarray
    oracle: np.ndarray
    dynamic: np.ndarray
    losses: Losses
    fitted: np.ndarray
    exact: np.ndarray
    own: int | None = None

    def label(self, place: int) -> str:
        """The rule's name, with its marks."""
        marks = FITTED * bool(self.fitted[place]) + ROUGH * (not self.exact[place])
        return self.rules[place] + marks

    @property
    def loss(self) -> np.ndarray:
        """Mean over the sites of oracle - sqnr, (R, 3) dB."""
        return self.losses.loss

    @property
    def loss_low(self) -> np.ndarray:
        """Lower end of its 95 % interval, (R, 3) dB."""
        return self.losses.low

    @property
    def loss_high(self) -> np.ndarray:
        """Upper end of its 95 % interval, (R, 3) dB."""
        return self.losses.high

    @property
    def dynamic_gain(self) -> np.ndarray:
        """What a quantizer per step would win over the best static one, (3,) dB."""
        known = np.isfinite(self.oracle).all(axis=1)
        if not known.any():
            return np.full(len(BITS), np.nan)
        return np.asarray((self.dynamic - self.oracle)[known].mean(axis=0))


class Judge:
    """Scores selections of one set of statistics.

    `weights` (n,): of the steps; `static`: per site, the static quantizers at each of BITS.
    """

    def __init__(
        self,
        statistics: Steps,
        weights: np.ndarray,
        static: Sequence[Mapping[int, StaticErrors]],
    ) -> None:
        self.sites = statistics.layout.sites
        self._weights, self._static = np.asarray(weights, np.float64), static
        self._steps = [statistics.step(step) for step in range(statistics.num_steps)]
        used = np.isfinite(np.stack([step.fold_low for step in self._steps])).any(axis=(0, 2))
        self._drawn, self._folds = resamples(used), int(used.sum())
        self._cells = self._drawn[0][:, None] * self._weights  # (F, n)

    def scores(
        self,
        candidates: Sequence[Candidate],
        others: Sequence[Candidate] = (),
        *,
        own: int | None = None,
    ) -> tuple[Scores, Losses]:
        """Scores of `candidates`, and the losses of `others`, which may be many."""
        cells = np.stack([candidate.cells for candidate in (*candidates, *others)])
        steps = tuple(candidate.steps for candidate in candidates)
        few, losses, rows = len(candidates), RunningMean(), []
        for site in range(len(self.sites)):
            distribution = Distribution.of(self._steps, site)
            loss, decibels = self._losses(self._static[site], distribution.signal, cells)
            losses.add(loss)
            decibels["sqnr"] = decibels["sqnr"][:few]
            ranges = self._ranges(distribution, cells[:few])
            channel = channel_sqnr(self._steps, site, steps, self._weights)
            rows.append({**decibels, **ranges, "channel_sqnr": channel})
        ends = {name: np.stack([row.pop(name) for row in rows]) for name in ("oracle", "dynamic")}
        mean = losses.value()
        whole = Losses(mean[0], mean[1:], self._folds)
        scores = Scores(
            sites=self.sites,
            rules=tuple(candidate.rule for candidate in candidates),
            counts=np.array([candidate.points for candidate in candidates]),
            steps=steps,
            losses=whole.of(slice(few)),
            fitted=np.array([candidate.fitted for candidate in candidates]),
            exact=np.array([candidate.exact for candidate in candidates]),
            own=own,
            **ends,
            **{name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]},
        )
        return scores, whole.of(slice(few, None))

    def _losses(
        self, static: Mapping[int, StaticErrors], power: np.ndarray, cells: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Losses (1 + B, R, 3) of one site, with the folds as they are and drawn again; the SQNR of
        the selections (R, 3), of both ends of the scale (3,). `power` (F, n): sums of squares."""
        signal = self._drawn @ (power @ self._weights)  # (1 + B,)
        every = np.arange(len(signal))[:, None]
        loss, sqnr, oracle, dynamic = [], [], [], []
        for errors in static.values():
            everywhere = product(self._drawn, (errors.cells @ self._weights).T)  # (1 + B, C)
            shown = errors.by_fold(cells)  # (F, R, C)
            redrawn = product(self._drawn, shown.reshape(len(shown), -1))
            picked = redrawn.reshape(-1, *shown.shape[1:]).argmin(axis=2)  # (1 + B, R)
            paid, least = everywhere[every, picked], everywhere.min(axis=1)
            loss.append(_loss(paid, least[:, None], SILENT * signal[:, None]))
            sqnr.append(decibel(signal[0], paid[0]))
            oracle.append(decibel(signal[0], least[0]))
            lowest = (errors.cells * self._cells).sum(axis=1).min(axis=0).sum()
            dynamic.append(decibel(signal[0], lowest))
        columns = {"sqnr": sqnr, "oracle": oracle, "dynamic": dynamic}
        stacked = {name: np.stack(values, axis=-1) for name, values in columns.items()}
        return np.stack(loss, axis=-1), stacked

    def _ranges(self, distribution: Distribution, cells: np.ndarray) -> dict[str, np.ndarray]:
        """Range coverage, clipped mass and distances of one site, (R,) each."""
        whole = self._cells
        seen = cells * self._drawn[0][:, None]
        low, high = distribution.extremes(seen)
        least, most = distribution.extremes(whole)
        step_low, step_high = distribution.low.min(axis=0), distribution.high.max(axis=0)
        inside = (step_low >= low[:, None]) & (step_high <= high[:, None])
        masses, everything = distribution.pooled(seen), distribution.pooled(whole)
        spread = distribution.std(whole)
        apart = wasserstein(distribution.left, distribution.right, masses, everything)
        return {
            "range_coverage": _share(_width(low, high), _width(least, most)),
            "step_coverage": inside @ self._weights / self._weights.sum(),
            "clipped": distribution.outside(low, high, everything),
            "w1": apart / max(spread, _TINY),
            "js": jensen_shannon(masses, everything),
        }


_TINY = float(np.finfo(np.float64).tiny)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; 1 where the whole is zero."""
    return np.where(whole > 0, part / np.maximum(whole, _TINY), 1.0)


def _width(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Width of [low, high], widened to hold zero."""
    return np.maximum(high, 0) - np.minimum(low, 0)


def _loss(paid: np.ndarray, least: np.ndarray, silent: np.ndarray) -> np.ndarray:
    """dB of noise above the least; 0 where neither is more than `silent`, NaN without a signal."""
    paid, least = np.maximum(paid, silent), np.maximum(least, silent)
    return np.where(paid > least, decibel(paid, least), np.where(silent > 0, 0.0, np.nan))
