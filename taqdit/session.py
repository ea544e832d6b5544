"""The course of one run: state the plan, run the stages, log, leave a summary."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from taqdit import figures, preflight, record
from taqdit.calibration import CalibrationSet, import_npz
from taqdit.errors import StorageError, TaqditError
from taqdit.plan import Plan, conditioning_inputs, fingerprint, trajectory_inputs
from taqdit.progress import Progress
from taqdit.stages import Bench, encode_prompts, sample_trajectories
from taqdit.store import make_folder, publish_json
from taqdit.tracking import Tracker
from taqdit.tracking.secrets import mask_secrets
from taqdit.trajectory import TrajectorySet

log = logging.getLogger(__name__)
VIEWS = {"trajectories", "calibration", "figures"}  # stages that need trajectories


class Session:
    """One run in one folder."""

    def __init__(self, plan: Plan, folder: Path, *, choices: Mapping[str, str]) -> None:
        self.plan, self.folder, self.choices = plan, folder, dict(choices)
        self.store = plan.output_dir / "store"
        self.bench = Bench(plan, self.store)
        self.run_id = uuid.uuid4().hex[:12]
        self.tracker = Tracker()
        self.results: dict[str, Any] = {}

    def run(self) -> None:
        """Run to the end. Raises TaqditError; a summary says how it ended in any case."""
        started, status, error = time.perf_counter(), "failed", None
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
            self._finish(status, error, time.perf_counter() - started)

    def _run(self) -> str:
        self._preflight()
        if self.plan.preflight == "only":
            self._write_run_file({})
            return "preflight"
        marks = {} if self.plan.imported else self._fingerprints()
        self._write_run_file(marks)
        self._start_tracking()
        log.info("%s", record.backend_words(self.bench.backend))
        if self.plan.imported is not None:
            self._imported(self.plan.imported)
        else:
            self._stages()
        return "ok"

    def _preflight(self) -> None:
        """State points, forwards, bytes, disk and memory; refuse a disk that is too small."""
        plan = self.plan
        if plan.imported is not None:
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
        return {
            "conditioning": fingerprint(conditioning_inputs(self.plan)),
            "trajectories": fingerprint(trajectory_inputs(self.plan)),
        }

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
            trajectories = sample_trajectories(self.bench, conditioning.guided, progress)
        if "calibration" in asked:
            points = CalibrationSet(
                trajectories,
                plan.select,
                cfg_scale=plan.sampler.cfg_scale,
                seed=plan.sampler.seed,
                conditioning=conditioning.row,
            )
            self._calibration(points)
        if "figures" in asked:
            self._figures(trajectories)

    def _calibration(self, points: CalibrationSet) -> None:
        found = record.describe_calibration(points)
        path = self.store / self.bench.reports[-1].folder
        if self.plan.export:
            path = self.folder / "calibration.npz"
            points.export_npz(path)
            found["npz"] = path.name
        self._log_calibration(found, path)

    def _imported(self, path: Path) -> None:
        """A calibration set made elsewhere takes the place of all stages."""
        found = {**record.describe_calibration(import_npz(path)), "imported": str(path)}
        self._log_calibration(found, path.resolve())

    def _log_calibration(self, found: dict[str, Any], path: Path) -> None:
        self.results["calibration"] = found
        name = "calibration-set"
        self.tracker.artifact(name, kind=name, path=path, metadata=found)

    def _figures(self, trajectories: TrajectorySet) -> None:
        made = figures.draw(self.plan, trajectories, self.folder, self.tracker)
        self.results["figures"] = [str(path.relative_to(self.folder)) for path in made]

    def _finish(self, status: str, error: TaqditError | None, seconds: float) -> None:
        summary = {
            "status": status,
            "error": None if error is None else str(error),
            "run_id": self.run_id,
            "store": record.relative(self.store, self.folder),
            "stages": [asdict(report) for report in self.bench.reports],
            "seconds": round(seconds, 3),
            "peak_memory_bytes": record.peak_memory(),
            "peak_mlx_memory_bytes": record.peak_mlx_memory(),
            "not_computed": list(record.LATER),
            **self.results,
        }
        logged = {key: summary[key] for key in ("status", "seconds", "peak_memory_bytes")}
        try:
            publish_json(self.folder / "summary.json", summary)
            self.tracker.summary(logged)
        except StorageError as full:
            log.error("%s", full)
        self.tracker.finish(ok=status == "ok")
        if status == "ok":
            print(record.closing_words(summary, self.folder, self.tracker.location), flush=True)
