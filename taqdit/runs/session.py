"""The course of one run: state the plan, run the stages, log, leave a summary."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from taqdit.activations.opened import open_statistics
from taqdit.activations.stored import Statistics
from taqdit.calibration.calibration_set import CalibrationSet, import_npz
from taqdit.errors import StorageError, TaqditError
from taqdit.report.figures import run_figures
from taqdit.runs import record
from taqdit.runs.analysed import Findings, analyse_run
from taqdit.runs.display import Showing
from taqdit.runs.exports import Delivery
from taqdit.stages import (
    KeptAnalysis,
    StageContext,
    encode_prompts,
    preflight,
    sample_and_trace,
    weight_table,
)
from taqdit.stages import out_of_memory as memory
from taqdit.stages.kinds import fingerprints
from taqdit.stages.plan import Plan, chosen_steps
from taqdit.stages.progress import Progress
from taqdit.stages.remaining import may_read_weights, remaining
from taqdit.stages.source import source_digest
from taqdit.store import disk, make_folder, publish_json, sha256_file
from taqdit.store.secrets import mask_secrets
from taqdit.timestep_selection.evidence import needs_evidence
from taqdit.tracking.groups import run_date, sweep_group
from taqdit.tracking.options import Tracker
from taqdit.trajectories.trajectory_set import TrajectorySet

log = logging.getLogger(__name__)


class Session:
    """One run in one folder."""

    def __init__(self, plan: Plan, folder: Path, *, choices: Mapping[str, str]) -> None:
        source_digest()  # of the code that runs, should it be edited meanwhile
        self.plan, self.folder, self.choices = plan, folder, dict(choices)
        self.store = plan.output_dir / "store"
        self.bench = StageContext(plan, self.store)
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
            with memory.told("this run"):
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
            if not (self.folder / record.RECORD).exists():
                self._write_run_file({})
            return "preflight"
        marks = {} if self._elsewhere else fingerprints(self.plan)
        self._write_run_file(marks)
        self._start_tracking()
        log.info("%s", record.backend_words(self.bench.backend))
        if self._elsewhere:
            self._imported()
        else:
            self._stages()
        return "ok"

    @property
    def _follows(self) -> bool:
        """Whether the folder holds a run that went well, which this one has not replaced."""
        return not self.document and record.went_well(self.folder)

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
        left = remaining(plan, found, self.store, self._known_fingerprints())
        self.results["preflight"] = found.as_dict() | left.as_dict()
        if plan.preflight != "off":
            log.info("%s\n%s", preflight.describe(found), left.describe())
        if plan.preflight != "only":
            preflight.refuse_full_disk(found, needed=left.bytes_left, folder=plan.output_dir)

    def _known_fingerprints(self) -> dict[str, str] | None:
        """Of the stages that may be in the store; None where the weights are not to be read."""
        if not self.store.is_dir():
            return {}
        return fingerprints(self.plan) if may_read_weights(self.plan) else None

    @property
    def _analyses(self) -> bool:
        return "analysis" in self.plan.stages and self.plan.analysis.enabled

    def _write_run_file(self, marks: Mapping[str, str]) -> None:
        document = record.run_record(
            self.plan,
            run_id=self.run_id,
            choices=self.choices,
            folder=self.folder,
            fingerprints=marks,
            backend=self.bench.backend,
        )
        record.publish_record(self.folder, document)
        self.document = document
        disk.remove(self.folder / record.SUMMARY)  # of a former run
        record.publish_pointers(self.folder, self.store, document)

    def _start_tracking(self) -> None:
        self.tracker = self.plan.tracking.start(
            self.folder,
            run_id=self.run_id,
            name=f"{self.folder.parent.name}_{self.folder.name}",
            group=sweep_group(self.folder),
            job_type="calibration",
            tags=[*(f"{k}:{v}" for k, v in self.choices.items()), run_date(self.folder)],
            config=mask_secrets(self.plan.config),
        )

    def _stages(self) -> None:
        """The stages that are asked for, over what they build on."""
        plan, asked = self.plan, set(self.plan.stages)
        if "weights" in asked and "analysis" not in asked:
            weight_table(self.bench)
        if "conditioning" not in plan.needs:
            return
        with memory.encoding(plan.model):
            conditioning = encode_prompts(self.bench)
        if "trajectories" not in plan.needs:
            return
        batch_size, traced = plan.sampler.batch_size, self.plan.traces
        with (
            memory.sampling(plan.model, batch_size=batch_size, traced=traced),
            Progress() as progress,
        ):
            trajectories, statistics = sample_and_trace(
                self.bench, conditioning.guided, progress, trace=traced
            )
        deliver = Delivery(plan, self.folder, self.tracker)
        deliver.lineage(trajectories, statistics)
        with memory.analysing():
            kept = None if statistics is None else KeptAnalysis(self.bench, statistics)
            self._select(kept)
        plan = self.plan
        if "calibration" in asked:
            points = CalibrationSet(
                trajectories,
                plan.select,
                cfg_scale=plan.sampler.cfg_scale,
                seed=plan.sampler.seed,
                conditioning=conditioning.row,
                evidence=plan.evidence,
            )
            deliver.calibration(points, source=trajectories.folder)
        chosen = chosen_steps(plan, trajectories)
        stored = run_figures(plan, self.store, trajectories, statistics, chosen)
        show = Showing(plan, self.folder, self.tracker, stored)
        if asked & {"figures", "report"}:
            with memory.drawing(plan.plots.formats):
                show.trajectories(trajectories)
        if self._analyses:
            self._analyse(statistics, kept, show, deliver)
        if "statistics" in plan.needs:
            with memory.drawing(plan.plots.formats):
                show.statistics(statistics, chosen)
        if stored:
            stored.seal()
        if statistics is not None:
            deliver.exports(statistics, versions=self.document["versions"])
        self._report(show, deliver, trajectories)

    def _select(self, kept: KeptAnalysis | None) -> None:
        """Show the statistics to a selection rule that needs them."""
        if kept is not None and needs_evidence(self.plan.select):
            self.plan = replace(self.plan, evidence=kept.profile.evidence)

    def _analyse(
        self,
        statistics: Statistics | None,
        kept: KeptAnalysis | None,
        show: Showing,
        deliver: Delivery,
    ) -> None:
        if statistics is None or kept is None:
            log.info("nothing was traced, so there is nothing to analyse")
            return
        with memory.analysing():
            weights = weight_table(self.bench) if "weights" in self.plan.stages else None
            analysis = analyse_run(self.plan, statistics, weights=weights, known=kept.profile)
            kept.keep_choices()
        self._show(Findings(analysis), show, deliver)

    def _show(self, findings: Findings, show: Showing, deliver: Delivery) -> None:
        deliver.findings(findings)
        with memory.drawing(self.plan.plots.formats):
            show.findings(findings)

    def _report(
        self, show: Showing, deliver: Delivery, trajectories: TrajectorySet | None = None
    ) -> None:
        self.results |= deliver.results | show.results()
        if "report" in self.plan.stages:
            summary = self._summary("ok", None)
            path = show.write_page(self.document, summary, trajectories)
            self.results["report"] = path.name

    def _imported(self) -> None:
        """A calibration set or statistics made elsewhere take the place of all stages."""
        show = Showing(self.plan, self.folder, self.tracker)
        deliver = Delivery(self.plan, self.folder, self.tracker)
        if (path := self.plan.imported) is not None:
            found = {**record.describe_calibration(import_npz(path)), "imported": str(path)}
            deliver.calibration_set(found, path.resolve())
        if (path := self.plan.imported_statistics) is not None:
            statistics = open_statistics(path)
            found = {**record.describe_statistics(statistics), "imported": str(path)}
            deliver.results["statistics"] = found
            mark = found.get("fingerprint") or sha256_file(path)
            deliver.statistics(mark, path.resolve(), found)
            if self._analyses and isinstance(statistics, Statistics):
                with memory.analysing():
                    analysis = analyse_run(self.plan, statistics, weights=None, elsewhere=True)
                self._show(Findings(analysis), show, deliver)
            elif self._analyses:
                log.info("%s has no histograms that can be pooled: it is not analysed", path)
            show.statistics(statistics, ())
        self._report(show, deliver)

    def _summary(self, status: str, error: TaqditError | None) -> dict[str, Any]:
        """summary.json as far as the run has come."""
        return {
            "status": status,
            "error": None if error is None else str(error),
            "run_id": self.run_id,
            "store": disk.relative(self.store, self.folder),
            "stages": [asdict(report) for report in self.bench.reports],
            "seconds": round(time.perf_counter() - self.started, 3),
            "peak_memory_bytes": record.peak_memory(),
            "peak_mlx_memory_bytes": record.peak_mlx_memory(),
            **self.results,
        }

    def _finish(self, status: str, error: TaqditError | None) -> None:
        """Leave the summary. Raises StorageError if a run that went well cannot."""
        summary = self._summary(status, error)
        logged = {key: summary[key] for key in ("status", "seconds", "peak_memory_bytes")}
        full = None
        try:
            if not self._follows:
                publish_json(self.folder / record.SUMMARY, summary)
            self.tracker.summary(logged)
        except StorageError as caught:
            full = caught
        self.tracker.finish(ok=status == "ok" and full is None)
        if full is not None and status == "ok":
            raise full
        if full is not None and not isinstance(error, StorageError):
            log.error("%s", full)
        if status == "ok":
            print(record.closing_words(summary, self.folder, self.tracker.location), flush=True)
