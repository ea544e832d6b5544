"""The plan that a sound configuration ends in."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from taqdit.config.building import plain
from taqdit.config.checking import Checked, check, raise_problems
from taqdit.sampler import FINAL, Sampler
from taqdit.stages import kinds
from taqdit.stages.plan import Plan

log = logging.getLogger(__name__)


def _stages(config: DictConfig, sampler: Sampler) -> tuple[str, ...]:
    """The stages that run; all those that can, if all are asked for."""
    if config.stages != "all":
        return tuple(config.stages)
    every = kinds.stage_names()
    return tuple(s for s in every if not (s == "calibration" and sampler.latents == FINAL))


def plan(config: DictConfig, checked: Checked | None = None) -> Plan:
    """The objects of a composed configuration. Raises the error of all its problems.

    `checked`: what `check` gave just now; of another configuration it does not count.
    """
    if checked is None or checked.config != config:
        checked = check(config)
    raise_problems(checked.problems)
    checked.log_notes()
    built = checked.built
    _note_all_steps(config)
    imported, statistics = config.inputs.calibration, config.inputs.statistics
    stages = _stages(config, built["sampler"])
    return Plan(
        config=plain(config),
        model=built["model"],
        prompts=built["prompts"],
        schedule=built["schedule"],
        sampler=built["sampler"],
        select=built["timestep_selection"],
        tracer=built["tracer"],
        analysis=built["analysis"],
        plots=built["plots"],
        tracking=built["tracking"],
        stages=stages,
        needs=kinds.with_sources(stages),
        refresh=tuple(config.refresh),
        preflight=config.preflight,
        export=config.calibration.export,
        export_layers=config.statistics.export,
        export_statistics=config.statistics.npz,
        allow_backend_change=config.allow_backend_change,
        output_dir=Path(config.output_dir).resolve(),
        imported=None if imported is None else Path(imported),
        imported_statistics=None if statistics is None else Path(statistics),
    )


def _note_all_steps(config: DictConfig) -> None:
    """Say that a budget selects every step."""
    count, steps = config.timestep_selection.get("count"), config.schedule.num_steps
    if count is not None and count == steps > 1:
        log.warning("timestep_selection.count=%d selects all %d steps", count, steps)
