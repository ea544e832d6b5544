"""What runs the jobs of a sweep: Hydra's launchers, of which extras bring some as plugins."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig

from taqdit.config.checking import Problem
from taqdit.errors import ConfigError

GROUP = "hydra/launcher"
EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm"}  # of taqdit
ENGINES = ("joblib", "submitit")  # what the plugins run jobs with
SINGLE = ("nodes", "tasks_per_node")  # several processes would write into one job's folder
POSITIVE = ("timeout_min", "array_parallelism")


def missing_plugin(error: BaseException) -> str | None:
    """How to install the launcher's plugin, if it is what Hydra did not find; else None."""
    if not isinstance(error, MissingConfigException):
        return None
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if group != GROUP or option not in EXTRAS:
        return None
    extra = EXTRAS[option]
    return (
        f"hydra/launcher: the plugin that provides {option} is not installed;"
        f" pip install 'taqdit[{extra}]' (in a checkout: uv sync --extra {extra}),"
        " or leave the launcher out: one job after the other"
    )


def gave_up(error: BaseException) -> str | None:
    """What to say where a launcher's engine broke the sweep off; None for any other error.

    It does where Slurm refuses the jobs, and where the process of one ends without a word, killed
    or out of memory.
    """
    if type(error).__module__.partition(".")[0] not in ENGINES:
        return None
    said = " ".join(str(error).strip().splitlines()[:2])
    return (
        f"the launcher gave up, {type(error).__name__}: {said.rstrip('.')};"
        " jobs that still run are not waited for; the same command again goes on from the store"
    )


def launcher_problems(config: DictConfig) -> list[Problem]:
    """What is wrong with the launcher of a sweep beyond its keys and types, which Hydra checks."""
    return [Problem(text, ConfigError.exit_code) for text in _wrong(config.hydra.launcher)]


def _wrong(launcher: Mapping[str, Any]) -> Iterator[str]:
    if launcher.get("n_jobs") == 0:
        yield "hydra.launcher.n_jobs=0 must be at least 1, or -1 for one job per core"
    for key in POSITIVE:
        if launcher.get(key, 1) < 1:
            yield f"hydra.launcher.{key}={launcher[key]} must be at least 1"
    for key in SINGLE:
        if launcher.get(key, 1) != 1:
            yield f"hydra.launcher.{key}={launcher[key]} must be 1: a job is one process"
    slurm = launcher["_target_"].endswith(".SlurmLauncher")
    if slurm and not (shutil.which("sbatch") and shutil.which("srun")):
        yield (
            "hydra/launcher=slurm: sbatch and srun are not found here; start the sweep where they"
            " are, or try it with hydra/launcher=slurm_local"
        )
