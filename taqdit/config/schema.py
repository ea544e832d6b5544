"""Typed schemas of the configuration, so that a wrong key or type dies at composition."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from inspect import signature
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from taqdit.models.options import tiny
from taqdit.sampler import euler
from taqdit.schedule import flow


def _schema(name: str, option: Callable[..., Any]) -> type:
    """A schema that has the arguments of an option, with their types and defaults."""
    hints = get_type_hints(option)
    arguments = [
        (argument, hints[argument], field(default_factory=partial(copy, parameter.default)))
        for argument, parameter in signature(option).parameters.items()
    ]
    place = {"__module__": __name__}  # where other processes find it: launchers pickle by name
    return make_dataclass(name, [("_target_", str, MISSING), *arguments], namespace=place)


ModelConfig = _schema("ModelConfig", tiny)
ScheduleConfig = _schema("ScheduleConfig", flow)
SamplerConfig = _schema("SamplerConfig", euler)


@dataclass
class CalibrationConfig:
    """Schema of the section `calibration`."""

    export: bool = True


@dataclass
class StatisticsConfig:
    """Schema of the section `statistics`."""

    export: bool = True
    npz: bool = False


@dataclass
class InputsConfig:
    """Schema of the section `inputs`: files made elsewhere."""

    calibration: str | None = None
    statistics: str | None = None


@dataclass
class RunConfig:
    """Schema of a run. Groups typed Any hold options with different arguments."""

    model: ModelConfig = MISSING  # type: ignore[valid-type]
    prompts: Any = MISSING
    schedule: ScheduleConfig = MISSING  # type: ignore[valid-type]
    sampler: SamplerConfig = MISSING  # type: ignore[valid-type]
    timestep_selection: Any = MISSING
    tracer: Any = MISSING
    analysis: Any = MISSING
    plots: Any = MISSING
    tracking: Any = MISSING
    stages: Any = "all"
    refresh: list[str] = field(default_factory=list)
    preflight: str = "on"
    allow_backend_change: bool = False
    output_dir: str = "outputs"
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    inputs: InputsConfig = field(default_factory=InputsConfig)
    pair: Any = None


ConfigStore.instance().store(name="run_schema", node=RunConfig)
