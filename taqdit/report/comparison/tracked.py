"""A sweep's comparison as one more tracked run, in the group of the runs that it compares."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taqdit.config import build
from taqdit.quantizer import BITS
from taqdit.report.comparison.table import Row
from taqdit.report.html import Cell, SortableTable
from taqdit.report.run_folder import OK
from taqdit.store import canonical_json
from taqdit.tracking.groups import run_date, sweep_group
from taqdit.tracking.options import Tracker, TrackingOptions

if TYPE_CHECKING:
    from taqdit.report.comparison.comparison import Comparison

JOB_TYPE = "sweep"  # the job type of the run, and one of its tags
MOST = 64  # runs whose losses become summary values; the table has them all


def track(found: Comparison) -> str:
    """Track a sweep's comparison in the sweep's folder, as its runs were tracked, once it is
    written. Says where to look at it; "" if the runs were not tracked, or not all alike.

    Raises StorageError if the disk is full. W&B raises nothing: a run that it does not take is in
    the folder's events.jsonl.
    """
    options = _options(found.rows)
    if options is None:
        return ""
    groups = (sweep_group(row.run.folder) for row in found.rows)
    tracker = options.start(
        found.folder,
        run_id=uuid.uuid4().hex[:12],
        name=f"{found.folder.name}_{JOB_TYPE}",
        group=next((group for group in groups if group), None),
        job_type=JOB_TYPE,
        tags=[*_tags(found.rows), run_date(found.folder), JOB_TYPE],
        config=_config(found),
    )
    told = False
    try:
        _tell(found, tracker)
        told = True
    finally:
        tracker.finish(ok=told and not found.failures)
    return tracker.location


def _tell(found: Comparison, tracker: Tracker) -> None:
    """The tables, the verdict in words, the figures, and flat numbers to sort sweeps by."""
    for name, table in (("runs", _with_ids(found)), ("pairs", found.paired)):
        if table is not None:
            tracker.table(f"comparison/{name}", list(table.columns), table.rows)
    lines = [(topic, line) for topic, texts in found.verdict.items() for line in texts]
    tracker.table("comparison/verdict", ["topic", "verdict"], lines)
    for drawn in found.drawn:
        tracker.image(f"figures/{drawn.name}", drawn.files[0], caption=drawn.title)
    tracker.summary(
        {
            "verdict": "\n".join(f"{topic}: {line}" for topic, line in lines),
            "failures": "\n".join(found.failures),
            **_numbers(found),
        }
    )


def _with_ids(found: Comparison) -> SortableTable:
    """The table of runs with the identity that each has in W&B: the last part of its address."""
    rows: list[tuple[Cell, ...]] = [
        (*cells, row.run.run_id) for cells, row in zip(found.runs.rows, found.rows, strict=True)
    ]
    return SortableTable(found.runs.title, (*found.runs.columns, "Run"), rows)


def _numbers(found: Comparison) -> dict[str, float]:
    """Counts, every run's losses under its settings' name, and the smallest loss of all."""
    ended = [row for row in found.rows if row.run.status == OK]
    numbers: dict[str, float] = {
        "jobs/all": len(found.rows),
        "jobs/ok": len(ended),
        "jobs/analysed": sum(row.run.own is not None for row in found.rows),
        "pairs/all": len(found.pairs),
        "pairs/differ": sum(pair.differ for pair in found.pairs),
    }
    for bits in BITS:
        key = f"loss_{bits}bit_db"
        losses = [(row, row.run.numbers.get(f"selection/{key}")) for row in ended]
        known = [(row, loss) for row, loss in losses if loss is not None]
        if known:
            numbers[f"least/{key}"] = min(loss for _, loss in known)
        for row, loss in known[:MOST]:
            numbers.setdefault(f"jobs/{_flat(row.name)}/{key}", loss)
    return numbers


def _flat(name: str) -> str:
    """A name as one part of a metric's: `cfg_scale=1_5,paper_uniform`."""
    return re.sub(r"[^\w=,~-]+", "-", name.replace(", ", ",").replace(".", "_"))


def _config(found: Comparison) -> dict[str, Any]:
    """What the runs have in common, in what they differ, and which they are."""
    configs = [row.run.config for row in found.rows if row.run.config]
    jobs = [{"run": row.run.run_id, "settings": row.name} for row in found.rows]
    return {**_shared(configs), "sweep": {"differ_in": list(found.keys), "jobs": jobs}}


def _shared(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys that have the same value in all configurations, at every depth."""
    first, *others = configs or [{}]
    shared: dict[str, Any] = {}
    for key, value in first.items():
        if not all(key in other for other in others):
            continue
        values = [value, *(other[key] for other in others)]
        if all(isinstance(each, Mapping) for each in values):
            shared[key] = _shared(values)
        elif all(each == value for each in values):
            shared[key] = value
    return shared


def _tags(rows: Sequence[Row]) -> list[str]:
    """The chosen options that the runs share, as the runs' own tags have them."""
    chosen = [row.run.choices for row in rows if row.run.choices]
    return [f"{group}:{choice}" for group, choice in _shared(chosen).items()]


def _options(rows: Sequence[Row]) -> TrackingOptions | None:
    """How the runs were tracked; None where they say nothing of it, or not all the same."""
    nodes = [row.run.config.get("tracking") for row in rows if row.run.config]
    if len({canonical_json(node) for node in nodes}) != 1 or not isinstance(nodes[0], Mapping):
        return None
    options: TrackingOptions = build(nodes[0])
    return options
