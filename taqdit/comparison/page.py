"""comparison.html and the table behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from taqdit.comparison.result import OK
from taqdit.comparison.table import Row
from taqdit.comparison.verdict import Pair
from taqdit.figures import Drawn
from taqdit.quantizer import BITS
from taqdit.record import relative
from taqdit.report import Cell, FigureEntry, Report, SortableTable

CSV = "comparison.csv"
_SCORES = {
    "Status": "how the run ended; missing, damaged: its files",
    "Selection": "the run's own",
    "Points": "calibration points per trajectory",
    **{f"Loss {bits}": f"SQNR below the best static quantizer at {bits} bits, dB" for bits in BITS},
    **{f"+- {bits}": "" for bits in BITS},
    **{f"SQNR {bits}": "" for bits in BITS},
    "%Range": "of the range that the selection's range holds, percent",
    "Clipped": "share of the values outside its range",
    "W1": "Wasserstein-1 distance to all steps pooled, in standard deviations",
    "JS": "Jensen-Shannon distance to all steps pooled",
    "Seconds": "that the run took, with what it reused",
    "Folder": "",
}
_PAIRS = ("set", "one", "other", "points", "other's", "difference dB", "+-", "verdict")


def runs_table(rows: Sequence[Row], keys: Sequence[str], into: Path) -> SortableTable:
    """A row per run: the settings that differ, then scores; None where there are none."""
    note = "; ".join(f"{name}: {text}" for name, text in _SCORES.items() if text)
    columns = ("#", *keys, *_SCORES)
    cells = [
        (number, *(_shown(row.varied[key]) for key in keys), *_scores(row, into))
        for number, row in enumerate(rows, start=1)
    ]
    return SortableTable("Runs", columns, cells, note=f"{note}.", files=(CSV,))


def pairs_table(pairs: Sequence[Pair]) -> SortableTable:
    """A row per two selections on one set of trajectories."""
    rows = [
        (
            pair.group or "all",
            pair.one,
            pair.other,
            *pair.points,
            pair.difference,
            pair.half_width,
            "differ" if pair.differ else "not told apart",
        )
        for pair in pairs
    ]
    note = "How much more one loses than the other at 8 bits, and half of the interval of that."
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
        int(points) if points is not None and points == int(points) else points,
        *(number(f"loss_{bits}bit_db") for bits in BITS),
        *half,
        *(number(f"sqnr_{bits}bit_db") for bits in BITS),
        number("range_coverage", 100.0),
        *(number(name) for name in ("clipped", "w1", "js")),
        run.seconds,
        relative(run.folder, into),
    ]


def _shown(value: object) -> Cell:
    return str(value).lower() if isinstance(value, bool) else value  # type: ignore[return-value]


def _counted(rows: Sequence[Row]) -> str:
    statuses = [row.run.status for row in rows]
    return ", ".join(f"{statuses.count(name)} {name}" for name in sorted(set(statuses)))


def _common(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Options that all runs have in common."""
    first, *others = [row.run.choices for row in rows if row.run.choices] or [{}]
    alike = [f"{group}={choice}" for group, choice in sorted(first.items())
             if all(each.get(group) == choice for each in others)]  # fmt: skip
    return [("in common", ", ".join(alike))] if alike else []
