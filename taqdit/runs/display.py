"""What a run shows of its results: figures, tracked numbers, the table of layers, the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taqdit.activations.layer_summary import as_text, layer_summary
from taqdit.activations.overview import LayerTable
from taqdit.plots.run_figures import activation_figures, analysis_figures, latent_figures
from taqdit.plots.style import publish_csv
from taqdit.report.figures import Drawn, RunFigures, save_all
from taqdit.report.run_page import write_page
from taqdit.runs.analysed import Findings
from taqdit.runs.tracked import layer_columns, log_activations, log_curves
from taqdit.sampler import ALL
from taqdit.stages.plan import Plan, chosen_steps
from taqdit.tracking.options import Tracker
from taqdit.trajectories.latents import latent_statistics
from taqdit.trajectories.trajectory_set import TrajectorySet

LAYERS_CSV = "layers.csv"


class Showing:
    """Collects what was drawn and tabled, for the summary and the page."""

    def __init__(
        self, plan: Plan, folder: Path, tracker: Tracker, stored: RunFigures | None = None
    ) -> None:
        self.plan, self.folder, self.tracker, self.stored = plan, folder, tracker, stored
        self.drawn: list[Drawn] = []
        self.layers: list[tuple[Any, ...]] = []
        self.analysed: Findings | None = None

    def trajectories(self, trajectories: TrajectorySet) -> None:
        """The latents' curves, pictures and selected steps."""
        found = None
        if self.plan.sampler.latents == ALL:
            found = latent_statistics(trajectories)
            log_curves(trajectories, found, self.tracker)
        plan, chosen = self.plan, chosen_steps(self.plan, trajectories)
        images = plan.sampler.images
        self._draw(latent_figures(plan.plots, trajectories, found, chosen, images=images))

    def statistics(self, statistics: Any, chosen: Sequence[Sequence[int]]) -> None:
        """Activation statistics, made here or elsewhere; None shows nothing.

        `chosen` holds the selected steps of each trajectory.
        """
        if statistics is None:
            return
        table = statistics.overview()

        def layer(site: int) -> LayerTable:
            found: LayerTable = statistics.layer_table(site)
            return found

        self.layers = layer_summary(table)
        log_activations(table, statistics.histograms, self.tracker)
        selected = sorted({step for steps in chosen for step in steps})
        self._draw(activation_figures(table, layer, self.plan.plots, selected=selected))
        publish_csv(self.folder / LAYERS_CSV, layer_columns(self.layers))

    def findings(self, findings: Findings) -> None:
        """The analysis."""
        self.analysed = findings
        self._draw(analysis_figures(findings.analysis, self.plan.plots))

    def _draw(self, drawings: Any) -> None:
        if "figures" in self.plan.stages:
            self.drawn += save_all(
                drawings,
                self.folder,
                self.tracker,
                formats=self.plan.plots.formats,
                stored=self.stored,
            )

    def results(self) -> dict[str, Any]:
        """For summary.json."""
        files = [path for each in self.drawn for path in each.files]
        figures = [str(path.relative_to(self.folder)) for path in files]
        found: dict[str, Any] = {"figures": figures} if figures else {}
        if self.layers:
            found |= {"layers": as_text(self.layers), "layers_csv": LAYERS_CSV}
        return found

    def write_page(
        self,
        run: Mapping[str, Any],
        summary: Mapping[str, Any],
        trajectories: TrajectorySet | None,
    ) -> Path:
        """Publish report.html. `run` and `summary` are run.json and summary.json."""
        pictures = []
        if trajectories is not None and self.plan.sampler.images:
            texts = trajectories.prompts
            pictures = [
                (texts.text(i), trajectories.picture_path(i)) for i in range(len(trajectories))
            ]
        return write_page(
            self.folder,
            run=run,
            summary=summary,
            pictures=pictures,
            figures=self.drawn,
            layers=self.layers,
            verdict=self.analysed.verdict if self.analysed else {},
            tables=self.analysed.tables if self.analysed else (),
        )
