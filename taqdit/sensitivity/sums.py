"""What is kept of one step: sums from which any static quantizer can be charged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from taqdit.activations.bins import BINS
from taqdit.sensitivity.layout import ENDS, ZEROED, SensitivityLayout

_ROWS = ("trajectories", "power", "tails", "zeroed")  # of one trajectory each
_ADDED = ("channels", "outputs", "inputs")


@dataclass(frozen=True, eq=False)
class StepSensitivity:
    """N trajectories at one step, P probes each; S sites, C channels of all, F folds.

    All float32 unless said otherwise; g are gradients of <r, v> by activations, identical text rows
    merged, or by weights. Sums of squares are means over the probes.

    - `trajectories` (N,) int64: their numbers. `power` (N,): sum of v^2, the guided velocity.
    - `channels` (2, F, C): sum of g^2 of each channel, of the positive and the negative half.
    - `codes` (k,) uint16 and `masses` (F, k): sum of g^2 over the values in each histogram bin, of
      all sites one after another; those of site s are at bin_ends[s] .. bin_ends[s + 1], (S + 1,)
      int64.
    - `tails` (N, P, S, ENDS): <g, e> of what each candidate end cuts off, both halves together;
      `zeroed` (N, P, S, ZEROED): of what lies within each half step of zero.
    - `outputs` (F, O), `inputs` (F, I): sum of g^2 over a weight, for each of its output and of its
      input channels; those of all linears side by side.
    """

    trajectories: np.ndarray
    power: np.ndarray
    channels: np.ndarray
    codes: np.ndarray
    bin_ends: np.ndarray
    masses: np.ndarray
    tails: np.ndarray
    zeroed: np.ndarray
    outputs: np.ndarray
    inputs: np.ndarray

    def bins(self, site: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes (k,) and sums (F, k) of a site's histogram bins."""
        span = slice(*self.bin_ends[site : site + 2])
        return self.codes[span], self.masses[:, span]

    def squares(self, layout: SensitivityLayout) -> np.ndarray:
        """Sum of g^2 of each site, half and fold, (S, 2, F) float64."""
        parts = [self.channels[..., layout.layout.span(s)] for s in range(len(layout.sites))]
        return np.stack([part.sum(axis=-1, dtype=np.float64) for part in parts])

    def merged(self, other: StepSensitivity) -> StepSensitivity:
        """Of the trajectories of both, which have none in common.

        Raises ValueError if they share one, or have another number of probes.
        """
        if np.intersect1d(self.trajectories, other.trajectories).size:
            raise ValueError("a trajectory is in both")
        if self.tails.shape[1:] != other.tails.shape[1:]:
            raise ValueError("they differ in sites or probes")
        bins = [
            _merged_bins(self.bins(site), other.bins(site)) for site in range(self.tails.shape[2])
        ]
        both = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in _ROWS}
        added = {name: getattr(self, name) + getattr(other, name) for name in _ADDED}
        return StepSensitivity(**both, **added, **packed_bins(bins))

    def tensors(self) -> dict[str, np.ndarray]:
        """As plain arrays; `of_tensors` reads them back."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def of_tensors(
        cls, layout: SensitivityLayout, tensors: Mapping[str, np.ndarray]
    ) -> StepSensitivity:
        """Read back what `tensors` gave. Raises ValueError if the arrays do not fit the layout."""
        missing = [each.name for each in fields(cls) if each.name not in tensors]
        if missing:
            raise ValueError(f"its arrays {missing} are missing")
        count, bins = len(tensors["trajectories"]), len(tensors["codes"])
        sites, folds = len(layout.sites), layout.folds
        probes = tensors["tails"].shape[1] if tensors["tails"].ndim == 4 else 0
        shapes = {
            "trajectories": (np.int64, (count,)),
            "power": (np.float32, (count,)),
            "channels": (np.float32, (2, folds, layout.layout.channels)),
            "codes": (np.uint16, (bins,)),
            "bin_ends": (np.int64, (sites + 1,)),
            "masses": (np.float32, (folds, bins)),
            "tails": (np.float32, (count, probes, sites, ENDS)),
            "zeroed": (np.float32, (count, probes, sites, ZEROED)),
            "outputs": (np.float32, (folds, sum(each.outputs for each in layout.linears))),
            "inputs": (np.float32, (folds, sum(each.inputs for each in layout.linears))),
        }
        for name, (dtype, shape) in shapes.items():
            if tensors[name].dtype != dtype or tensors[name].shape != shape:
                raise ValueError(f"its array {name!r} is no {np.dtype(dtype)} of shape {shape}")
        return cls(**{name: tensors[name] for name in shapes})


def packed_bins(bins: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """`codes`, `bin_ends`, `masses` from the codes (k,) and sums (F, k) of each site."""
    codes, masses = zip(*bins, strict=True)
    return {
        "codes": np.concatenate(codes),
        "bin_ends": np.cumsum([0, *map(len, codes)]),
        "masses": np.concatenate(masses, axis=1).astype(np.float32),
    }


def _merged_bins(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    whole = np.zeros((len(one[1]), BINS))
    for codes, masses in (one, other):
        whole[:, codes] += masses
    held = np.flatnonzero(whole.any(axis=0))
    return held.astype(np.uint16), whole[:, held]
