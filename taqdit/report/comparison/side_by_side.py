"""Several runs side by side: one table, the figures that only a comparison has, a verdict.

`compare` takes the folders of runs, whether a sweep's jobs or any others, and leaves
comparison.json, .csv and .html. Runs that failed, or of which files are missing or damaged, are
rows too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from taqdit.errors import InputError
from taqdit.plots.style import publish_csv
from taqdit.report.comparison.comparison import Comparison, as_json
from taqdit.report.comparison.drawings import loss_drawings, store_drawings
from taqdit.report.comparison.page import CSV, failures, page, pairs_table, runs_table
from taqdit.report.comparison.pairs import CRITERION, MARKS, overall, pairs, words
from taqdit.report.comparison.result import RunResult, read
from taqdit.report.comparison.table import Group, Row, groups, table
from taqdit.report.comparison.tracked import track
from taqdit.report.figures import Drawn, save_all
from taqdit.report.html import render
from taqdit.store import make_folder, publish_bytes, publish_json
from taqdit.tracking.options import Tracker

__all__ = ["Comparison", "RunResult", "compare", "read", "track"]

JSON = "comparison.json"
EVERY = "all together"  # topic of the verdict on all sets


def compare(folders: Sequence[str | Path], into: str | Path) -> Comparison:
    """Compare the runs in `folders` and write comparison.json, .csv, .html and figures/ `into` a
    folder. The order of the folders changes nothing. InputError if there are none."""
    found = dict.fromkeys(Path(folder).resolve() for folder in folders)
    if not found:
        raise InputError("there is no run to compare")
    into = Path(into).resolve()
    keys, rows = table([read(folder) for folder in found])
    sets = groups(rows)
    paired = {group.title: pairs(group) for group in sets}
    every = tuple(pair for each in paired.values() for pair in each)
    result = Comparison(
        into,
        tuple(keys),
        tuple(rows),
        {
            **({EVERY: overall(sets)} if len(sets) > 1 else {}),
            **{group.title or "selections": words(group, paired[group.title]) for group in sets},
        },
        every,
        tuple(failures(rows, into)),
        runs=runs_table(rows, keys, into),
        paired=pairs_table(every) if every else None,
    )
    make_folder(into)
    publish_json(into / JSON, as_json(result))
    publish_csv(into / CSV, result.runs.by_column)
    drawn, notes = _drawn(sets, rows, into)
    result = replace(result, drawn=tuple(drawn))
    _publish_page(result, notes)
    return result


def _drawn(sets: Sequence[Group], rows: Sequence[Row], into: Path) -> tuple[list[Drawn], list[str]]:
    """The saved figures, and what could not be drawn."""
    notes: list[str] = []
    drawings = [*loss_drawings(sets), *store_drawings(sets, rows, notes)]
    drawn = save_all(drawings, into, Tracker(), formats=("png", "svg"), stored=None)
    return drawn, notes


def _publish_page(found: Comparison, notes: Sequence[str]) -> None:
    criterion = [("criterion", [CRITERION]), ("marks", [MARKS])] if found.pairs else []
    shown = page(
        found.rows,
        found.keys,
        into=found.folder,
        tables=[found.runs, *([found.paired] if found.paired else [])],
        findings=[*found.verdict.items(), *criterion],
        drawn=found.drawn,
        notes=notes,
    )
    publish_bytes(found.page, render(shown))
