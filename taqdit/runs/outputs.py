"""All that one run writes into its folder and shows: documents, exports, figures, tracking."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from taqdit.activations.layer_summary import as_text, layer_summary
from taqdit.activations.opened import ImportedStatistics, export_layer_statistics, export_npz
from taqdit.activations.stored import Statistics
from taqdit.analysis.analyse import Analysis
from taqdit.analysis.quantization_config import quantization_settings
from taqdit.calibration.calibration_set import CalibrationSet
from taqdit.errors import StorageError, TaqditError
from taqdit.plots.run_figures import activation_figures, analysis_figures, latent_figures
from taqdit.plots.style import publish_csv
from taqdit.report.figures import Drawing, Drawn, RunFigures, save_all
from taqdit.report.run_folder import RECORD, SUMMARY, RunFolder
from taqdit.report.run_page import LAYERS_CSV, layers_table, write_page
from taqdit.runs import record, summary
from taqdit.runs.analysed import Findings
from taqdit.runs.tracked import log_activations, log_curves
from taqdit.sampler import ALL
from taqdit.stages import StageContext
from taqdit.stages import out_of_memory as memory
from taqdit.store import disk, make_folder, publish_json, sha256_file
from taqdit.store.secrets import mask_secrets
from taqdit.tracking.groups import run_date, sweep_group
from taqdit.tracking.options import Tracker
from taqdit.trajectories.latents import latent_statistics
from taqdit.trajectories.trajectory_set import TrajectorySet

log = logging.getLogger(__name__)


class RunOutputs:
    """What one run leaves: run.json first, summary.json last, all else as it comes.

    `results` are what summary.json says of what was made, `document` is run.json.
    """

    def __init__(self, context: StageContext, folder: Path, choices: Mapping[str, str]) -> None:
        self.context, self.plan = context, context.plan
        self.folder, self.choices = folder, dict(choices)
        self.run_id, self.started = uuid.uuid4().hex[:12], time.perf_counter()
        self.tracker = Tracker()
        self.document: dict[str, Any] = {}
        self.preflight: dict[str, Any] = {}  # what the run was estimated to take
        self.results: dict[str, Any] = {}
        self.whole = False  # whether `results` are all there is
        self.figures: RunFigures | None = None  # where drawn figures are stored
        self.drawn: list[Drawn] = []
        self.layers: list[tuple[Any, ...]] = []
        self.findings: Findings | None = None

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Around the whole run: a summary says how it ended in any case."""
        make_folder(self.folder)
        status, error = "failed", None
        try:
            yield
            status = "preflight" if self.plan.preflight == "only" else "ok"
        except TaqditError as caught:
            error = caught
            raise
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            self.finish(status, error)

    def record(self, fingerprints: Mapping[str, str]) -> None:
        """run.json, and pointers to it; before any stage is looked for. A run that is only planned
        leaves one that is there as it is."""
        if self.plan.preflight == "only" and (self.folder / RECORD).exists():
            return
        document = record.run_record(
            self.plan,
            run_id=self.run_id,
            choices=self.choices,
            folder=self.folder,
            fingerprints=fingerprints,
            backend=self.context.backend,
        )
        record.publish_record(self.folder, document)
        self.document = document
        disk.remove(self.folder / SUMMARY)  # of a former run
        record.publish_pointers(self.folder, self.context.store, document)

    def track(self) -> None:
        """Tell the tracker from here on."""
        self.tracker = self.plan.tracking.start(
            self.folder,
            run_id=self.run_id,
            name=f"{self.folder.parent.name}_{self.folder.name}",
            group=sweep_group(self.folder),
            job_type="calibration",
            tags=[*(f"{k}:{v}" for k, v in self.choices.items()), run_date(self.folder)],
            config=mask_secrets(self.plan.config),
        )
        log.info("%s", summary.backend_words(self.context.backend))

    def lineage(self, trajectories: TrajectorySet, statistics: Statistics | None) -> None:
        """What the statistics were made of."""
        source = summary.lineage("trajectories", trajectories.folder, trajectories.fingerprint)
        self.tracker.uses(source["name"], kind=source["type"], path=trajectories.folder)
        if statistics is not None:
            self.statistics(statistics, statistics.folder, inputs=[source])

    def statistics(
        self,
        statistics: Statistics | ImportedStatistics,
        path: Path,
        *,
        imported: Path | None = None,
        **metadata: Any,
    ) -> None:
        """Statistics as an artifact that is referred to; `imported` as the configuration has it."""
        covers = summary.describe_statistics(statistics)
        covers |= {"imported": str(imported)} if imported else {}
        self.results["statistics"] = covers
        fingerprint = covers.get("fingerprint") or sha256_file(path)
        name = f"activation-statistics-{fingerprint[:12]}"
        self.tracker.artifact(
            name, kind="activation-statistics", path=path, metadata={**covers, **metadata}
        )

    def calibration(
        self, points: CalibrationSet, source: Path, *, imported: Path | None = None
    ) -> None:
        """The calibration set as an artifact that is referred to: exported if the plan says so,
        else a view of the folder `source`; or imported."""
        described = summary.describe_calibration(points)
        if imported is not None:
            described["imported"] = str(imported)
        elif self.plan.export:
            source = self.folder / "calibration.npz"
            points.export_npz(source)
            described["npz"] = source.name
        self.results["calibration"] = described
        self.tracker.artifact(
            "calibration-set", kind="calibration-set", path=source, metadata=described
        )

    def draw_trajectories(self, trajectories: TrajectorySet, chosen: list[list[int]]) -> None:
        """The latents' curves, pictures and selected steps."""
        with self._drawing():
            plots, sampler, latents = self.plan.plots, self.plan.sampler, None
            if sampler.latents == ALL:
                latents = latent_statistics(trajectories)
                log_curves(trajectories, latents, self.tracker)
            self._draw(latent_figures(plots, trajectories, latents, chosen, images=sampler.images))

    def analysis(self, analysis: Analysis) -> None:
        """The analysis: its files, its figures, summary values and tables."""
        self.findings = Findings(analysis)
        self.results["analysis"] = self.findings.publish(self.folder)
        self.findings.log(self.tracker)
        with self._drawing():
            self._draw(analysis_figures(analysis, self.plan.plots))

    def draw_statistics(
        self, statistics: Statistics | ImportedStatistics, chosen: Sequence[Sequence[int]]
    ) -> None:
        """Activation statistics, made here or elsewhere; `chosen`: each trajectory's steps."""
        with self._drawing():
            table = statistics.overview()
            self.layers = layer_summary(table)
            log_activations(table, statistics.histograms, self.tracker)
            selected = sorted({step for steps in chosen for step in steps})
            self._draw(
                activation_figures(
                    table, statistics.layer_table, self.plan.plots, selected=selected
                )
            )
            publish_csv(self.folder / LAYERS_CSV, layers_table(self.layers).by_column)

    def _drawing(self) -> Any:
        return memory.drawing(self.plan.plots.formats)

    def _draw(self, drawings: Iterable[Drawing]) -> None:
        if "figures" in self.plan.stages:
            formats = self.plan.plots.formats
            self.drawn += save_all(
                drawings, self.folder, self.tracker, formats=formats, stored=self.figures
            )

    def export(self, statistics: Statistics) -> None:
        """The statistics in older formats, with what the analysis suggests."""
        covers = self.results["statistics"]
        if self.plan.export_layers:
            export_layer_statistics(
                statistics,
                self.folder,
                config=mask_secrets(self.plan.config),
                versions=self.document["versions"],
                settings=quantization_settings(self.findings.analysis.bits)
                if self.findings
                else {},
            )
            covers["layers"] = "layer_statistics.json"
        if self.plan.export_statistics:
            covers["npz"] = "activation_statistics.npz"
            export_npz(statistics, self.folder / covers["npz"])

    def report(self, trajectories: TrajectorySet | None = None) -> None:
        """report.html, if it is asked for, of all that was made."""
        files = [path for figure in self.drawn for path in figure.files]
        if files:
            self.results["figures"] = [str(path.relative_to(self.folder)) for path in files]
        if self.layers:
            self.results |= {"layers": as_text(self.layers), "layers_csv": LAYERS_CSV}
        self.whole = True
        if "report" not in self.plan.stages:
            return
        pictures = []
        if trajectories is not None and self.plan.sampler.images:
            text, picture = trajectories.prompts.text, trajectories.picture_path
            pictures = [(text(i), picture(i)) for i in range(len(trajectories))]
        page = write_page(
            self.folder,
            run=self.document,
            summary=self.summary("ok", None),
            pictures=pictures,
            figures=self.drawn,
            layers=self.layers,
            verdict=self.findings.verdict if self.findings else {},
            tables=self.findings.tables if self.findings else (),
        )
        self.results["report"] = page.name

    def summary(self, status: str, error: TaqditError | None) -> dict[str, Any]:
        """summary.json as far as the run has come."""
        return {
            "status": status,
            "error": None if error is None else str(error),
            "run_id": self.run_id,
            "store": disk.relative(self.context.store, self.folder),
            "stages": [asdict(report) for report in self.context.reports],
            "seconds": round(time.perf_counter() - self.started, 3),
            "peak_memory_bytes": summary.peak_memory(),
            "peak_mlx_memory_bytes": summary.peak_mlx_memory(),
            **({"preflight": self.preflight} if self.preflight else {}),
            **(self.results if self.whole else {}),
        }

    def finish(self, status: str, error: TaqditError | None) -> None:
        """Leave the summary. Raises StorageError if a run that went well cannot."""
        document = self.summary(status, error)
        logged = {key: document[key] for key in ("status", "seconds", "peak_memory_bytes")}
        full = None
        try:
            if self.document or not RunFolder(self.folder).went_well:  # else it is another run's
                publish_json(self.folder / SUMMARY, document)
            self.tracker.summary(logged)
        except StorageError as caught:
            full = caught
        self.tracker.finish(ok=status == "ok" and full is None)
        if full is not None and status == "ok":
            raise full
        if full is not None and not isinstance(error, StorageError):
            log.error("%s", full)
        if status == "ok":
            words = summary.closing_words(document, self.folder, self.tracker.location)
            print(words, flush=True)
