"""What figures there are, and a figure on its way to a run's folder.

A new figure is a file in this package, or one more entry in a file:

    FIGURES = (FigureKind(Of.ANALYSIS, "What it shows", my_figure, my_table),)

beside the function that draws it; `plots.figures`, the report, the tracker and the stage `figures`
read that. Modules of this package import matplotlib inside functions only, so that the names are
known without it.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from taqdit.activations import Site
    from taqdit.activations.overview import LayerTable, Overview
    from taqdit.trajectories.latents import LatentStatistics
    from taqdit.trajectories.trajectory_set import TrajectorySet


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure to be drawn: its file name, the heading it belongs under, its caption.

    `draw` gives the figure and its numbers by column. `shared`: it is the same whatever the run
    selects, so that runs over the same data share it.
    """

    name: str
    heading: str
    title: str
    draw: Callable[[], tuple[Figure, Mapping[str, Any]]]
    shared: bool = False


@dataclass(frozen=True)
class Drawn:
    """A figure that is saved: its files, the PNG first."""

    name: str
    heading: str
    title: str
    files: tuple[Path, ...]


class Of(Enum):
    """What a figure is drawn of, in the order of the report; the value is its heading there."""

    TRAJECTORIES = "Trajectories and selection"  # Sampled
    ANALYSIS = "Analysis"  # analysis.analyse.Analysis
    ACTIVATIONS = "Activations"  # Traced
    LAYER = "Single layers"  # TracedLayer, one for each of `plots.layers`


@dataclass(frozen=True, eq=False)
class Sampled:
    """Trajectories and the steps that each contributes to the calibration set; `latents` is None
    where not all are stored, `images` says whether there are pictures."""

    trajectories: TrajectorySet
    chosen: Sequence[Sequence[int]]
    latents: LatentStatistics | None
    images: bool


@dataclass(frozen=True, eq=False)
class Traced:
    """The activations of all sites, and the steps that any trajectory contributes."""

    overview: Overview
    selected: Sequence[int]

    def knows(self, field: str) -> bool:
        """Whether `field` of the overview has a number: some sources lack it."""
        return not np.isnan(getattr(self.overview, field)).all()


@dataclass(frozen=True, eq=False)
class TracedLayer:
    """The activations of one site, read when first asked for."""

    site: Site
    read: Callable[[], LayerTable]
    selected: Sequence[int]

    @cached_property
    def table(self) -> LayerTable:
        """Its numbers in detail."""
        return self.read()


@dataclass(frozen=True, eq=False)
class FigureKind:
    """A figure: what it is drawn of (which says what a `subject` is), its caption, its functions.

    `figure` and `table` take `arguments(subject)` and give a matplotlib Figure and its numbers,
    columns of equal length by name. `name` is that of the function `figure`, if none is given.
    `possible(subject)`: whether there is anything to draw. `shared`: it is the same whatever the
    run selects, so that runs over the same data share it. `order`: its place among those of the
    same subject, ties by name. `minimal`: `plots=minimal` draws it. Of a layer, name and caption
    end in the layer's.
    """

    of: Of
    caption: str | Callable[[Any], str]
    figure: Callable[..., Figure]
    table: Callable[..., Mapping[str, Any]]
    arguments: Callable[[Any], tuple[Any, ...]] = lambda subject: (subject,)
    name: str = ""
    possible: Callable[[Any], bool] = lambda _: True
    shared: bool = False
    order: int = 100
    minimal: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.figure.__name__)

    def drawing(self, subject: Any) -> Drawing:
        """This figure of that subject, not yet drawn."""

        def draw() -> tuple[Figure, Mapping[str, Any]]:
            arguments = self.arguments(subject)
            return self.figure(*arguments), self.table(*arguments)

        name, caption = self.name, self.caption
        caption = caption if isinstance(caption, str) else caption(subject)
        if self.of is Of.LAYER:
            name, caption = f"{name}_{subject.site.label}", f"{caption} {subject.site.name}"
        return Drawing(name, self.of.value, caption, draw, shared=self.shared)


def figure_kinds() -> dict[str, FigureKind]:
    """All figures by name, in the order of the report. Raises ValueError if two share a name."""
    package = sys.modules[__name__.rpartition(".")[0]]
    modules = [f"{package.__name__}.{each.name}" for each in pkgutil.iter_modules(package.__path__)]
    kinds = [kind for name in modules for kind in getattr(import_module(name), "FIGURES", ())]
    kinds.sort(key=lambda kind: (list(Of).index(kind.of), kind.order, kind.name))
    by_name = {kind.name: kind for kind in kinds}
    if len(by_name) < len(kinds):
        raise ValueError(f"two figures share a name: {sorted(kind.name for kind in kinds)}")
    return by_name
