"""An overview and a profile as plain arrays, to be stored and read back bit by bit.

Arrays go into the tensors of a shard, what has no even shape into its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from taqdit.activations import Site
from taqdit.activations.overview import Overview
from taqdit.analysis.bits import ActivationNoise
from taqdit.analysis.profile import Profile
from taqdit.analysis.static import StaticErrors
from taqdit.quantizer import BITS
from taqdit.timestep_selection.evidence import Evidence

_PER_WIDTH = ("sqnr", "low", "high", "below", "above")  # of ActivationNoise
_ENDS = ("minimum", "maximum")
_TABLE = [field.name for field in fields(Overview) if field.name not in ("sites", "top_channels")]


@dataclass(frozen=True, eq=False)
class Packed:
    """What a shard holds: `tensors` by name, and `metadata` that JSON keeps exactly."""

    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any]


def pack_overview(table: Overview) -> Packed:
    """A table that `unpack_overview` reads back."""
    tensors = {name: getattr(table, name) for name in _TABLE}
    return Packed(tensors, {"top_channels": [list(channels) for channels in table.top_channels]})


def unpack_overview(packed: Packed, sites: Sequence[Site]) -> Overview:
    """The overview of these sites. Raises ValueError or KeyError if it is not one of them."""
    tops = tuple(tuple(map(int, channels)) for channels in packed.metadata["top_channels"])
    table = Overview(
        sites=tuple(sites), top_channels=tops, **{name: packed.tensors[name] for name in _TABLE}
    )
    _require(len(tops) == len(sites) and len(table.low) == len(sites))
    return table


def pack_profile(profile: Profile) -> Packed:
    """A profile that `unpack_profile` reads back; what was chosen from it is left out."""
    evidence, noise = profile.evidence, list(profile.noise.values())
    tensors = {
        "quantiles": profile.quantiles,
        "distances": evidence.distances,
        "weights": evidence.weights,
        **{f"errors_{bits}": evidence.errors[bits] for bits in BITS},
        **{f"noise_{name}": _by_width(noise, name) for name in _PER_WIDTH},
        **{f"noise_{name}": np.array([getattr(n, name) for n in noise]) for name in _ENDS},
    }
    for bits in BITS:
        tensors |= _pack_static([of_site[bits] for of_site in profile.static], f"static_{bits}")
    return Packed(tensors, {"noise": list(profile.noise)})


def unpack_profile(packed: Packed, sites: Sequence[Site]) -> Profile:
    """The profile of these sites. Raises ValueError or KeyError if it is not one of them."""
    tensors = packed.tensors
    errors = {bits: tensors[f"errors_{bits}"] for bits in BITS}
    static = [_unpack_static(tensors, f"static_{bits}") for bits in BITS]
    names = [str(name) for name in packed.metadata["noise"]]
    _require(set(names) <= {site.name for site in sites})
    _require({len(tensors["quantiles"]), *map(len, static)} == {len(sites)})
    return Profile(
        tensors["quantiles"],
        Evidence(tensors["distances"], tensors["weights"], errors),
        {name: _noise(tensors, place) for place, name in enumerate(names)},
        tuple(dict(zip(BITS, of_site, strict=True)) for of_site in zip(*static, strict=True)),
    )


def _by_width(noise: Sequence[ActivationNoise], name: str) -> np.ndarray:
    """(sites, widths) float64."""
    rows = [[getattr(of_site, name)[bits] for bits in BITS] for of_site in noise]
    return np.array(rows, np.float64).reshape(len(noise), len(BITS))


def _noise(tensors: Mapping[str, np.ndarray], place: int) -> ActivationNoise:
    def of(name: str) -> Any:
        return tensors[f"noise_{name}"][place].tolist()

    widths = {name: dict(zip(BITS, of(name), strict=True)) for name in _PER_WIDTH}
    ends = {name: float(of(name)) for name in _ENDS}
    return ActivationNoise(**widths, **ends)  # type: ignore[arg-type]


def _pack_static(errors: Sequence[StaticErrors], name: str) -> dict[str, np.ndarray]:
    """Arrays of all sites one after the other, and where each site ends, (S,) int64."""
    return {
        f"{name}_low": np.concatenate([of_site.low for of_site in errors]),
        f"{name}_high": np.concatenate([of_site.high for of_site in errors]),
        f"{name}_cells": np.concatenate([of_site.cells for of_site in errors]),
        f"{name}_ends": np.cumsum([len(of_site.low) for of_site in errors]),
    }


def _unpack_static(tensors: Mapping[str, np.ndarray], name: str) -> list[StaticErrors]:
    low, high, cells = (tensors[f"{name}_{part}"] for part in ("low", "high", "cells"))
    ends = tensors[f"{name}_ends"].tolist()
    _require({len(low), len(high), len(cells)} == {ends[-1] if ends else 0})
    parts = [slice(*pair) for pair in zip([0, *ends], ends, strict=False)]
    return [StaticErrors(low[part], high[part], cells[part]) for part in parts]


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError("its arrays do not fit the sites")
