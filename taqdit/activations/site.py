"""Sites: the places where activations are read, and how their channels lie side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)  # also a part of the names of figures' files
_STREAMS = {"embed": "txt", "final": "img"}  # the two sites outside the blocks


@dataclass(frozen=True)
class Site:
    """A place where an activation is read, e.g. `mm_07_img.post_gelu`, and its channels."""

    name: str
    width: int

    @property
    def block(self) -> str:
        """`mm_07`, `uni_03` (a unified block), `embed` or `final`."""
        return self._prefix.removesuffix("_img").removesuffix("_txt")

    @property
    def stream(self) -> str:
        """`img`, `txt`, or `joint` in a unified block."""
        ending = self._prefix.rpartition("_")[2]
        return ending if ending in ("img", "txt") else _STREAMS.get(self._prefix, "joint")

    @property
    def place(self) -> str:
        """`qkv_in`, `o_in`, `fc1_in`, `post_gelu`, `context_in` or `linear_in`."""
        return self.name.rpartition(".")[2]

    @property
    def label(self) -> str:
        """How names of its figures end: `mm_07_img` for post_gelu, else `mm_07_img_qkv_in`."""
        return self._prefix if self.place == "post_gelu" else self.name.replace(".", "_")

    @property
    def _prefix(self) -> str:
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Layout:
    """The sites of a statistics stage, and the number of folds of trajectories.

    Per-channel arrays hold the channels of all sites side by side: (C,) with C = sum of widths.
    """

    sites: tuple[Site, ...]
    folds: int

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, int]], *, folds: int) -> Layout:
        """From (name, width) pairs, as metadata hold them. ValueError or TypeError for odd ones."""
        sites = tuple(Site(name, width) for name, width in pairs)
        if not sites or len({site.name for site in sites}) < len(sites):
            raise ValueError("it names no site, or one twice")
        for site in sites:
            if not _NAME.fullmatch(site.name) or type(site.width) is not int or site.width < 1:
                raise ValueError("one of its sites is none")
        return cls(sites, folds)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each site's channels begin, (S + 1,) int64."""
        return np.concatenate([[0], np.cumsum([site.width for site in self.sites])])

    @property
    def channels(self) -> int:
        """Channels of all sites."""
        return int(self.offsets[-1])

    def span(self, site: int) -> slice:
        """The channels of a site."""
        return slice(int(self.offsets[site]), int(self.offsets[site + 1]))

    def spread(self, per_site: np.ndarray) -> np.ndarray:
        """A value per site (S,) as a value per channel (C,)."""
        return np.repeat(per_site, [site.width for site in self.sites])

    def index(self, name: str) -> int:
        """Number of a site. Raises KeyError."""
        return self._numbers[name]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {site.name: number for number, site in enumerate(self.sites)}
