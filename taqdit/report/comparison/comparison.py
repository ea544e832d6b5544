"""What a comparison of several runs found, and its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taqdit.plots.drawing import Drawn
from taqdit.report.comparison.pairs import CRITERION, Pair
from taqdit.report.comparison.table import Row, comparable
from taqdit.report.html import SortableTable

HTML = "comparison.html"


@dataclass(frozen=True)
class Comparison:
    """What was found: `keys`, the settings in which the runs differ; a row per run, sorted by
    them; `verdict`, topic -> lines; `pairs` of selections on the same trajectories; `failures`, a
    line per run that did not end well; `page`, where comparison.html lies. `runs` and `paired` are
    the page's tables (None where there is no pair), `drawn` its figures."""

    folder: Path
    keys: tuple[str, ...]
    rows: tuple[Row, ...]
    verdict: dict[str, list[str]]
    pairs: tuple[Pair, ...]
    failures: tuple[str, ...]
    runs: SortableTable
    paired: SortableTable | None
    drawn: tuple[Drawn, ...] = ()

    @property
    def page(self) -> Path:
        """The page that shows it all."""
        return self.folder / HTML


def as_json(found: Comparison) -> dict[str, Any]:
    """What comparison.json says: under `compared` only what the same runs always give, under
    `where` paths, times and identities in the same order."""
    return {
        "schema": 1,
        "compared": {
            "differ_in": list(found.keys),
            "runs": [{**comparable(row.run), "varied": dict(row.varied)} for row in found.rows],
            "criterion": CRITERION,
            "verdict": found.verdict,
            "pairs": [{**asdict(pair), "differ": pair.differ} for pair in found.pairs],
        },
        "where": [
            {
                "folder": str(row.run.folder),
                "run_id": row.run.run_id,
                "seconds": row.run.seconds,
                "error": row.run.error,
            }
            for row in found.rows
        ],
    }
