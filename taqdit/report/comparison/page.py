"""comparison.html and the table behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from taqdit.quantizer import BITS
from taqdit.report.comparison.pairs import DECIDING, Pair
from taqdit.report.comparison.table import Row
from taqdit.report.figures import Drawn
from taqdit.report.html import Cell, FigureEntry, Report, SortableTable
from taqdit.report.run_folder import OK
from taqdit.report.run_page import PAGE
from taqdit.store.disk import relative

CSV = "comparison.csv"
UNTOLD = ("plots", "tracking", "sweep")  # options that change no number
_SCORES = {  # column -> what its numbers are; one that says nothing is told of by a neighbour
    "Status": "how the run ended; missing, damaged: its files are",
    "Selection": "the run's own rule, with the marks explained above",
    "Points": "calibration points per trajectory",
    **{f"{name} {bits}": "" for bits in BITS for name in ("Loss", "+-")},
    "Loss n": "dB of SQNR below the best static quantizer at n bits; +- n: half its 95 % interval",
    **{f"SQNR {bits}": "" for bits in BITS},
    "SQNR n": "dB at n bits, with one range for all steps",
    "%Range": "percent of the whole range of the values that the selected steps show",
    "Clipped": "share of all values that lie outside the range of the selected steps",
    "W1": "Wasserstein-1 distance to all steps pooled, in standard deviations",
    "JS": "Jensen-Shannon distance to all steps pooled",
    "Seconds": "how long the run took, little where the store held what it needs",
    "Folder": "the run's, which leads to its report",
}
_SHOWN = [name for name in _SCORES if not name.endswith(" n")]
_PAIRS = ("set", "one", "other", "k of one", "k of other", "difference dB", "+-", "verdict")


def runs_table(rows: Sequence[Row], keys: Sequence[str], into: Path) -> SortableTable:
    """A row per run: the settings that differ, then scores; None where there are none."""
    note = "; ".join(f"{name}: {text}" for name, text in _SCORES.items() if text)
    columns = ("#", *keys, *_SHOWN)
    cells = [
        (number, *(_shown(row.varied[key]) for key in keys), *_scores(row, into))
        for number, row in enumerate(rows, start=1)
    ]
    return SortableTable(
        "Runs", columns, cells, note=f"{note}.", files=(CSV,), links=_reports(rows, into)
    )


def _reports(rows: Sequence[Row], into: Path) -> dict[str, str]:
    """A run's folder -> its report, where it has one."""
    folders = [relative(row.run.folder, into) for row in rows if (row.run.folder / PAGE).is_file()]
    return {folder: f"{folder}/{PAGE}" for folder in folders}


def pairs_table(pairs: Sequence[Pair]) -> SortableTable:
    """A row per two selections on one set of trajectories."""
    rows = [
        (
            pair.group or "all",
            pair.one,
            pair.other,
            *map(_count, pair.points),
            pair.difference,
            pair.half_width,
            f"{pair.better} is better" if pair.differ else "not told apart",
        )
        for pair in pairs
    ]
    note = (
        f"How much more the first loses than the other at {DECIDING} bits, and half of the"
        " interval of that; k: calibration points per trajectory."
    )
    return SortableTable("Pairs of selections", _PAIRS, rows, note=note)


def page(
    rows: Sequence[Row],
    keys: Sequence[str],
    *,
    into: Path,
    tables: Sequence[SortableTable],
    findings: Sequence[tuple[str, Sequence[str]]],
    drawn: Sequence[Drawn],
    notes: Sequence[str],
) -> Report:
    """What stands on the page; runs that did not end well are named on top."""
    figures = [
        FigureEntry(
            each.name,
            each.title,
            each.files[0].read_bytes(),
            tuple(path.relative_to(into).as_posix() for path in each.files[1:]),
        )
        for each in drawn
    ]
    analysed = sum(row.run.own is not None for row in rows)
    return Report(
        title=f"taqdit · comparison of {len(rows)} run{'s' if len(rows) != 1 else ''}",
        subtitle=f"they differ in {', '.join(keys)}" if keys else "they do not differ in a setting",
        notes=[*failures(rows, into), *notes],
        findings=[(topic, "\n".join(lines)) for topic, lines in findings],
        facts=[
            ("runs", _counted(rows)),
            ("analysed", f"{analysed} of {len(rows)}"),
            *_common(rows),
        ],
        figures=[("Comparison", figures)] if figures else [],
        tables=tables,
    )


def failures(rows: Sequence[Row], into: Path) -> list[str]:
    """A line per run that did not end well: its settings, where it is, why."""
    bad = [row for row in rows if row.run.status != OK]
    return [
        f"{row.run.status}: {row.name} ({relative(row.run.folder, into)}):"
        f" {row.run.error or 'it left no reason'}"
        for row in bad
    ]


def _scores(row: Row, into: Path) -> list[Cell]:
    run, own = row.run, row.run.own
    numbers: Mapping[str, float] = run.numbers

    def number(name: str, factor: float = 1.0) -> float | None:
        value = numbers.get(f"selection/{name}")
        return None if value is None else factor * value

    half = own.half_width_db if own else (None,) * len(BITS)
    points = own.points if own else number("points")
    return [
        run.status,
        own.name if own else None,
        _count(points),
        *(
            cell
            for bits, wide in zip(BITS, half, strict=True)
            for cell in (number(f"loss_{bits}bit_db"), wide)
        ),
        *(number(f"sqnr_{bits}bit_db") for bits in BITS),
        number("range_coverage", 100.0),
        *(number(name) for name in ("clipped", "w1", "js")),
        run.seconds,
        relative(run.folder, into),
    ]


def _count(value: float | None) -> float | int | None:
    """A number of points: whole where it is, as an average over the trajectories need not be."""
    return int(value) if value is not None and value == int(value) else value


def _shown(value: object) -> Cell:
    return str(value).lower() if isinstance(value, bool) else value  # type: ignore[return-value]


def _counted(rows: Sequence[Row]) -> str:
    statuses = [row.run.status for row in rows]
    return ", ".join(f"{statuses.count(name)} {name}" for name in sorted(set(statuses)))


def _common(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Options that all runs have in common."""
    first, *others = [row.run.choices for row in rows if row.run.choices] or [{}]
    alike = [group for group in sorted(first) if group not in UNTOLD
             and all(each.get(group) == first[group] for each in others)]  # fmt: skip
    return [("in common", ", ".join(f"{name}={first[name]}" for name in alike))] if alike else []
