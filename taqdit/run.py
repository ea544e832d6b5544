"""One run: its course on one screen, the Hydra application around it, and `launch` for Python.

`python -m taqdit.run [overrides]` is the Hydra application; `taqdit` (cli/) wraps it.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from taqdit import config as configuration
from taqdit.activations.opened import ImportedStatistics, open_statistics
from taqdit.activations.stored import Statistics
from taqdit.calibration.calibration_set import CalibrationSet
from taqdit.errors import ConfigError, TaqditError
from taqdit.report.figures import run_figures
from taqdit.runs import sweep as sweeping
from taqdit.runs.api import Run, open_run
from taqdit.runs.exits import exit_with
from taqdit.runs.outputs import RunOutputs
from taqdit.runs.record import mask_copies, new_folder, write_copies
from taqdit.stages import (
    KeptAnalysis,
    StageContext,
    encode_prompts,
    preflight,
    sample_and_trace,
    trace_imported,
    weight_table,
)
from taqdit.stages import out_of_memory as memory
from taqdit.stages.analysed import analyse_run
from taqdit.stages.kinds import fingerprints
from taqdit.stages.plan import Plan, chosen_steps
from taqdit.stages.progress import Progress
from taqdit.stages.remaining import may_read_weights, remaining
from taqdit.stages.source import source_digest
from taqdit.timestep_selection.evidence import needs_evidence
from taqdit.tracking.groups import SWEEP_FILE

log = logging.getLogger(__name__)
failure: TaqditError | None = None  # of a single run: the outermost wrapper gives its exit code
prepared: configuration.Checked | None = None  # of a single run: what the command has checked


def run_plan(plan: Plan, folder: Path, choices: Mapping[str, str]) -> None:
    """The course of a run, whose outputs go into `folder`; stages reuse what the store holds.

    Raises TaqditError; a summary says how it ended in any case.
    """
    source_digest()  # of the code that runs, should it be edited meanwhile
    stages, asked = StageContext(plan, plan.output_dir / "store"), set(plan.stages)
    outputs = RunOutputs(stages, folder, choices)
    with outputs.ending(), memory.told("this run"):
        if not plan.made_elsewhere:
            state_cost(stages, outputs)
        if plan.preflight == "only":
            outputs.record({})
            return
        outputs.record(fingerprints(plan))
        outputs.track()
        if plan.made_elsewhere:
            show_imported(stages, outputs)
            return

        if "weights" in asked and "analysis" not in asked:
            weight_table(stages)
        if "conditioning" not in plan.needs:
            return
        with memory.encoding(plan.model):
            conditioning = encode_prompts(stages)
        if "trajectories" not in plan.needs:
            return
        size, traced = plan.sampler.batch_size, plan.traces
        with memory.sampling(plan.model, batch_size=size, traced=traced), Progress() as progress:
            trajectories, statistics = sample_and_trace(
                stages, conditioning.guided, progress, trace=traced
            )
        outputs.lineage(trajectories, statistics)

        with memory.analysing():
            stored = None if statistics is None else KeptAnalysis(stages, statistics)
            if stored is not None and needs_evidence(plan.select):
                plan = replace(plan, evidence=stored.profile.evidence)
        chosen = chosen_steps(plan, trajectories)
        if "calibration" in asked:
            points = CalibrationSet(
                trajectories,
                plan.select,
                cfg_scale=plan.sampler.cfg_scale,
                seed=plan.sampler.seed,
                conditioning=conditioning.row,
                evidence=plan.evidence,
            )
            outputs.calibration(points, trajectories.folder)

        outputs.figures = run_figures(plan, stages.store, trajectories, statistics, chosen)
        if asked & {"figures", "report"}:
            outputs.draw_trajectories(trajectories, chosen)
        if plan.analyses and statistics is not None and stored is not None:
            with memory.analysing():
                weights = weight_table(stages) if "weights" in asked else None
                analysis = analyse_run(plan, statistics, weights=weights, known=stored.profile)
                stored.keep_choices()
            outputs.analysis(analysis)
        elif plan.analyses:
            log.info("nothing was traced, so there is nothing to analyse")
        if statistics is not None:
            outputs.draw_statistics(statistics, chosen)
        if outputs.figures:
            outputs.figures.seal()
        if statistics is not None:
            outputs.export(statistics)
        outputs.report(trajectories)


def state_cost(context: StageContext, outputs: RunOutputs) -> None:
    """State points, forwards, bytes, disk and memory; refuse a disk that is too small."""
    plan, store = context.plan, context.store
    cost = preflight.estimate(plan, free_bytes=preflight.free_bytes(plan.output_dir))
    known: dict[str, str] | None = {}
    if store.is_dir():
        known = fingerprints(plan) if may_read_weights(plan) else None
    left = remaining(plan, cost, store, known)
    outputs.preflight = cost.as_dict() | left.as_dict()
    if plan.preflight != "off":
        log.info("%s\n%s", preflight.describe(cost), left.describe())
    if plan.preflight != "only":
        preflight.refuse_full_disk(cost, needed=left.bytes_left, folder=plan.output_dir)


def show_imported(stages: StageContext, outputs: RunOutputs) -> None:
    """A calibration set or statistics made elsewhere take the place of all stages; of a set the
    points are traced."""
    plan = stages.plan
    if (path := plan.imported) is not None and (points := plan.points) is not None:
        outputs.calibration(points, path.resolve(), imported=path)
        if plan.misfits and plan.tracer.places:
            log.warning("%s is not traced: %s", path, "; ".join(plan.misfits))
        if plan.traces:
            size = plan.sampler.batch_size
            with memory.sampling(plan.model, batch_size=size, traced=True), Progress() as progress:
                traced = trace_imported(stages, progress)
            show_statistics(plan, outputs, traced, traced.folder, imported=path)
            outputs.export(traced)
    if (path := plan.imported_statistics) is not None:
        show_statistics(plan, outputs, open_statistics(path), path.resolve(), imported=path)
    outputs.report()


def show_statistics(
    plan: Plan,
    outputs: RunOutputs,
    statistics: Statistics | ImportedStatistics,
    source: Path,
    *,
    imported: Path,
) -> None:
    """Statistics that are, or were made of, what `imported` names: analysed where their histograms
    can be pooled, and drawn."""
    outputs.statistics(statistics, source, imported=imported)
    if plan.analyses and isinstance(statistics, Statistics):
        with memory.analysing():
            analysis = analyse_run(plan, statistics, weights=None)
        outputs.analysis(analysis)
    elif plan.analyses:
        log.info("%s has no histograms that can be pooled: it is not analysed", imported)
    outputs.draw_statistics(statistics, ())


def launch(overrides: Sequence[str] = ()) -> Run:
    """Run `taqdit *overrides` in this process and return the finished run.

    Raises TaqditError, as the command line would print it.
    """
    composed = configuration.compose_config(overrides, with_hydra=True)
    config = configuration.without_hydra(composed)
    plan = configuration.plan(config)
    folder = new_folder(plan.output_dir, "runs")
    write_copies(folder, config, overrides, plan.config)
    run_plan(plan, folder, configuration.choices(composed.hydra))
    return open_run(folder)


def job(config: DictConfig) -> None:
    """One Hydra job. One of a sweep leaves its failure in its folder, and the sweep goes on."""
    global failure
    context = HydraConfig.get()
    folder, sweep = Path(context.runtime.output_dir), Path(context.sweep.dir)
    try:
        mask_copies(config, [*folder.glob(".hydra/*.yaml"), *sweep.glob(SWEEP_FILE)])
        if context.job.chdir:
            raise ConfigError("hydra.job.chdir=true would move the store; leave it false")
        run_plan(configuration.plan(config, prepared), folder, configuration.choices(context))
    except Exception as error:
        if context.mode == RunMode.MULTIRUN:
            sweeping.fail(folder, error)
            if "sweep" not in context.callbacks:
                raise  # nobody reads it at the end
        elif isinstance(error, TaqditError):
            log.debug("the run failed", exc_info=True)
            failure = error
        else:
            raise


def application(checked: configuration.Checked | None = None) -> int:
    """The Hydra application on sys.argv; 0 at its end. Raises TaqditError, or what Hydra raises.

    `checked`: the configuration of a single run, if it was checked already.
    """
    global failure, prepared
    failure, prepared, sweeping.report = None, checked, None
    configuration.refuse_code(sys.argv[1:], configuration.config_folder())
    app = hydra.main(
        version_base="1.3", config_path=str(configuration.config_folder()), config_name="config"
    )(job)
    try:
        app()
    except sweeping.Refused as refused:
        raise refused.error from None
    except Exception as error:
        sweeping.tell_failures()  # a launcher broke: say what the jobs left
        if (text := configuration.gave_up(error)) is not None:
            raise TaqditError(text) from error
        raise
    ended = failure or (sweeping.report.error if sweeping.report else None)
    if ended is not None:
        raise ended
    return 0


if __name__ == "__main__":  # the module that others import runs, not this second copy of it
    exit_with(importlib.import_module("taqdit.run").application)
