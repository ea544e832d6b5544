"""Runs from Python: start one, or open the folder of a finished one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from taqdit import config as configuration
from taqdit.activations.opened import ImportedStatistics, Statistics, open_statistics
from taqdit.analysis.compare import step_weights
from taqdit.analysis.profile import profile
from taqdit.calibration.calibration_set import CalibrationSet, import_npz
from taqdit.errors import ConfigError, CorruptError, InputError
from taqdit.models.spec import Model
from taqdit.prompts.options import Prompts
from taqdit.prompts.reading import SEEDS
from taqdit.runs.record import RECORD
from taqdit.runs.run_json import read_record, trajectories_asked
from taqdit.runs.session import Session
from taqdit.store import Stage, disk, make_folder, publish_bytes, sha256_file
from taqdit.store.digest import read_object
from taqdit.store.secrets import mask_settings
from taqdit.timestep_selection.evidence import Evidence, needs_evidence
from taqdit.timestep_selection.selection import Rule
from taqdit.trajectories.conditioning import Conditioning, UnstoredConditioning
from taqdit.trajectories.stored import TrajectorySet

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Run:
    """A run's folder, read-only: its resolved `config`, its `summary`, its `record` (run.json).

    What it gives comes from the store and the record; files that the configuration named are not
    read again.
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    record: dict[str, Any]

    def trajectories(self) -> TrajectorySet:
        """The run's trajectories: `len`, `.latents(i)`, `.picture(i)`, `.sigmas`, `.timesteps`."""
        count, prompts = trajectories_asked(self.record), Prompts.kept(self.record)
        return TrajectorySet(self._stage("trajectories"), count=count, prompts=prompts)

    def calibration(self) -> CalibrationSet:
        """The run's calibration set: trajectories x timestep selection, as a lazy view."""
        if self.record["imported"]:
            return self._imported()
        cfg_scale, seed = (self.config["sampler"].get(key) for key in ("cfg_scale", "seed"))
        if not (type(seed) is int and 0 <= seed < SEEDS and type(cfg_scale) in (int, float)):
            raise CorruptError(f"{self._file} says sampler.{cfg_scale=}, {seed=}: no such numbers")
        rule: Rule = self._built("timestep_selection")
        return CalibrationSet(
            self.trajectories(),
            rule,
            cfg_scale=cfg_scale,
            seed=seed,
            conditioning=self._conditioning(),
            evidence=self._evidence() if needs_evidence(rule) else None,
        )

    def _conditioning(self) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
        """The row of a text: from the store, or encoded by the run's model if it stored none."""
        if "conditioning" in self.record["stages"]:
            return Conditioning(self._stage("conditioning")).row
        model, texts = cache(self._model), self.record["prompts"]
        return UnstoredConditioning(texts, lambda text: model().encode(text), lambda: None).row

    def _model(self) -> Model:
        """The run's model, loaded. InputError if its weights are not those of then."""
        spec, then = self._built("model"), self.record.get("weights")
        now, then = spec.weights(), then if isinstance(then, dict) else {}
        if now != then:
            odd = sorted(name for name in {*now, *then} if now.get(name) != then.get(name))
            raise InputError(
                f"{self._file} names other weights than there are now ({', '.join(odd)[:200]}), and"
                " its conditioning was not stored: give it the weights of then, or run again"
            )
        loaded: Model = spec.load()
        return loaded

    @property
    def _file(self) -> Path:
        return self.folder / RECORD

    def _built(self, group: str) -> Any:
        """The object of a config group. InputError if the record's group describes none."""
        try:
            return configuration.build_group(self.config, group)
        except ConfigError as error:
            raise InputError(*(f"{self._file}: {group}.{text}" for text in error.args)) from error

    def _evidence(self) -> Evidence:
        """What the run's statistics say of its steps."""
        statistics = self.statistics()
        weights = step_weights(statistics.sigmas, self._built("analysis").weighting)
        return profile(statistics, weights).evidence  # type: ignore[arg-type]

    def statistics(self) -> Statistics | ImportedStatistics:
        """The run's activation statistics. InputError if it traced nothing."""
        if imported := self.record["imported_statistics"]:
            with disk.guarded("look for", Path(imported)):
                return open_statistics(imported)
        found = self.summary.get("statistics")
        extent = found.get("trajectories") if isinstance(found, dict) else None
        if not (extent is None or type(extent) is int):
            raise CorruptError(f"{self.folder / SUMMARY} says statistics.trajectories={extent!r}")
        return Statistics(self._stage("statistics"), extent=extent)

    def picture(self, index: int) -> np.ndarray:
        """Decoded picture (H, W, 3) uint8 of trajectory `index`."""
        return self.trajectories().picture(index)

    def _imported(self) -> CalibrationSet:
        path = Path(self.record["imported"]["path"])
        with disk.guarded("look for", path):
            there = path.is_file()
        if not there or sha256_file(path) != self.record["imported"]["sha256"]:
            raise InputError(f"{path} is not the calibration file that the run read")
        return import_npz(path)

    def _stage(self, name: str) -> Stage:
        mark = self.record["stages"].get(name)
        store = self.folder / self.record["store"]
        stage = Stage.find(store, name, mark) if mark else None
        if stage is None:
            raise InputError(f"{self.folder} has no stage {name} in {store.resolve()}")
        return stage


def open_run(path: str | Path) -> Run:
    """Open a finished run's folder. Raises InputError if it is none, CorruptError if damaged."""
    folder = Path(path).resolve()
    summary = _read_json(folder / SUMMARY)
    record = read_record(folder)
    trajectories_asked(record)
    return Run(folder, record["config"], summary, record)


def launch(overrides: Sequence[str] = ()) -> Run:
    """Run `taqdit *overrides` in this process and return the finished run.

    Raises TaqditError, as the command line would print it.
    """
    composed = configuration.compose_config(overrides, with_hydra=True)
    config = configuration.without_hydra(composed)
    plan = configuration.plan(config)
    folder = new_run_folder(plan.output_dir)
    make_folder(folder / ".hydra")
    written = {"config": OmegaConf.to_container(config), "overrides": list(overrides)}
    for name, told in written.items():
        text = OmegaConf.to_yaml(mask_settings(told, plan.config))
        publish_bytes(folder / ".hydra" / f"{name}.yaml", text.encode())
    Session(plan, folder, choices=configuration.choices(composed.hydra)).run()
    return open_run(folder)


def new_run_folder(output_dir: Path) -> Path:
    """A folder name like the command line's: runs/<date>/<time with microseconds>."""
    now = datetime.now()
    return output_dir / "runs" / f"{now:%Y-%m-%d}" / f"{now:%H%M%S_%f}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is no finished run: it has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise CorruptError(f"{path} is not JSON ({error})") from error
