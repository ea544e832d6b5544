"""The figures of one run: tables drawn by `plots`, saved and handed to the tracker."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from taqdit.figures.drawing import Drawing, Drawn
from taqdit.plots.style import save
from taqdit.store import make_folder
from taqdit.tracking import Tracker

__all__ = ["Drawing", "Drawn", "save_all"]


def save_all(
    drawings: Iterable[Drawing], folder: Path, tracker: Tracker, *, formats: tuple[str, ...]
) -> list[Drawn]:
    """Draw, save below `folder/figures` and log one figure after the other."""
    made = []
    for drawing in drawings:
        make_folder(folder / "figures")
        files = save(
            drawing.figure, folder / "figures", drawing.name, drawing.table, formats=formats
        )
        tracker.image(f"figures/{drawing.name}", files[0], caption=drawing.title)
        made.append(Drawn(drawing.name, drawing.heading, drawing.title, tuple(files)))
    return made
