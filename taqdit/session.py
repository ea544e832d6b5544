"""The course of one run: state the plan, run the stages, log, leave a summary."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from taqdit import preflight, record
from taqdit.activations import Statistics
from taqdit.calibration import CalibrationSet, import_npz
from taqdit.errors import StorageError, TaqditError
from taqdit.exports import export_layer_statistics, export_npz, open_statistics
from taqdit.figures import StoredFigures
from taqdit.figures.latents import chosen_steps
from taqdit.plan import (
    Plan,
    conditioning_inputs,
    fingerprint,
    statistics_inputs,
    trajectory_inputs,
)
from taqdit.progress import Progress
from taqdit.showing import Showing
from taqdit.stages import Bench, encode_prompts, sample_and_trace
from taqdit.store import canonical_json, make_folder, publish_json, sha256_file, sha256_hex
from taqdit.tracking import Tracker
from taqdit.tracking.secrets import mask_secrets
from taqdit.trajectory import TrajectorySet

log = logging.getLogger(__name__)
VIEWS = {"trajectories", "statistics", "calibration", "figures", "report"}  # of trajectories
TRACED = {"statistics", "figures", "report"}  # stages that need statistics


class Session:
    """One run in one folder."""

    def __init__(self, plan: Plan, folder: Path, *, choices: Mapping[str, str]) -> None:
        self.plan, self.folder, self.choices = plan, folder, dict(choices)
        self.store = plan.output_dir / "store"
        self.bench = Bench(plan, self.store)
        self.run_id = uuid.uuid4().hex[:12]
        self.started = time.perf_counter()
        self.tracker = Tracker()
        self.results: dict[str, Any] = {}
        self.document: dict[str, Any] = {}  # run.json

    def run(self) -> None:
        """Run to the end. Raises TaqditError; a summary says how it ended in any case."""
        status, error = "failed", None
        make_folder(self.folder)
        try:
            status = self._run()
        except TaqditError as caught:
            error = caught
            raise
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            self._finish(status, error)

    def _run(self) -> str:
        self._preflight()
        if self.plan.preflight == "only":
            self._write_run_file({})
            return "preflight"
        marks = {} if self._elsewhere else self._fingerprints()
        self._write_run_file(marks)
        self._start_tracking()
        log.info("%s", record.backend_words(self.bench.backend))
        if self._elsewhere:
            self._imported()
        else:
            self._stages()
        return "ok"

    @property
    def _elsewhere(self) -> bool:
        """Whether files made elsewhere take the place of all stages."""
        return not (self.plan.imported is None and self.plan.imported_statistics is None)

    def _preflight(self) -> None:
        """State points, forwards, bytes, disk and memory; refuse a disk that is too small."""
        plan = self.plan
        if self._elsewhere:
            return
        found = preflight.estimate(plan, free_bytes=preflight.free_bytes(plan.output_dir))
        self.results["preflight"] = found.as_dict()
        if plan.preflight != "off":
            log.info("%s", preflight.describe(found))
        if plan.preflight != "only":
            needed = max(0, found.total_bytes - self._stored_bytes())
            preflight.refuse_full_disk(found, needed=needed, folder=plan.output_dir)

    def _stored_bytes(self) -> int:
        """Bytes that the run will find in the store; 0 while the weights are not here."""
        if not self.plan.model.weights_present():
            return 0  # a fingerprint would have to download them first
        kept = {k: v for k, v in self._fingerprints().items() if k not in self.plan.refresh}
        folders = [self.store / name / mark[:12] for name, mark in kept.items()]
        files = [path for folder in folders for path in folder.glob("*")]
        return sum(path.stat().st_size for path in files if path.suffix in (".safetensors", ".png"))

    def _fingerprints(self) -> dict[str, str]:
        marks = {
            "conditioning": fingerprint(conditioning_inputs(self.plan)),
            "trajectories": fingerprint(trajectory_inputs(self.plan)),
        }
        if self._traces:
            marks["statistics"] = fingerprint(statistics_inputs(self.plan))
        return marks

    @property
    def _traces(self) -> bool:
        """Whether statistics are made or read from the store."""
        asked = set(self.plan.stages) & TRACED
        return bool(asked and self.plan.traced and self.plan.imported_statistics is None)

    def _write_run_file(self, marks: Mapping[str, str]) -> None:
        document = record.run_record(
            self.plan,
            run_id=self.run_id,
            choices=self.choices,
            folder=self.folder,
            fingerprints=marks,
            backend=self.bench.backend,
        )
        publish_json(self.folder / "run.json", document)
        self.document = document

    def _start_tracking(self) -> None:
        self.tracker = self.plan.tracking.start(
            self.folder,
            run_id=self.run_id,
            name=f"{self.folder.parent.name}_{self.folder.name}",
            group=None,
            job_type="calibration",
            tags=[f"{group}:{choice}" for group, choice in self.choices.items()],
            config=mask_secrets(self.plan.config),
        )

    def _stages(self) -> None:
        """The stages that are asked for, over what they build on."""
        plan, asked = self.plan, set(self.plan.stages)
        conditioning = encode_prompts(self.bench)
        if not asked & VIEWS:
            return
        with Progress() as progress:
            trajectories, statistics = sample_and_trace(
                self.bench, conditioning.guided, progress, trace=self._traces
            )
        self._lineage(trajectories, statistics)
        if "calibration" in asked:
            points = CalibrationSet(
                trajectories,
                plan.select,
                cfg_scale=plan.sampler.cfg_scale,
                seed=plan.sampler.seed,
                conditioning=conditioning.row,
            )
            self._calibration(points)
        chosen = chosen_steps(plan, trajectories)
        stored = self._stored_figures(trajectories, statistics, chosen)
        show = Showing(plan, self.folder, self.tracker, stored)
        if asked & {"figures", "report"}:
            show.trajectories(trajectories)
        if asked & TRACED:
            show.statistics(statistics, chosen)
        if stored:
            stored.seal()
        self._report(show, trajectories)
        if statistics is not None:
            self._export_statistics(statistics)

    def _stored_figures(
        self,
        trajectories: TrajectorySet,
        statistics: Statistics | None,
        chosen: Sequence[Sequence[int]],
    ) -> StoredFigures | None:
        """Where figures of the same data, selection and options are kept."""
        plots = self.plan.plots
        if "figures" not in self.plan.stages or not plots.figures:
            return None
        inputs = {
            "trajectories": trajectories.fingerprint,
            "count": len(trajectories),
            "statistics": statistics and [statistics.fingerprint, statistics.extent],
            "selected": sha256_hex(canonical_json([list(steps) for steps in chosen]).encode()),
            "layers": plots.layers and list(plots.layers),
            "formats": list(plots.formats),
            "backends": [trajectories.backends, statistics and statistics.backends],
        }
        anew = {"trajectories", "statistics", "figures"} & set(self.plan.refresh)
        return StoredFigures(self.store, inputs, refresh=bool(anew))

    def _lineage(self, trajectories: TrajectorySet, statistics: Statistics | None) -> None:
        """Tell the tracker what the statistics were made of."""
        source = record.lineage("trajectories", trajectories.folder, trajectories.fingerprint)
        self.tracker.uses(source["name"], kind=source["type"], path=trajectories.folder)
        if statistics is not None:
            self.results["statistics"] = record.describe_statistics(statistics)
            found = {**self.results["statistics"], "inputs": [source]}
            self._log_statistics(statistics.fingerprint, statistics.folder, found)

    def _export_statistics(self, statistics: Statistics) -> None:
        """The statistics in older formats, in the run's folder."""
        found, versions = self.results["statistics"], self.document["versions"]
        if self.plan.export_layers:
            config = mask_secrets(self.plan.config)
            export_layer_statistics(statistics, self.folder, config=config, versions=versions)
            found["layers"] = "layer_statistics.json"
        if self.plan.export_statistics:
            found["npz"] = "activation_statistics.npz"
            export_npz(statistics, self.folder / found["npz"])

    def _log_statistics(self, mark: str, path: Path, found: Mapping[str, Any]) -> None:
        kind = "activation-statistics"
        self.tracker.artifact(f"{kind}-{mark[:12]}", kind=kind, path=path, metadata=found)

    def _report(self, show: Showing, trajectories: TrajectorySet | None = None) -> None:
        self.results |= show.results()
        if "report" in self.plan.stages:
            summary = self._summary("ok", None)
            path = show.write_page(self.document, summary, trajectories)
            self.results["report"] = path.name

    def _calibration(self, points: CalibrationSet) -> None:
        found = record.describe_calibration(points)
        path = self.store / self.bench.report("trajectories").folder
        if self.plan.export:
            path = self.folder / "calibration.npz"
            points.export_npz(path)
            found["npz"] = path.name
        self._log_calibration(found, path)

    def _imported(self) -> None:
        """A calibration set or statistics made elsewhere take the place of all stages."""
        show = Showing(self.plan, self.folder, self.tracker)
        if (path := self.plan.imported) is not None:
            found = {**record.describe_calibration(import_npz(path)), "imported": str(path)}
            self._log_calibration(found, path.resolve())
        if (path := self.plan.imported_statistics) is not None:
            statistics = open_statistics(path)
            found = {**record.describe_statistics(statistics), "imported": str(path)}
            self.results["statistics"] = found
            mark = found.get("fingerprint") or sha256_file(path)
            self._log_statistics(mark, path.resolve(), found)
            show.statistics(statistics, ())
        self._report(show)

    def _log_calibration(self, found: dict[str, Any], path: Path) -> None:
        self.results["calibration"] = found
        name = "calibration-set"
        self.tracker.artifact(name, kind=name, path=path, metadata=found)

    def _summary(self, status: str, error: TaqditError | None) -> dict[str, Any]:
        """summary.json as far as the run has come."""
        return {
            "status": status,
            "error": None if error is None else str(error),
            "run_id": self.run_id,
            "store": record.relative(self.store, self.folder),
            "stages": [asdict(report) for report in self.bench.reports],
            "seconds": round(time.perf_counter() - self.started, 3),
            "peak_memory_bytes": record.peak_memory(),
            "peak_mlx_memory_bytes": record.peak_mlx_memory(),
            "not_computed": list(record.LATER),
            **self.results,
        }

    def _finish(self, status: str, error: TaqditError | None) -> None:
        summary = self._summary(status, error)
        logged = {key: summary[key] for key in ("status", "seconds", "peak_memory_bytes")}
        try:
            publish_json(self.folder / "summary.json", summary)
            self.tracker.summary(logged)
        except StorageError as full:
            log.error("%s", full)
        self.tracker.finish(ok=status == "ok")
        if status == "ok":
            print(record.closing_words(summary, self.folder, self.tracker.location), flush=True)
