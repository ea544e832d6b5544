"""Bits: which linear gets how many, and what error any average number of bits buys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.analysis.allocation import greedy, mean_decibel, suggested, weight_sqnr
from taqdit.plots.drawing import FigureKind, Of
from taqdit.plots.style import BLUE, COLUMN, GREY, PAGE, VERMILLION, new_figure, style
from taqdit.quantizer import BITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from taqdit.analysis.analyse import Analysis
    from taqdit.analysis.bits import BitWidths, LayerBits

SHADES = ("#cfe1f2", "#5b9fd0", "#0b3a66")  # fewest bits lightest: greyscale keeps the order
UNKNOWN = len(BITS)  # the colour after those of the widths
STREAMS = ("img", "txt", "uni")
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "adaln")
PARTS = ("weights", "activations")
LOOKS = {"activations": (BLUE, "-"), "weights": (VERMILLION, "--")}
MARKERS = {"greedy": "", "uniform": "s", "recommended": "*"}
MARKS: dict[str, dict[str, Any]] = {
    "protected": {"marker": "o", "c": "white", "s": 4, "lw": 0},
    "missed": {"marker": "x", "c": VERMILLION, "s": 12, "lw": 1.2},
}
CELL = 0.15  # inches
FEW = 8  # blocks: so narrow maps stand side by side
_NAME = re.compile(r"(?:mm_(\d+)_(img|txt)|(uni)_(\d+))\.(.+)")

Cell = tuple[str, str, int]  # stream, kind, block


def bits_per_layer(bits: BitWidths) -> Figure:
    """Suggested widths of all linears, a map for weights and one for activations.

    A row per kind and stream, a column per block; what lies outside the blocks stands beside the
    map. Grey: no such width, since the input is not traced. A dot: 8 bits only because the layer
    is protected. A cross: 8 bits miss the target. Raises ValueError without a layer.
    """
    if not bits.layers:
        raise ValueError("no layer has a suggested width")
    cells = [_cell(each.layer) for each in bits.layers]
    rows = _rows([cell for cell in cells if cell])
    blocks = sorted({cell[2] for cell in cells if cell})
    beside = [each.layer for each, cell in zip(bits.layers, cells, strict=True) if not cell]
    at = {i: (rows.index(c[:2]), blocks.index(c[2])) for i, c in enumerate(cells) if c}
    aside = {i: (row, 0) for row, i in enumerate(i for i, cell in enumerate(cells) if not cell)}
    parts = [part for part in PARTS if any(_width(each, part) for each in bits.layers)] or PARTS[:1]
    with style():
        figure, axes = _axes(len(rows), len(blocks), len(beside), len(parts))
        for part, (main, strip) in zip(parts, axes, strict=True):
            if main:
                _map(main, bits, part, at, (len(rows), len(blocks)))
                _label_map(main, rows, blocks)
            if strip:
                _map(strip, bits, part, aside, (len(beside), 1))
                _label_strip(strip, beside, max(len(rows), len(beside)))
            first = next(axis for axis in (main, strip) if axis)
            first.set_title(_average(bits, part), loc="left")
        _explain(figure, bits, parts)
    return figure


def bits_per_layer_table(bits: BitWidths) -> dict[str, list[Any]]:
    """A row per linear: widths and their SQNR (dB; empty: none), and what the marks say."""
    names = ("layer", "site", "weight_bits", "activation_bits", "weight_sqnr", "activation_sqnr")
    table: dict[str, list[Any]] = {}
    for name in names:
        values = [getattr(layer, name) for layer in bits.layers]
        table[name] = ["" if value is None else value for value in values]
    table["protected"] = [int(layer.floored) for layer in bits.layers]
    return {**table, "met": [int(layer.met) for layer in bits.layers]}


def error_versus_bits(
    activations: np.ndarray,
    weights: np.ndarray | None = None,
    chosen: Sequence[tuple[float, float]] = (),
) -> Figure:
    """What error an average number of bits buys: SQNR against bits, both over the sites.

    `activations` (S, 3) and `weights` (L, 3): SQNR at BITS, dB. The line gives more bits to the
    site that gains most, one after the other; squares: all sites alike. `chosen`: (mean bits,
    `mean_decibel`) of the recommendation for activations and then for weights.
    """
    table = error_versus_bits_table(activations, weights, chosen=chosen)
    what, how, bits, sqnr = (np.array(table[name]) for name in ("what", "how", "bits", "sqnr"))
    with style():
        figure = new_figure(COLUMN, 2.6)
        axis = figure.subplots()
        for part, (colour, line) in LOOKS.items():
            for kind, marker in MARKERS.items():
                rows = (what == part) & (how == kind) & np.isfinite(sqnr)
                if rows.any():
                    look: dict[str, Any] = {"color": colour, "marker": marker, "ls": line}
                    if marker:
                        look |= {"ls": "", "ms": 11 if marker == "*" else 4.5, "mec": "white"}
                    look["zorder"] = 2 + list(MARKERS).index(kind)
                    axis.plot(
                        bits[rows], sqnr[rows], label=f"{part}: {kind}", clip_on=False, **look
                    )
        axis.set(xlabel="mean bits over sites or linears", xlim=(min(BITS), max(BITS)))
        axis.set_ylabel("SQNR of the mean\nnoise-to-signal ratio (dB)")
        axis.set_xticks(range(min(BITS), max(BITS) + 1))
        if axis.lines:
            figure.legend(loc="outside upper center", ncols=2 if weights is not None else 1)
        else:
            axis.set_yticks([])
    return figure


def error_versus_bits_table(
    activations: np.ndarray,
    weights: np.ndarray | None = None,
    chosen: Sequence[tuple[float, float]] = (),
) -> dict[str, list[Any]]:
    """A row per point: what, how the widths were given out, mean bits, dB."""
    rows: list[tuple[str, str, float, float]] = []
    recommended = dict(zip(LOOKS, chosen, strict=False))
    for part, sqnr in zip(LOOKS, (activations, weights), strict=True):
        if sqnr is None:
            continue
        rows += [(part, "greedy", *point) for point in zip(*greedy(sqnr), strict=True)]
        rows += [
            (part, "uniform", float(bits), mean_decibel(sqnr[:, BITS.index(bits)]))
            for bits in reversed(BITS)
        ]
        if part in recommended:
            rows.append((part, "recommended", *recommended[part]))
    names = ("what", "how", "bits", "sqnr")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _cell(layer: str) -> Cell | None:
    """Where a linear of a block is drawn; None for one outside the blocks."""
    match = _NAME.fullmatch(layer)
    if not match:
        return None
    multimodal, stream, unified, number, kind = match.groups()
    return unified or stream, kind, int(number if unified else multimodal)


def _rows(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """(stream, kind) of each row: image, text, unified blocks; kinds in the order of the data."""
    kinds = [*KINDS, *dict.fromkeys(kind for _, kind, _ in cells)]
    rows = {cell[:2] for cell in cells}
    return sorted(rows, key=lambda row: (STREAMS.index(row[0]), kinds.index(row[1])))


def _width(layer: LayerBits, part: str) -> int | None:
    return layer.weight_bits if part == "weights" else layer.activation_bits


def _misses(layer: LayerBits, part: str, target: float | None) -> bool:
    """Whether it is this part that misses the target."""
    sqnr = layer.weight_sqnr if part == "weights" else layer.activation_sqnr
    return not layer.met and target is not None and sqnr is not None and sqnr < target


def _axes(
    rows: int, blocks: int, beside: int, parts: int
) -> tuple[Figure, list[tuple[Axes | None, Axes | None]]]:
    """For each part a map and the strip beside it, or None where one would be empty.

    Parts stand side by side if their maps are narrow, else one above the other.
    """
    shares = ([blocks] if rows else []) + ([1] if beside else [])
    abreast = parts if blocks <= FEW else 1
    stacked = parts // abreast
    height = stacked * (CELL * max(rows, beside, 4) + 0.55) + 0.3
    figure = new_figure(PAGE, height)
    grid = figure.subplots(
        stacked, len(shares) * abreast, width_ratios=shares * abreast, squeeze=False
    )
    pairs = grid.reshape(parts, len(shares))
    return figure, [(p[0] if rows else None, p[-1] if beside else None) for p in pairs]


def _map(
    axis: Axes,
    bits: BitWidths,
    part: str,
    at: dict[int, tuple[int, int]],
    shape: tuple[int, int],
) -> None:
    """`at`, layer number -> (row, column): its width as a colour, with the marks."""
    from matplotlib.colors import ListedColormap

    cells = np.full(shape, np.nan)
    for number, place in at.items():
        width = _width(bits.layers[number], part)
        cells[place] = UNKNOWN if width is None else BITS[::-1].index(width)
    edges = [np.arange(count + 1) - 0.5 for count in shape[::-1]]
    look: dict[str, Any] = {"cmap": ListedColormap([*SHADES, GREY]), "edgecolors": "white"}
    axis.pcolormesh(
        *edges, np.ma.masked_invalid(cells), vmin=-0.5, vmax=UNKNOWN + 0.5, lw=0.5, **look
    )
    axis.set_ylim(shape[0] - 0.5, -0.5)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    for mark in MARKS:
        marked = [place for number, place in at.items() if mark in _marks(bits, number, part)]
        if marked:
            axis.scatter(*zip(*[place[::-1] for place in marked], strict=True), **MARKS[mark])


def _marks(bits: BitWidths, number: int, part: str) -> list[str]:
    """Those of MARKS that a layer's cell has."""
    layer = bits.layers[number]
    protected = layer.floored and _width(layer, part) is not None
    return ["protected"] * protected + ["missed"] * _misses(layer, part, bits.target)


def _label_map(axis: Axes, rows: Sequence[tuple[str, str]], blocks: Sequence[int]) -> None:
    axis.set_yticks(range(len(rows)), labels=[f"{stream}.{kind}" for stream, kind in rows])
    shown = range(0, len(blocks), -(-len(blocks) // 16))
    axis.set_xticks(shown, labels=[str(blocks[column]) for column in shown])
    axis.set_xlabel("block")
    for row in range(1, len(rows)):
        if rows[row][0] != rows[row - 1][0]:
            axis.axhline(row - 0.5, color="black", lw=0.8)


def _label_strip(axis: Axes, names: Sequence[str], rows: int) -> None:
    """Names on the right; cells as high as those of a map of so many rows."""
    axis.set(ylim=(rows - 0.5, -0.5), xticks=[])
    axis.set_yticks(range(len(names)), labels=names)
    axis.yaxis.tick_right()


def _average(bits: BitWidths, part: str) -> str:
    widths = [width for each in bits.layers if (width := _width(each, part)) is not None]
    mean = f"{np.mean(widths):.2f} bits on average" if widths else "no width is known"
    return f"{part}: {mean}"


def _explain(figure: Figure, bits: BitWidths, parts: Sequence[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = zip(reversed(BITS), SHADES, strict=True)
    handles: list[Any] = [Patch(facecolor=c, label=f"{width} bits") for width, c in colours]
    if any(_width(each, part) is None for each in bits.layers for part in parts):
        handles.append(
            Patch(facecolor=GREY, label="not known" if parts == ["weights"] else "input not traced")
        )
    cells = [(number, part) for number in range(len(bits.layers)) for part in parts]
    texts = {"protected": "kept at 8 bits (protected)"}
    if bits.target is not None:
        texts["missed"] = f"8 bits miss {bits.target:g} dB"
    for mark, text in texts.items():
        if any(mark in _marks(bits, number, part) for number, part in cells):
            look = {"marker": MARKS[mark]["marker"], "ms": 4, "ls": "", "color": MARKS[mark]["c"]}
            look |= {"mec": "black", "mfc": "white"} if mark == "protected" else {"mew": 1.2}
            handles.append(Line2D([], [], label=text, **look))
    look = {"handlelength": 1.2, "columnspacing": 1.2, "ncols": len(handles)}
    figure.legend(handles=handles, loc="outside upper center", **look)


def _errors(analysis: Analysis) -> tuple[Any, ...]:
    return analysis.comparison.scores.oracle, weight_sqnr(analysis), suggested(analysis)


FIGURES = (
    FigureKind(Of.ANALYSIS, "Suggested bits of every linear's weight and input",
               bits_per_layer, bits_per_layer_table, lambda analysis: (analysis.bits,),
               possible=lambda analysis: bool(analysis.bits.layers), shared=True, order=4),
    FigureKind(Of.ANALYSIS,
               "What bits buy: given where they gain most, to all alike, and as suggested",
               error_versus_bits, error_versus_bits_table, _errors, shared=True, order=5),
)  # fmt: skip
