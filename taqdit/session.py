"""The course of one run: state the plan, run the stages, log, leave a summary."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from taqdit import figures, preflight
from taqdit.calibration import CalibrationSet, import_npz
from taqdit.errors import StorageError, TaqditError
from taqdit.plan import Plan, conditioning_inputs, fingerprint, trajectory_inputs
from taqdit.progress import Progress
from taqdit.stages import (
    Bench,
    calibration_set,
    encode_prompts,
    sample_trajectories,
)
from taqdit.store import publish_json
from taqdit.tracking import Tracker
from taqdit.tracking.secrets import mask_secrets
from taqdit.trajectory import TrajectorySet

log = logging.getLogger(__name__)
PACKAGES = ("taqdit", "mlx", "diffusionkit", "numpy", "hydra-core", "omegaconf", "wandb")
LATER = ("statistics", "analysis")  # configured, but no stage of this version computes them


class Session:
    """One run in one folder."""

    def __init__(self, plan: Plan, folder: Path, *, choices: Mapping[str, str]) -> None:
        self.plan, self.folder, self.choices = plan, folder, dict(choices)
        self.store = plan.output_dir / "store"
        self.bench = Bench(plan, self.store)
        self.run_id = uuid.uuid4().hex[:12]
        self.results: dict[str, Any] = {}

    def run(self) -> None:
        """Run to the end. Raises TaqditError; a summary says how it ended in any case."""
        if not self._preflight():
            return
        self._write_run_file()
        tracker = self._start_tracking()
        started, status, error = time.perf_counter(), "failed", None
        try:
            log.info("%s", backend_words(self.bench.backend))
            self._stages(tracker)
            status = "ok"
        except TaqditError as caught:
            error = caught
            raise
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            self._finish(tracker, status, error, time.perf_counter() - started)

    def _preflight(self) -> bool:
        """State points, forwards, bytes, disk and memory. False when the run ends here."""
        plan = self.plan
        found = preflight.estimate(plan, free_bytes=preflight.free_bytes(plan.output_dir))
        self.results["preflight"] = found.as_dict()
        if plan.preflight != "off":
            log.info("%s", preflight.describe(found))
        if plan.preflight == "only":
            return False
        if plan.imported is None:
            needed = max(0, found.total_bytes - stored_bytes(self.store, self._fingerprints()))
            preflight.refuse_full_disk(found, needed=needed, folder=plan.output_dir)
        return True

    def _fingerprints(self) -> dict[str, str]:
        return {
            "conditioning": fingerprint(conditioning_inputs(self.plan)),
            "trajectories": fingerprint(trajectory_inputs(self.plan)),
        }

    def _write_run_file(self) -> None:
        publish_json(
            self.folder / "run.json",
            {
                "schema": 1,
                "run_id": self.run_id,
                "choices": self.choices,
                "config": mask_secrets(self.plan.config),
                "store": relative(self.store, self.folder),
                "stages": {} if self.plan.imported else self._fingerprints(),
                "backend": self.bench.backend,
                "versions": {name: version(name) for name in PACKAGES},
                "python": sys.version.split()[0],
            },
        )

    def _start_tracking(self) -> Tracker:
        tracker: Tracker = self.plan.tracking.start(
            self.folder,
            run_id=self.run_id,
            name=f"{self.folder.parent.name}_{self.folder.name}",
            group=None,
            job_type="calibration",
            tags=[f"{group}:{choice}" for group, choice in self.choices.items()],
            config=mask_secrets(self.plan.config),
        )
        return tracker

    def _stages(self, tracker: Tracker) -> None:
        plan = self.plan
        if plan.imported is not None:
            self._imported(import_npz(plan.imported), tracker)
            return
        guided = encode_prompts(self.bench)
        with Progress() as progress:
            trajectories = sample_trajectories(self.bench, guided.guided, progress)
        points = calibration_set(plan, trajectories, guided.row)
        if "calibration" in plan.stages:
            self._calibration(points, tracker)
        if "figures" in plan.stages:
            self._figures(trajectories, tracker)

    def _calibration(self, points: CalibrationSet, tracker: Tracker) -> None:
        self.results["calibration"] = describe_calibration(points)
        path = self.bench.store / "trajectories" / self._fingerprints()["trajectories"][:12]
        if self.plan.export:
            path = self.folder / "calibration.npz"
            points.export_npz(path)
            self.results["calibration"]["npz"] = path.name
        tracker.artifact(
            "calibration-set",
            kind="calibration-set",
            path=path,
            metadata=self.results["calibration"],
        )

    def _figures(self, trajectories: TrajectorySet, tracker: Tracker) -> None:
        pictures = self.store / self.bench.reports[-1].folder
        made = figures.draw(self.plan, trajectories, pictures, self.folder, tracker)
        self.results["figures"] = [str(path.relative_to(self.folder)) for path in made]

    def _imported(self, points: Any, tracker: Tracker) -> None:
        self.results["calibration"] = {**describe_calibration(points), "imported": True}
        tracker.summary({"calibration/points": len(points)})

    def _finish(
        self, tracker: Tracker, status: str, error: TaqditError | None, seconds: float
    ) -> None:
        summary = {
            "status": status,
            "error": None if error is None else str(error),
            "run_id": self.run_id,
            "store": relative(self.store, self.folder),
            "stages": [asdict(report) for report in self.bench.reports],
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak_memory(),
            "peak_mlx_memory_bytes": peak_mlx_memory(),
            "not_computed": list(LATER),
            **self.results,
        }
        tracker.summary(
            {
                "seconds": seconds,
                "peak_memory_bytes": summary["peak_memory_bytes"],
                "status": status,
            }
        )
        try:
            publish_json(self.folder / "summary.json", summary)
        except StorageError as full:
            log.error("%s", full)
        tracker.finish(ok=status == "ok")
        if status == "ok":
            print(closing_words(summary, self.folder, tracker.location), flush=True)


def describe_calibration(points: Any) -> dict[str, Any]:
    """Counts and steps of a calibration set, for summaries and artifacts."""
    return {
        "points": len(points),
        "steps": [int(step) for step in points.steps],
        "cfg_scale": float(points.cfg_scale),
        "prompts": len(points.prompts),
    }


def stored_bytes(store: Path, fingerprints: Mapping[str, str]) -> int:
    """Bytes that the run's stages already hold."""
    folders = [store / name / mark[:12] for name, mark in fingerprints.items()]
    return sum(
        path.stat().st_size for folder in folders for path in folder.glob("*.*") if path.is_file()
    )


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_mlx_memory() -> int:
    """Most bytes that MLX's allocator held so far; unified memory on a Mac is counted here."""
    from taqdit.backend import peak_memory as of_allocator

    return of_allocator()


def backend_words(backend: Mapping[str, Any]) -> str:
    """The arithmetic in one line; where it matters, how to make it faster."""
    words = (
        f"mlx {backend['mlx']} on {backend['device']} ({backend['chip']}), BLAS {backend['blas']}"
    )
    if backend["blas"] == "bundled":
        words += "; a faster one: README, 'Speed on Linux'"
    return words


def relative(path: Path, start: Path) -> str:
    """`path` as seen from the folder `start`, so that outputs can be moved as a whole."""
    return Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()


def closing_words(summary: Mapping[str, Any], folder: Path, tracked: str) -> str:
    """What was made or reused, where, how long, peak memory."""
    lines = []
    for report in summary["stages"]:
        words = f"{report['made']} made, {report['reused']} reused"
        if report["moved_aside"]:
            words += f", {len(report['moved_aside'])} corrupt moved aside and redone"
        lines.append(f"{report['name']:<14}{words:<28} store/{report['folder']}")
    if "calibration" in summary:
        found = summary["calibration"]
        lines.append(
            f"{'calibration':<14}{found['points']} points at {len(found['steps'])} steps"
            f"{' -> ' + found['npz'] if 'npz' in found else ''}"
        )
    if summary.get("figures"):
        lines.append(f"{'figures':<14}{len(summary['figures'])} files in figures/")
    lines.append(f"{'not computed':<14}{', '.join(summary['not_computed'])} (not in this version)")
    if tracked:
        lines.append(f"{'tracking':<14}{tracked}")
    peak, mlx = (preflight.size(summary[f"peak_{key}_bytes"]) for key in ("memory", "mlx_memory"))
    lines.append(f"{'run':<14}{folder}")
    lines.append(f"{'':<14}{summary['seconds']:.1f} s, peak memory {peak} (MLX {mlx})")
    return "\n".join(lines)
