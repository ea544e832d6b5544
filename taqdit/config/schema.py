"""Typed schemas of the configuration, so that a wrong key or type dies at composition."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class ModelConfig:
    """Schema of the group `model`."""

    _target_: str = MISSING
    local_ckpt: str | None = None
    low_memory: bool = False
    use_t5: bool = False
    w16: bool = False
    a16: bool = False
    latent_size: list[int] = field(default_factory=lambda: [8, 8])


@dataclass
class ScheduleConfig:
    """Schema of the group `schedule`."""

    _target_: str = MISSING
    num_steps: int = MISSING
    shift: float = MISSING


@dataclass
class SamplerConfig:
    """Schema of the group `sampler`."""

    _target_: str = MISSING
    cfg_scale: float = MISSING
    seed: int = MISSING
    num_trajectories: int = MISSING
    batch_size: int = MISSING
    images: bool = MISSING
    latents: str = "all"
    latents_dtype: str = "float32"


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
    """Schema of a run. Groups typed Any hold options with different keyword arguments."""

    model: ModelConfig = MISSING
    prompts: Any = MISSING
    schedule: ScheduleConfig = MISSING
    sampler: SamplerConfig = MISSING
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
