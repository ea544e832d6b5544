"""The figures of one run: tables drawn by `plots`, saved and handed to the tracker."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from taqdit.figures.drawing import Drawing, Drawn
from taqdit.figures.stored import StoredFigures, stored_figures
from taqdit.plots.style import rendered
from taqdit.store import make_folder, publish_bytes
from taqdit.tracking import Tracker

__all__ = ["Drawing", "Drawn", "StoredFigures", "save_all", "stored_figures"]


def save_all(
    drawings: Iterable[Drawing],
    folder: Path,
    tracker: Tracker,
    *,
    formats: tuple[str, ...],
    stored: StoredFigures | None,
) -> list[Drawn]:
    """Save each figure below `folder/figures` and log it; draw those that are not stored."""
    made = []
    for drawing in drawings:
        make_folder(folder / "figures")
        files = stored.get(drawing.name) if stored else None
        if files is None:
            figure, table = drawing.draw()
            files = rendered(figure, table, formats=formats)
            if stored:
                stored.put(drawing.name, files)
        paths = []
        for suffix in (*formats, "csv"):
            paths.append(folder / "figures" / f"{drawing.name}.{suffix}")
            publish_bytes(paths[-1], files[suffix])
        tracker.image(f"figures/{drawing.name}", paths[0], caption=drawing.title)
        made.append(Drawn(drawing.name, drawing.heading, drawing.title, tuple(paths)))
    return made
