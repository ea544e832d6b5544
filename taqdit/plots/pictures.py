"""Pictures of several sets of trajectories side by side."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.plots.style import GREY, PAGE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = 1.7  # inches beside the pictures
PICTURE = 1.1  # inches that a picture takes at most


def picture_table(
    pictures: Sequence[Sequence[np.ndarray | None]], columns: Sequence[str], rows: Sequence[str]
) -> Figure:
    """Pictures (H, W, 3) uint8 in rows (one per prompt) and columns (one per set of
    trajectories); None leaves a place empty."""
    each = min(PICTURE, (PAGE - LABELS) / max(len(columns), 1))
    with style():  # prompts are foreign: no text of theirs is read as a formula
        figure = new_figure(LABELS + each * len(columns), 0.5 + each * len(rows))
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for line, text, members in zip(axes, rows, pictures, strict=True):
            for axis, picture in zip(line, members, strict=True):
                axis.set(xticks=[], yticks=[])
                axis.grid(visible=False)
                axis.spines[:].set(visible=True, color=GREY)
                if picture is not None:
                    axis.imshow(picture)
            line[0].set_ylabel(_wrapped(text, 22), fontsize=6, rotation=0, ha="right", va="center",
                               parse_math=False)  # fmt: skip
        for axis, title in zip(axes[0], columns, strict=True):
            axis.set_title(_wrapped(title, max(8, int(15 * each))), fontsize=7, parse_math=False)
    return figure


def picture_table_table(columns: Sequence[str], rows: Sequence[str]) -> dict[str, list[Any]]:
    """What stands where."""
    return {
        "set": [column for _ in rows for column in columns],
        "prompt": [row for row in rows for _ in columns],
    }


def _wrapped(text: str, width: int) -> str:
    return fill(text, width, break_long_words=False)
