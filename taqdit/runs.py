"""Runs from Python: start one, or open the folder of a finished one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from taqdit import config as configuration
from taqdit.calibration import CalibrationSet
from taqdit.conditioning import Conditioning
from taqdit.errors import CorruptError, InputError
from taqdit.images import picture_name, read_picture
from taqdit.plan import Plan
from taqdit.session import Session
from taqdit.stages import calibration_set
from taqdit.store import Stage, make_folder, publish_bytes
from taqdit.trajectory import TrajectorySet


@dataclass(frozen=True)
class Run:
    """A run's folder, read-only: its resolved `config` and its `summary` as plain mappings."""

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    record: dict[str, Any]

    @property
    def plan(self) -> Plan:
        """The run's configuration as objects."""
        return configuration.plan(configuration.from_mapping(self.config))

    def trajectories(self) -> TrajectorySet:
        """The run's trajectories: `len`, `.latents(i)`, `.sigmas`, `.timesteps`."""
        plan = self.plan
        return TrajectorySet(
            self._stage("trajectories"),
            count=plan.sampler.num_trajectories,
            prompts=plan.prompts,
        )

    def calibration(self) -> CalibrationSet:
        """The run's calibration set: trajectories x timestep selection, as a lazy view."""
        row = Conditioning(self._stage("conditioning")).row
        return calibration_set(self.plan, self.trajectories(), row)

    def picture(self, index: int) -> np.ndarray:
        """Decoded picture (H, W, 3) uint8 of trajectory `index`."""
        return read_picture(self._stage("trajectories").path(picture_name(index)))

    def _stage(self, name: str) -> Stage:
        mark = self.record["stages"].get(name)
        store = self.folder / self.record["store"]
        stage = Stage.find(store, name, mark) if mark else None
        if stage is None:
            raise InputError(f"the run {self.folder} has no stored stage {name} in {store}")
        return stage


def open_run(path: str | Path) -> Run:
    """Open a finished run's folder. Raises InputError if it is none, CorruptError if damaged."""
    folder = Path(path)
    record = _read_json(folder / "run.json")
    summary = _read_json(folder / "summary.json")
    return Run(folder, record["config"], summary, record)


def launch(overrides: Sequence[str] = ()) -> Run:
    """Run `taqdit *overrides` in this process and return the finished run.

    Raises TaqditError, as the command line would print it.
    """
    composed = configuration.compose_config(overrides, with_hydra=True)
    folder = new_run_folder(Path(composed.output_dir))
    config = configuration.without_hydra(composed)
    plan = configuration.plan(config)
    make_folder(folder / ".hydra")
    publish_bytes(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(config).encode())
    publish_bytes(folder / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(list(overrides)).encode())
    Session(plan, folder, choices=configuration.choices(composed.hydra)).run()
    return open_run(folder)


def new_run_folder(output_dir: Path) -> Path:
    """A folder name like the command line's: runs/<date>/<time with microseconds>."""
    now = datetime.now()
    return output_dir / "runs" / f"{now:%Y-%m-%d}" / f"{now:%H%M%S_%f}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is no finished run: it has no {path.name}") from error
    except ValueError as error:
        raise CorruptError(f"{path} is not JSON ({error})") from error
    return found
