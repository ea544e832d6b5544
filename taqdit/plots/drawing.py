"""A figure on its way to a run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
