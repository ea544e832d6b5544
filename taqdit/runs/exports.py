"""What a run hands over: exports in its folder, artifacts and lineage for the tracker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taqdit.activations.opened import export_layer_statistics, export_npz
from taqdit.activations.stored import Statistics
from taqdit.analysis.quantization_config import quantization_settings
from taqdit.calibration.calibration_set import CalibrationSet
from taqdit.runs import record
from taqdit.runs.analysed import Findings
from taqdit.stages.plan import Plan
from taqdit.store.secrets import mask_secrets
from taqdit.tracking.options import Tracker
from taqdit.trajectories.trajectory_set import TrajectorySet


class Delivery:
    """Writes into one run's folder; `results` collects what summary.json says of it."""

    def __init__(self, plan: Plan, folder: Path, tracker: Tracker) -> None:
        self.plan, self.folder, self.tracker = plan, folder, tracker
        self.results: dict[str, Any] = {}
        self._settings: dict[str, Any] = {}

    def lineage(self, trajectories: TrajectorySet, statistics: Statistics | None) -> None:
        """Tell the tracker what the statistics were made of."""
        source = record.lineage("trajectories", trajectories.folder, trajectories.fingerprint)
        self.tracker.uses(source["name"], kind=source["type"], path=trajectories.folder)
        if statistics is not None:
            found = record.describe_statistics(statistics)
            self.results["statistics"] = found
            described = {**found, "inputs": [source]}
            self.statistics(statistics.fingerprint, statistics.folder, described)

    def statistics(self, mark: str, path: Path, found: Mapping[str, Any]) -> None:
        """Statistics as an artifact that is referred to."""
        kind = "activation-statistics"
        self.tracker.artifact(f"{kind}-{mark[:12]}", kind=kind, path=path, metadata=found)

    def calibration(self, points: CalibrationSet, *, source: Path) -> None:
        """The calibration set: exported if the plan says so, else a view of the folder `source`."""
        found, path = record.describe_calibration(points), source
        if self.plan.export:
            path = self.folder / "calibration.npz"
            points.export_npz(path)
            found["npz"] = path.name
        self.calibration_set(found, path)

    def calibration_set(self, found: dict[str, Any], path: Path) -> None:
        """A calibration set as an artifact that is referred to."""
        self.results["calibration"] = found
        name = "calibration-set"
        self.tracker.artifact(name, kind=name, path=path, metadata=found)

    def findings(self, findings: Findings) -> None:
        """The analysis: its files, its summary values and tables."""
        self.results["analysis"] = findings.publish(self.folder)
        self._settings = quantization_settings(findings.analysis.bits)
        findings.log(self.tracker)

    def exports(self, statistics: Statistics, *, versions: Mapping[str, Any]) -> None:
        """The statistics in older formats, with what was suggested from them."""
        found = self.results["statistics"]
        if self.plan.export_layers:
            config = mask_secrets(self.plan.config)
            export_layer_statistics(
                statistics, self.folder, config=config, versions=versions, settings=self._settings
            )
            found["layers"] = "layer_statistics.json"
        if self.plan.export_statistics:
            found["npz"] = "activation_statistics.npz"
            export_npz(statistics, self.folder / found["npz"])
