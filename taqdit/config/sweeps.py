"""What Hydra knows about a sweep: its jobs, composed before the first one starts.

Also the resolvers that the presets in `conf/sweep` use: pure functions of their arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from taqdit.analysis.selections import default_budget
from taqdit.config.checking import Problem, check
from taqdit.config.compose import hydra_complains, one_line, without_hydra
from taqdit.errors import ConfigError
from taqdit.store.secrets import repeats_secret

__all__ = ["Callback", "SweepJob", "sweep_jobs"]


@dataclass(frozen=True)
class SweepJob:
    """One combination of a sweep: the overrides that set it apart, its folder, its problems.

    `folder` is None where the combination does not compose.
    """

    number: int
    overrides: tuple[str, ...]
    folder: Path | None
    problems: tuple[Problem, ...] = field(default=(), repr=False)
    refresh: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"job {self.number} ({' '.join(self.overrides)})"


def sweep_jobs(config: DictConfig) -> list[SweepJob] | None:
    """The jobs that Hydra's basic sweeper makes of `config`, in its order; none runs.

    None for another sweeper, which decides on a job when it knows the results of those before.
    Raises ConfigError for a sweep without a job and for what Hydra's parser refuses.
    """
    if not config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        return None
    _ = config.hydra.sweep.dir  # once resolved here, the time in it is that of every job
    combinations = _combinations(config)
    shared = set.intersection(*map(set, combinations))
    if len(combinations) == 1:
        return [_job(config, 0, combinations[0], set())]
    jobs = [_job(config, *numbered, shared) for numbered in enumerate(combinations)]
    return [_without_refresh(job) for job in jobs]


def _combinations(config: DictConfig) -> list[list[str]]:
    """The overrides of every job: the preset's parameters, then the command line's."""
    params = OmegaConf.to_container(config.hydra.sweeper.params or OmegaConf.create(), resolve=True)
    asked = [f"{key}={value}" for key, value in cast(dict[str, str], params).items()]
    # as they were typed: an override may refer to a key that another one sweeps
    asked += cast(list[str], OmegaConf.to_container(config.hydra.overrides.task, resolve=False))
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(asked)
    last = {override.get_key_element(): override for override in overrides}
    empty = [each.input_line for each in last.values() if _chooses_nothing(each)]
    if empty:
        raise ConfigError(*(f"{line} gives no value, so the sweep has no job" for line in empty))
    (combinations,) = BasicSweeper.split_arguments(overrides, None)
    return combinations


def _chooses_nothing(override: Any) -> bool:
    if not (override.is_sweep_override() and override.is_discrete_sweep()):
        return False
    return next(iter(override.sweep_string_iterator()), None) is None


def _job(config: DictConfig, number: int, overrides: Sequence[str], shared: set[str]) -> SweepJob:
    own = tuple(each for each in overrides if each not in shared)
    loader = GlobalHydra.instance().config_loader()
    try:
        composed = loader.load_sweep_config(config, list(overrides))
        problems = check(without_hydra(composed)).problems
    except Exception as error:
        if not hydra_complains(error):
            raise
        problem = Problem(one_line(error), ConfigError.exit_code)
        return SweepJob(number, own, None, (problem,))
    refresh = tuple(map(str, composed.get("refresh") or ()))
    folder = _folder(composed, number)
    inside = folder.parts[len(Path(config.hydra.sweep.dir).resolve().parts) :]
    settings: Any = OmegaConf.to_container(without_hydra(composed))
    if repeats_secret(inside, overrides, settings):
        text = "hydra.sweep.subdir names folders after a secret; leave it out"
        problems.append(Problem(text, ConfigError.exit_code))
    return SweepJob(number, own, folder, tuple(problems), refresh)


def _without_refresh(job: SweepJob) -> SweepJob:
    """Jobs share stages: each would set aside what the one before it has made anew."""
    if not job.refresh:
        return job
    text = f"refresh={list(job.refresh)} would do it in every job; refresh in a single run first"
    problem = Problem(text, ConfigError.exit_code)
    return replace(job, problems=(*job.problems, problem))


def _folder(composed: DictConfig, number: int) -> Path:
    """Where Hydra will let the job write: its folder may depend on its number and overrides."""
    known = HydraConfig.instance()
    before = known.cfg
    OmegaConf.set_struct(composed, False)
    composed.hydra.job.num = number
    composed.hydra.job.id = str(number)
    try:
        known.set_config(composed)
        parts = (str(composed.hydra.sweep.dir), str(composed.hydra.sweep.subdir))
    finally:
        known.cfg = before
    return Path(*parts).resolve()


def _up_to(limit: int, values: Sequence[int]) -> str:
    """`${up_to:limit,[a,b,..]}`: the values that do not exceed `limit`, as Hydra sweeps them."""
    return ",".join(str(value) for value in values if value <= limit) or "range(0,0)"


def _dense_middle_count(num_steps: int) -> int:
    """`${dense_middle_count:num_steps}`: as many points as the rule dense_middle selects."""
    return default_budget(num_steps)


RESOLVERS: dict[str, Callable[..., Any]] = {
    "up_to": _up_to,
    "dense_middle_count": _dense_middle_count,
}
for _name, _resolver in RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)
