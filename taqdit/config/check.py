"""Every problem of a configuration at once, before anything loads; then its plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from taqdit.config.build import build, plain
from taqdit.errors import ConfigError, TaqditError
from taqdit.plan import Plan

GROUPS = (
    "model",
    "prompts",
    "schedule",
    "sampler",
    "timestep_selection",
    "tracer",
    "plots",
    "tracking",
)
STAGES = ("conditioning", "trajectories", "calibration", "figures")
PREFLIGHT = ("on", "only", "off")
RULES = ("sqnr", "seed")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: its text and the exit code of its kind."""

    text: str
    exit_code: int


def check(config: DictConfig) -> list[Problem]:
    """Every range, signature and cross-key problem of a composed configuration, at once."""
    problems: list[Problem] = []
    built: dict[str, Any] = {}
    for group in GROUPS:
        try:
            built[group] = build(config[group])
        except TaqditError as error:
            problems += [Problem(f"{group}.{text}", error.exit_code) for text in error.args]
    problems += [Problem(text, ConfigError.exit_code) for text in _section_problems(config)]
    if "schedule" in built and "timestep_selection" in built:
        problems += _selection_problems(built["timestep_selection"], built["schedule"])
    return problems


def _section_problems(config: DictConfig) -> Iterator[str]:
    if config.preflight not in PREFLIGHT:
        yield f"preflight={config.preflight} must be one of {', '.join(PREFLIGHT)}"
    if config.analysis.rule not in RULES:
        yield f"analysis.rule={config.analysis.rule} must be one of {', '.join(RULES)}"
    for key, value in (("stages", config.stages), ("refresh", config.refresh)):
        wanted = STAGES if value == "all" else value
        if isinstance(wanted, str):
            yield f"{key}={value} must be a list out of {', '.join(STAGES)}"
            continue
        for name in wanted:
            if name not in STAGES:
                yield f"{key}: {name!r} must be one of {', '.join(STAGES)}"
    if config.inputs.statistics is not None:
        yield (
            f"inputs.statistics={config.inputs.statistics} cannot be used: this version does not"
            " read activation statistics; leave it null"
        )


def _selection_problems(select: Any, schedule: Any) -> list[Problem]:
    try:
        select(num_steps=schedule.num_steps, sigmas=schedule.sigmas(), trajectory=0, seed=0)
    except TaqditError as error:
        return [Problem(f"timestep_selection.{text}", error.exit_code) for text in error.args]
    return []


def plan(config: DictConfig) -> Plan:
    """The objects of a composed configuration. Raises the error of all its problems."""
    raise_problems(check(config))
    built = {group: build(config[group]) for group in GROUPS}
    imported = config.inputs.calibration
    return Plan(
        config=plain(config),
        model=built["model"],
        prompts=built["prompts"],
        schedule=built["schedule"],
        sampler=built["sampler"],
        select=built["timestep_selection"],
        tracer=built["tracer"],
        plots=built["plots"],
        tracking=built["tracking"],
        stages=STAGES if config.stages == "all" else tuple(config.stages),
        refresh=tuple(config.refresh),
        preflight=config.preflight,
        export=config.calibration.export,
        allow_backend_change=config.allow_backend_change,
        output_dir=Path(config.output_dir),
        imported=None if imported is None else Path(imported),
    )


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raise one error for all problems, of the first one's kind (config before the others)."""
    if not problems:
        return
    code = min(problem.exit_code for problem in problems)
    kinds = {kind.exit_code: kind for kind in TaqditError.__subclasses__()}
    raise kinds[code](*(problem.text for problem in problems))
