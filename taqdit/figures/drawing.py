"""A figure on its way to a run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure with its file name, the heading it belongs under, its caption, its numbers."""

    name: str
    heading: str
    title: str
    figure: Figure
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """A figure that is saved: its files, the PNG first."""

    name: str
    heading: str
    title: str
    files: tuple[Path, ...]
