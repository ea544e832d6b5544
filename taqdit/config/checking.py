"""Every problem of a configuration at once, before anything loads; then its plan."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from taqdit.activations.counts import MOST
from taqdit.analysis.options import AnalysisOptions
from taqdit.config.building import build
from taqdit.config.schema import RunConfig
from taqdit.errors import ConfigError, InputError, TaqditError
from taqdit.models.sites import site_paths
from taqdit.models.spec import ModelSpec
from taqdit.plots.options import PlotOptions
from taqdit.prompts.options import Prompts
from taqdit.quantizer import BITS
from taqdit.sampler import FINAL, SELECTED, Sampler
from taqdit.schedule import Schedule
from taqdit.stages import kinds
from taqdit.timestep_selection.evidence import Evidence, needs_evidence
from taqdit.timestep_selection.selection import refuse_other_forms
from taqdit.timestep_selection.steps import TrajectorySteps
from taqdit.tracer.options import TracerOptions
from taqdit.tracking.options import TrackingOptions

log = logging.getLogger(__name__)
GROUPS = (
    "model",
    "prompts",
    "schedule",
    "sampler",
    "timestep_selection",
    "tracer",
    "analysis",
    "plots",
    "tracking",
)
PARTIAL = ("timestep_selection",)  # a rule is bound now and called per trajectory
KINDS: dict[str, type] = {
    "model": ModelSpec,
    "prompts": Prompts,
    "schedule": Schedule,
    "sampler": Sampler,
    "tracer": TracerOptions,
    "analysis": AnalysisOptions,
    "plots": PlotOptions,
    "tracking": TrackingOptions,
}
PREFLIGHT = ("on", "only", "off")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: its text and the exit code of its kind."""

    text: str
    exit_code: int


@dataclass(frozen=True, eq=False)
class Checked:
    """A configuration's problems, and the objects of its sound groups, each built once.

    `notes`: what was logged meanwhile; a run's log may not be open yet.
    """

    config: DictConfig
    problems: list[Problem]
    built: Mapping[str, Any]
    notes: list[logging.LogRecord]

    def log_notes(self) -> None:
        """Log what was held back."""
        for record in self.notes:
            logging.getLogger(record.name).handle(record)


@contextmanager
def _held_back() -> Iterator[list[logging.LogRecord]]:
    """Whatever the package logs in the block."""
    logger, handler = logging.getLogger("taqdit"), logging.Handler()
    records: list[logging.LogRecord] = []
    before = logger.handlers, logger.propagate
    handler.emit = records.append  # type: ignore[method-assign,assignment]
    logger.handlers, logger.propagate = [handler], False
    try:
        yield records
    finally:
        logger.handlers, logger.propagate = before


def check(config: DictConfig) -> Checked:
    """Every range, signature and cross-key problem of a composed configuration, at once."""
    problems: list[Problem] = []
    built: dict[str, Any] = {}
    with _held_back() as notes:
        for group in GROUPS:
            try:
                built[group] = build_group(config, group)
            except TaqditError as error:
                code = error.exit_code
                problems += [Problem(_prefixed(group, text), code) for text in error.args]
    problems += [Problem(text, ConfigError.exit_code) for text in _section_problems(config)]
    problems += _imported_problems(config)
    if "schedule" in built and "timestep_selection" in built:
        problems += _selection_problems(built["timestep_selection"], built["schedule"])
    if {"timestep_selection", "tracer"} <= built.keys():
        problems += _evidence_problems(config, built["timestep_selection"], built["tracer"])
    if {"timestep_selection", "sampler"} <= built.keys():
        problems += _latents_problems(config, built["timestep_selection"], built["sampler"])
    if {"analysis", "schedule"} <= built.keys() and config.inputs.statistics is None:
        texts = built["analysis"].problems(built["schedule"].num_steps)
        problems += [Problem(f"analysis.{text}", ConfigError.exit_code) for text in texts]
    if {"model", "tracer", "plots"} <= built.keys() and config.inputs.statistics is None:
        traced = built["tracer"].chosen(each.site for each in site_paths(built["model"]))
        texts = built["plots"].problems(traced)
        problems += [Problem(f"plots.{text}", ConfigError.exit_code) for text in texts]
    if {"model", "sampler", "tracer"} <= built.keys() and config.inputs.statistics is None:
        texts = _tracer_problems(built["model"], built["sampler"], built["tracer"])
        problems += [Problem(f"tracer.{text}", ConfigError.exit_code) for text in texts]
    return Checked(config, problems, built, notes)


def _prefixed(group: str, text: str) -> str:
    return f"{group}{text}" if text.startswith("=") else f"{group}.{text}"


def _section_problems(config: DictConfig) -> Iterator[str]:
    if config.preflight not in PREFLIGHT:
        yield f"preflight={config.preflight} must be one of {', '.join(PREFLIGHT)}"
    if not config.output_dir.strip():
        yield "output_dir='' must name a folder"
    for key in set(config) - {field.name for field in fields(RunConfig)}:
        yield f"{key} is no key of the configuration; see taqdit --help"
    yield from _stage_problems(config)


def _stage_problems(config: DictConfig) -> Iterator[str]:
    every, stored = kinds.stage_names(), kinds.stored()
    stages = every if config.stages == "all" else _names(config.stages)
    if not stages or set(stages) - set(every):
        yield f"stages={config.stages} must be all or a list out of {', '.join(every)}"
    refresh = _names(config.refresh)
    if refresh is None or set(refresh) - set(stored):
        yield (
            f"refresh={config.refresh} must be a list out of {', '.join(stored)};"
            " what is not stored is always made anew"
        )
    elif stages and set(refresh) - set(stages):
        yield f"refresh={config.refresh} names a stage that stages={config.stages} does not run"


def _names(value: Any) -> list[str] | None:
    """The elements of a list of texts; None for anything else."""
    if not isinstance(value, ListConfig | list | tuple):
        return None
    return [str(each) for each in value]


def _imported_problems(config: DictConfig) -> list[Problem]:
    calibration, statistics = config.inputs.calibration, config.inputs.statistics
    texts = []
    if calibration is not None and not Path(calibration).is_file():
        texts.append(
            f"inputs.calibration={calibration} is not a file; give the path of a calibration .npz"
        )
    if statistics is not None and not Path(statistics).exists():
        texts.append(
            f"inputs.statistics={statistics} is not there; give the folder of a statistics stage"
            " or the path of an .npz of activation statistics"
        )
    return [Problem(text, InputError.exit_code) for text in texts]


def _tracer_problems(model: ModelSpec, sampler: Sampler, tracer: TracerOptions) -> Iterator[str]:
    """What the options alone cannot know: the model's sites, and how much will be counted."""
    if not tracer.places:
        return
    paths = site_paths(model)
    if not paths:
        yield f"_target_: {model.name} names no blocks to trace; set tracer=none"
    yield from tracer.problems(each.site for each in paths)
    traced = tracer.traced(sampler.num_trajectories)
    per_fold = -(-traced // tracer.folds) + sampler.batch_size  # whole batches
    most = max((2 * per_fold * each.tokens * each.site.width for each in paths), default=0)
    if most > MOST:
        yield (
            f"folds={tracer.folds} of {traced} trajectories may count {most:,} values in one fold"
            f" and 32 bits hold {MOST:,}; raise tracer.folds or lower tracer.num_trajectories"
        )


def build_group(config: Mapping[str, Any], group: str) -> Any:
    """The object of one config group. Raises ConfigError unless the node is what it should be."""
    node = config.get(group)
    if not isinstance(node, Mapping):
        raise ConfigError(f"={node} must be one of the group's options; see taqdit --help")
    if bool(node.get("_partial_", False)) != (group in PARTIAL):
        raise ConfigError(f"_partial_={node.get('_partial_')} must stay as the option has it")
    built = build(node)
    if group in PARTIAL:
        refuse_other_forms(built)
    kind = KINDS.get(group)
    if kind is not None and not isinstance(built, kind):
        raise ConfigError(f"_target_={node['_target_']!r} gives no {kind.__name__}")
    return built


def _selection_problems(select: Any, schedule: Any) -> list[Problem]:
    try:
        nothing = Evidence.blank(schedule.num_steps, BITS)
        select(TrajectorySteps(schedule.sigmas(), evidence=nothing))
    except TaqditError as error:
        return [Problem(f"timestep_selection.{text}", error.exit_code) for text in error.args]
    return []


def _evidence_problems(config: DictConfig, select: Any, tracer: TracerOptions) -> list[Problem]:
    """A rule that selects from traced statistics needs some."""
    imported = config.inputs.calibration is not None or config.inputs.statistics is not None
    if imported or not needs_evidence(select):
        return []
    stages = kinds.stage_names() if config.stages == "all" else _names(config.stages) or ()
    missing = "tracer reads nothing" if not tracer.places else "stages leaves out statistics"
    if tracer.places and "statistics" in kinds.with_sources(stages):
        return []
    name = config.timestep_selection._target_
    text = f"timestep_selection._target_={name} selects from traced statistics, and {missing}"
    return [Problem(f"{text}; set tracer=block_inputs, stages=all", ConfigError.exit_code)]


def _latents_problems(config: DictConfig, select: Any, sampler: Sampler) -> list[Problem]:
    """What cannot be had of trajectories that are not stored whole."""
    texts = []
    if sampler.latents == SELECTED and needs_evidence(select):
        texts.append(
            "sampler.latents=selected stores what is selected before anything is traced, and"
            f" timestep_selection._target_={config.timestep_selection._target_} selects from traced"
            " statistics; set sampler.latents=all"
        )
    if sampler.latents == FINAL and "calibration" in (_names(config.stages) or ()):
        texts.append(
            "sampler.latents=final stores nothing that a calibration set could hold; leave"
            " calibration out of stages, or set sampler.latents=selected"
        )
    return [Problem(text, ConfigError.exit_code) for text in texts]


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raise one error for all problems, of the first one's kind (config before the others)."""
    if not problems:
        return
    code = min(problem.exit_code for problem in problems)
    kinds = {kind.exit_code: kind for kind in TaqditError.__subclasses__()}
    raise kinds[code](*(problem.text for problem in problems))
