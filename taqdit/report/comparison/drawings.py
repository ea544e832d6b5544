"""Which figures a comparison draws, and from what; what cannot be read is left out and said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from taqdit.activations import StepStatistics
from taqdit.activations.overview import per_site
from taqdit.activations.stored import Statistics
from taqdit.errors import InputError, TaqditError
from taqdit.plots import comparison as plots
from taqdit.plots.pictures import picture_table, picture_table_table
from taqdit.prompts.options import Prompts
from taqdit.report.comparison.result import RunResult
from taqdit.report.comparison.table import CFG, NUM_STEPS, Group, Row, config_value
from taqdit.report.figures import Drawing
from taqdit.store import Stage
from taqdit.trajectories.trajectory_set import TrajectorySet

HEADING = "Comparison"
PICTURES, COLUMNS = 4, 6  # rows, columns
TICKS, MOST, PANELS = 16, 48, 9  # rows of ticks, of runs; panels of losses against a setting
_SETTINGS = {CFG: "CFG scale", NUM_STEPS: "number of steps"}


def loss_drawings(groups: Sequence[Group]) -> Iterator[Drawing]:
    """Losses per selection, and against CFG and the number of steps where these vary."""
    rows = [_loss_row(group.title, row) for group in groups for row in group.rows]
    if shown := [row for row in rows if np.isfinite(row.loss).any()][:MOST]:
        left = f" ({len(shown)} of {len(rows)} runs)" if len(shown) < len(rows) else ""
        yield Drawing(
            "comparison_losses",
            HEADING,
            f"What every run's selection loses, with 95 % intervals{left}",
            lambda: (plots.loss_by_selection(shown), plots.loss_by_selection_table(shown)),
        )
    for key in (CFG, NUM_STEPS):
        lines = _lines([row for group in groups for row in group.rows], key)
        if len({x for line in lines for x in line.x.tolist()}) > 1:
            yield _against(key, lines)


def store_drawings(
    groups: Sequence[Group], rows: Sequence[Row], notes: list[str]
) -> Iterator[Drawing]:
    """Ranges over time and pictures, from the store. `notes` gets what could not be read."""
    curves = _curves(groups, notes)
    ticks = _ticks(curves)[:TICKS]
    if curves:
        lines = [curve for _, curve in curves]
        yield Drawing(
            "comparison_ranges",
            HEADING,
            "The range of the median channel over time, and the steps that are calibrated on",
            lambda: (
                plots.ranges_over_time(lines, ticks),
                plots.ranges_over_time_table(lines, ticks),
            ),
        )
    columns, sets = _pictures(rows, notes)
    if len(columns) > 1:  # one alone is on its run's page
        titles, prompts = [column.title for column in columns], _rows_of(columns)
        cells = [
            [dict(enumerate(column.pictures)).get(place) for column in columns]
            for place in range(len(prompts))
        ]
        yield Drawing(
            "comparison_pictures",
            HEADING,
            f"The first pictures of {_of(len(columns), sets)} of trajectories, side by side",
            lambda: (
                picture_table(cells, titles, prompts),
                picture_table_table(titles, prompts),
            ),
        )


def _loss_row(title: str, row: Row) -> plots.LossRow:
    own = row.run.own
    loss, half = (own.loss_db, own.half_width_db) if own else ((None,) * 3, (None,) * 3)
    return plots.LossRow(title, row.selection, _numbers(loss), _numbers(half))


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


def _lines(rows: Sequence[Row], key: str) -> list[plots.LossLine]:
    """A line per selection and panel; of runs at the same place, the first."""
    found: dict[tuple[str, str], dict[float, plots.LossRow]] = {}
    for row in rows:
        x = config_value(row.run, key)
        made = _loss_row("", row)
        if isinstance(x, int | float) and np.isfinite(made.loss).any():
            others = Row(row.run, {name: v for name, v in row.varied.items() if name != key})
            found.setdefault((others.setting, row.selection), {}).setdefault(float(x), made)
    return [
        plots.LossLine(
            panel,
            name,
            np.array(sorted(dots)),
            np.array([dots[x].loss for x in sorted(dots)]),
            np.array([dots[x].half_width for x in sorted(dots)]),
        )
        for (panel, name), dots in found.items()
    ]


def _against(key: str, lines: Sequence[plots.LossLine]) -> Drawing:
    setting = _SETTINGS[key]
    panels = list(dict.fromkeys(line.panel for line in lines))
    shown = [line for line in lines if line.panel in panels[:PANELS]]
    left = f" ({PANELS} of {len(panels)} settings)" if len(panels) > PANELS else ""
    return Drawing(
        f"comparison_loss_{key.rpartition('.')[2]}",
        HEADING,
        f"What selections lose against the {setting}, with 95 % intervals{left};"
        " trajectories differ, so every dot is against the best quantizer of its own",
        lambda: (plots.loss_against(shown, setting), plots.loss_against_table(shown, setting)),
    )


def _curves(groups: Sequence[Group], notes: list[str]) -> list[tuple[Group, plots.RangeCurve]]:
    """Of every group whose statistics can be read; they are opened once."""
    curves = []
    for group in groups:
        run = group.rows[0].run
        try:
            statistics = Statistics(_stage(run, "statistics"), extent=run.extent)
            values = np.array(
                [_median_range(statistics.step(i)) for i in range(statistics.num_steps)]
            )
        except (TaqditError, OSError) as error:
            notes.append(f"no ranges of {group.title or 'the runs'}: {error}")
            continue
        curves.append((group, plots.RangeCurve(group.title, statistics.timesteps, values)))
    return curves


def _median_range(step: StepStatistics) -> float:
    """Range of a site's median channel at a step, the median over the sites."""
    ranges = np.maximum(step.high.astype(np.float64) - step.low, 0)  # of no values: below 0
    return float(np.median(per_site(step.layout, ranges, np.median)))


def _stage(run: RunResult, name: str) -> Stage:
    fingerprint = run.fingerprints.get(name)
    stage = Stage.find(run.store, name, fingerprint) if fingerprint and run.store else None
    if stage is None:
        raise InputError(f"the store holds no {name} of the run")
    return stage


def _ticks(curves: Sequence[tuple[Group, plots.RangeCurve]]) -> list[plots.Ticks]:
    """A row per selection; one for all sets in which it chooses the same timesteps."""
    found: dict[tuple[str, tuple[float, ...]], tuple[int, str]] = {}
    for group, curve in curves:
        total = len(curve.timesteps)
        for row in group.rows:
            steps = row.run.own.steps if row.run.own else ()
            times = tuple(float(curve.timesteps[step]) for step in steps if 0 <= step < total)
            found.setdefault((row.selection, times), (total, group.title))
    names = _distinct([(name, f"of {n} steps", title) for (name, _), (n, title) in found.items()])
    return [
        plots.Ticks(name, np.array(times)) for name, (_, times) in zip(names, found, strict=True)
    ]


def _distinct(parts: Sequence[tuple[str, str, str]]) -> list[str]:
    """The first part of each, with as many of the others as it takes to tell them apart."""
    names = [name for name, *_ in parts]
    for place in (1, 2):
        twice = {name for name in names if names.count(name) > 1}
        names = [
            f"{name} ({each[place]})" if name in twice else name
            for name, each in zip(names, parts, strict=True)
        ]
    return names


@dataclass(frozen=True)
class _Column:
    """The first pictures of a set of trajectories and their prompts."""

    title: str
    prompts: list[str]
    pictures: list[np.ndarray]


def _pictures(rows: Sequence[Row], notes: list[str]) -> tuple[list[_Column], int]:
    """A column per set of trajectories that was decoded, and how many such sets there are.

    Of many sets some are taken, the first and the last among them, evenly between.
    """
    first: dict[str, Row] = {}
    for row in rows:
        fingerprint = row.run.fingerprints.get("trajectories")
        if fingerprint and config_value(row.run, "sampler.images"):
            first.setdefault(fingerprint, row)
    sets, columns = list(first.values()), []
    places = np.linspace(0, len(sets) - 1, min(len(sets), COLUMNS)).round().astype(int)
    for row in [sets[place] for place in places]:
        try:
            columns.append(_column(row))
        except (TaqditError, OSError) as error:
            notes.append(f"no pictures of {row.setting or 'the runs'}: {error}")
    return columns, len(sets)


def _of(shown: int, sets: int) -> str:
    return f"{shown} of {sets} sets" if shown < sets else f"all {sets} sets"


def _column(row: Row) -> _Column:
    run = row.run
    count = config_value(run, "sampler.num_trajectories")
    if not run.prompts or not isinstance(count, int):
        raise InputError("the run names no prompts")
    prompts = Prompts(tuple(text for text, _ in run.prompts), tuple(s for _, s in run.prompts))
    trajectories = TrajectorySet(_stage(run, "trajectories"), count=count, prompts=prompts)
    shown = range(min(count, PICTURES))
    pictures = [trajectories.picture(i) for i in shown]
    return _Column(row.setting, [prompts.text(i) for i in shown], pictures)


def _rows_of(columns: Sequence[_Column]) -> list[str]:
    """The prompts, where all sets have the same; else numbers."""
    longest = max((column.prompts for column in columns), key=len)
    alike = all(column.prompts == longest[: len(column.prompts)] for column in columns)
    return longest if alike else [f"trajectory {place}" for place in range(len(longest))]
