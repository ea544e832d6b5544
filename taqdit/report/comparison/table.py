"""Runs side by side: in which settings they differ, and which share their trajectories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from taqdit.report.comparison.result import RunResult
from taqdit.report.run_folder import OK

Value = str | float | int | bool | None
AXES = ("model", "schedule.num_steps", "sampler.cfg_scale", "timestep_selection")
CFG, NUM_STEPS, SELECTION = "sampler.cfg_scale", "schedule.num_steps", "timestep_selection"
COSMETIC = (  # change no number, and may hold paths
    *("output_dir", "plots", "tracking", "preflight", "refresh", "stages", "calibration"),
    *("allow_backend_change", "statistics", "hydra", "sampler.images", "model.low_memory"),
)
PATHS = ("inputs", "prompts.path", "model.local_ckpt")  # of which the file's name is enough
_UNKNOWN = object()


@dataclass(frozen=True)
class Row:
    """A run and the values (None: not set) of the settings in which the compared runs differ."""

    run: RunResult
    varied: Mapping[str, Value]

    @property
    def selection(self) -> str:
        """The selection rule, with what else differs about it: `midpoint, count=8`."""
        rule = self.run.own.name if self.run.own else self.varied.get(SELECTION)
        rule = rule or self.run.choices.get(SELECTION) or "no selection"
        return ", ".join([str(rule), *_settings(self.varied, of_selection=True)])

    @property
    def setting(self) -> str:
        """Everything else that differs: `cfg_scale=4, num_steps=20`; "" if nothing does."""
        return ", ".join(_settings(self.varied, of_selection=False))

    @property
    def name(self) -> str:
        """Both."""
        if not _is_known(self.run):
            return "settings unknown"
        return f"{self.setting}, {self.selection}" if self.setting else self.selection


@dataclass(frozen=True)
class Group:
    """The runs over one set of trajectories and statistics, judged alike."""

    title: str
    rows: tuple[Row, ...]


def table(runs: Sequence[RunResult]) -> tuple[list[str], list[Row]]:
    """The settings in which the runs differ, and a row per run, sorted by them."""
    keys = sorted({*AXES, *(key for run in runs for key in _overridden(run))}, key=_by_kind)
    values = {key: [_value(run, key) for run in runs] for key in keys}
    keys = [key for key in keys if len({_order(v) for v in values[key] if v is not _UNKNOWN}) > 1]
    rows = [
        Row(run, {key: None if (v := values[key][place]) is _UNKNOWN else v for key in keys})
        for place, run in enumerate(runs)
    ]
    return keys, sorted(rows, key=_sorted_by)


def groups(rows: Sequence[Row]) -> list[Group]:
    """Runs that ended well and were analysed, by the trajectories and statistics that they share,
    in the order of the rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.run.own is not None and row.run.status == OK:
            found.setdefault(_set(row.run), []).append(row)
    titles = [members[0].setting for members in found.values()]
    return [
        Group(title if titles.count(title) == 1 else f"{title} ({place + 1})".strip(), tuple(each))
        for place, (title, each) in enumerate(zip(titles, found.values(), strict=True))
    ]


def comparable_overrides(run: RunResult) -> list[str]:
    """The run's overrides that change its numbers, sorted; of paths the file's name alone."""
    return sorted(f"{key}={value}" for key, value in _overridden(run).items())


def config_value(run: RunResult, key: str) -> Any:
    """What stands at a dotted key of the configuration; None if nothing does."""
    found: Any = run.config
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def comparable(run: RunResult) -> dict[str, Any]:
    """What a run says that is the same whenever and wherever it is made."""
    own = run.own
    return {
        "overrides": comparable_overrides(run),
        "status": run.status,
        "selection": own and own.name,
        "points": own and own.points,
        "half_width_db": own and list(own.half_width_db),
        "steps": list(run.steps or (own.steps if own else ())),
        "numbers": dict(run.numbers),
    }


def _set(run: RunResult) -> str:
    fingerprints = [run.fingerprints.get(name) for name in ("trajectories", "statistics")]
    weighting = config_value(run, "analysis.weighting")
    return json.dumps([fingerprints, run.extent, weighting], sort_keys=True, default=str)


def _overridden(run: RunResult) -> dict[str, str]:
    """Key -> text of the overrides that change numbers; the last of a key counts."""
    pairs = [text.lstrip("+").partition("=") for text in run.overrides]
    return {
        key: PurePath(value).name if _below(key, PATHS) else value
        for key, _, value in pairs
        if not _below(key.lstrip("~"), COSMETIC)
    }


def _below(key: str, names: Sequence[str]) -> bool:
    """Whether the key is one of the names or lies below one: `plots`, `plots.layers`, `a/b`."""
    return any(
        key == name or key.startswith((f"{name}.", f"{name}/", f"{name}@")) for name in names
    )


def _value(run: RunResult, key: str) -> Any:
    """The resolved value of a setting, else its override; _UNKNOWN if the run tells nothing."""
    if key in run.choices:
        return run.choices[key]
    found, overridden = config_value(run, key), _overridden(run)
    if isinstance(found, str) and _below(key, PATHS):
        return PurePath(found).name
    if found is not None and not isinstance(found, Mapping):
        return _plain(found)
    if key in overridden:
        return _plain(_literal(overridden[key]))
    if isinstance(found, Mapping) and "_target_" in found:
        return str(found["_target_"]).rpartition(".")[2]
    return None if run.choices or run.config else _UNKNOWN


def _is_known(run: RunResult) -> bool:
    """Whether the run left any word about its settings."""
    return bool(run.choices or run.config or run.overrides)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(value: Any) -> Value:
    """4.0 as 4, lists as text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value, default=str)


def _settings(varied: Mapping[str, Value], *, of_selection: bool) -> list[str]:
    """`cfg_scale=4` for each; the rule itself has its name already."""
    lasts = [key.rpartition(".")[2] for key in varied]
    return [
        f"{last if lasts.count(last) == 1 else key}={'-' if value is None else value}"
        for (key, value), last in zip(varied.items(), lasts, strict=True)
        if key != SELECTION and _below(key, (SELECTION,)) == of_selection
        if not (of_selection and value is None)
    ]


def _by_kind(key: str) -> tuple[bool, str]:
    """Selections last: rows of one set of trajectories stand together."""
    return _below(key, (SELECTION,)), key


def _order(value: Any) -> tuple[int, float, str]:
    """Nothing, numbers, texts."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, int | float):
        return 1, float(value), str(value) if isinstance(value, bool) else ""
    return 2, 0.0, str(value)


def _sorted_by(row: Row) -> tuple[Any, ...]:
    same = json.dumps(comparable(row.run), sort_keys=True, ensure_ascii=False)
    return (
        not _is_known(row.run),
        tuple(map(_order, row.varied.values())),
        same,
        str(row.run.folder),
    )
