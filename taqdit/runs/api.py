"""For Python: the folder of a finished run opened; selections compared on its statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from taqdit import config as configuration
from taqdit.activations.opened import ImportedStatistics, Statistics, open_statistics
from taqdit.analysis.profile import profile
from taqdit.analysis.selections import DT, SelectionComparison, compare_rules, step_weights
from taqdit.calibration.calibration_set import CalibrationSet
from taqdit.calibration.imported import import_npz
from taqdit.errors import ConfigError, CorruptError, InputError
from taqdit.models.spec import Model
from taqdit.plots.scores import score_versus_k, score_versus_k_table
from taqdit.plots.style import save
from taqdit.prompts.options import Prompts
from taqdit.prompts.reading import SEEDS
from taqdit.report.run_folder import RECORD, SUMMARY, RunFolder, trajectories_asked
from taqdit.store import Stage, disk, make_folder, sha256_file
from taqdit.timestep_selection.catalogue import COMPARED
from taqdit.timestep_selection.evidence import Evidence, needs_evidence
from taqdit.timestep_selection.selection import Rule
from taqdit.trajectories.conditioning import Conditioning, UnstoredConditioning
from taqdit.trajectories.trajectory_set import TrajectorySet


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
        covers = self.summary.get("statistics")
        extent = covers.get("trajectories") if isinstance(covers, dict) else None
        if not (extent is None or type(extent) is int):
            raise CorruptError(f"{self.folder / SUMMARY} says statistics.trajectories={extent!r}")
        return Statistics(self._stage("statistics"), extent=extent)

    def picture(self, index: int) -> np.ndarray:
        """Decoded picture (H, W, 3) uint8 of trajectory `index`."""
        return self.trajectories().picture(index)

    def _imported(self) -> CalibrationSet:
        path = Path(self.record["imported"]["path"])
        with disk.guarded("look for", path):
            is_file = path.is_file()
        if not is_file or sha256_file(path) != self.record["imported"]["sha256"]:
            raise InputError(f"{path} is not the calibration file that the run read")
        return import_npz(path)

    def _stage(self, name: str) -> Stage:
        fingerprint = self.record["stages"].get(name)
        store = self.folder / self.record["store"]
        stage = Stage.find(store, name, fingerprint) if fingerprint else None
        if stage is None:
            raise InputError(f"{self.folder} has no stage {name} in {store.resolve()}")
        return stage


def open_run(path: str | Path) -> Run:
    """Open a finished run's folder. Raises InputError if it is none, CorruptError if damaged."""
    folder = RunFolder(Path(path).resolve())
    summary, record = folder.summary(), folder.record()
    trajectories_asked(record)
    return Run(folder.path, record["config"], summary, record)


def compare_selections(
    statistics: Statistics | ImportedStatistics,
    rules: Sequence[str] | Mapping[str, Rule] = COMPARED,
    *,
    count: int | None = None,
    budgets: Sequence[int] | None = None,
    weighting: str = DT,
    seed: int = 0,
    figure: str | Path | None = None,
) -> SelectionComparison:
    """Score rules at one number of calibration points per trajectory, and over several budgets.

    `statistics` as `taqdit.open_statistics(..)` or `run.statistics()` give them; `rules` and the
    other arguments as `taqdit.analysis.selections.compare_rules` takes them. `figure` names a
    PNG (with an SVG and a CSV beside it) of the score against the budget. No model is run.
    Raises InputError for statistics of an `.npz`.
    """
    if isinstance(statistics, ImportedStatistics):
        raise InputError("imported statistics have no histograms that steps can be pooled from")
    scored = compare_rules(
        statistics, rules, count=count, budgets=budgets, weighting=weighting, seed=seed
    )
    if figure is not None:
        path, shown = Path(figure), (scored.curves, scored.count)
        make_folder(path.parent)
        save(score_versus_k(*shown), path.parent, path.stem, score_versus_k_table(*shown))
    return scored
