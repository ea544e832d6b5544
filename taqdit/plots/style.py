"""How every figure looks, and how one is saved: style sheet, sizes, axes, PNG, SVG and CSV."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit import store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Steps = Sequence[int] | np.ndarray
COLUMN, PAGE = 3.3, 6.9  # widths in inches
BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#e3e3e3"
DARK = "#555555"
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.2)), (0, (1, 1)))
MARKERS = "os^DvPX*<>"
_STYLE = Path(__file__).with_name("paper.mplstyle")
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
}


def save(
    figure: Figure,
    folder: Path,
    name: str,
    table: Mapping[str, Any],
    *,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Publishes <folder>/<name>.png, .svg and .csv: the figure and the numbers drawn in it.

    `table` maps column names to columns of equal length. Same figure, same bytes. Returns the
    paths. Raises StorageError if the disk does not take them.
    """
    files = rendered(figure, table, formats=formats)
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in files}
    for suffix, data in files.items():
        store.publish_bytes(paths[suffix], data)
    return list(paths.values())


def rendered(
    figure: Figure, table: Mapping[str, Any], *, formats: Sequence[str] = ("png", "svg")
) -> dict[str, bytes]:
    """The files of a figure by suffix: the formats, then `csv`, its numbers by column."""
    files = {}
    for kind in formats:
        buffer = io.BytesIO()
        with style(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # the CSV has the text
            figure.savefig(buffer, format=kind, metadata=_METADATA.get(kind))
        figure.set_layout_engine("none")  # what was placed for one format stays for the next
        files[kind] = buffer.getvalue()
    return {**files, "csv": _csv(table).encode()}


def publish_csv(path: Path, table: Mapping[str, Any]) -> None:
    """Publish columns of equal length as a CSV. Raises StorageError if the disk is full."""
    store.publish_bytes(path, _csv(table).encode())


@contextmanager
def style() -> Iterator[None]:
    """paper.mplstyle on matplotlib's own defaults: nobody's matplotlibrc changes a figure."""
    from matplotlib import style

    with style.context(_STYLE, after_reset=True):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def sigma_axis(axis: Axes) -> None:
    """x from noise (sigma 1, left) to image (0, right)."""
    axis.set_xlim(1.02, -0.02)
    axis.set_xlabel("sigma (noise → image)")


def step_ticks_on_top(axis: Axes, sigmas: np.ndarray) -> None:
    """A few steps above the sigma axis; chosen by sigma, since steps crowd near the noise."""
    wanted = np.linspace(sigmas[0], sigmas[-1], 6)
    steps = np.unique(np.abs(np.subtract.outer(wanted, sigmas)).argmin(axis=1))
    top = axis.secondary_xaxis("top")
    top.set_xticks(sigmas[steps], labels=[str(step) for step in steps])
    top.set_xlabel("step")


def steps_below(axis: Axes, places: np.ndarray, steps: np.ndarray) -> None:
    """Numbers of the steps at these places of the x axis."""
    axis.set_xticks(places, labels=[str(step) for step in steps])
    axis.set_xlabel("step (noise → image)")


def sigmas_on_top(axis: Axes, places: np.ndarray, sigmas: np.ndarray) -> None:
    """Their sigmas above it."""
    top = axis.secondary_xaxis("top")
    top.set_xticks(places, labels=[f"{sigma:.2g}" for sigma in sigmas])
    top.set_xlabel("sigma")


def mark_selected(axis: Axes, sigmas: np.ndarray) -> None:
    """A tick at the sigma of each calibration step, at the foot of the axis."""
    if len(sigmas):
        label = f"calibration steps ({len(sigmas)})"
        rug = axis.plot(sigmas, np.full(len(sigmas), 0.08), "|", color="black", ms=6, label=label)
        rug[0].set(transform=axis.get_xaxis_transform(), markeredgewidth=0.9)


def series_look(place: int) -> dict[str, Any]:
    """Of the n-th of many lines: seven colours, then again in another dash; a marker of its own."""
    dash = DASHES[(place // 7) % len(DASHES)]
    return {"color": f"C{place % 7}", "ls": dash, "marker": MARKERS[place % len(MARKERS)]}


def integer_ticks(axis: Axis, most: int) -> None:
    """At most so many ticks, on whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=True))


def _csv(table: Mapping[str, Any]) -> str:
    same_length(**table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows([_cell(value) for value in row] for row in zip(*table.values(), strict=True))
    return text.getvalue()


def _cell(value: Any) -> str:
    """Shortest text that reads back as the same number; no text that a spreadsheet would run."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@")) else value
    return str(value)


def same_length(**columns: Sized) -> None:
    """Raise ValueError unless the columns are equally long and not empty."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        raise ValueError(f"columns must be equally long and not empty, not {lengths}")
