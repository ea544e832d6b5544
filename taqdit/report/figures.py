"""The figures of one run: tables drawn by `plots`, saved and handed to the tracker."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from taqdit.plots.drawing import Drawing, Drawn
from taqdit.plots.style import rendered
from taqdit.stages.figures import RunFigures, StoredFigures, run_figures
from taqdit.store import make_folder, publish_bytes
from taqdit.tracking.options import Tracker

__all__ = ["Drawing", "Drawn", "RunFigures", "StoredFigures", "run_figures", "save_all"]


def save_all(
    drawings: Iterable[Drawing],
    folder: Path,
    tracker: Tracker,
    *,
    formats: tuple[str, ...],
    stored: RunFigures | None,
) -> list[Drawn]:
    """Save each figure below `folder/figures` and log it; draw those that are not stored."""
    drawn = []
    for drawing in drawings:
        make_folder(folder / "figures")
        stage = stored and (stored.shared if drawing.shared else stored.own)
        files = stage.get(drawing.name) if stage else None
        if files is None:
            figure, table = drawing.draw()
            files = rendered(figure, table, formats=formats)
            if stage:
                stage.put(drawing.name, files)
        paths = []
        for suffix in (*formats, "csv"):
            paths.append(folder / "figures" / f"{drawing.name}.{suffix}")
            publish_bytes(paths[-1], files[suffix])
        tracker.image(f"figures/{drawing.name}", paths[0], caption=drawing.title)
        drawn.append(Drawn(drawing.name, drawing.heading, drawing.title, tuple(paths)))
    return drawn
