"""One run: compose, check, state the plan, run the stages, leave a summary.

`python -m taqdit.run [overrides]` is the Hydra application; `taqdit` (cli.py) wraps it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from taqdit import config as configuration
from taqdit.errors import ConfigError, TaqditError
from taqdit.exits import exit_with
from taqdit.session import Session

log = logging.getLogger(__name__)
failure: TaqditError | None = None  # of a single run: the outermost wrapper gives its exit code


def execute(config: DictConfig, folder: Path, choices: dict[str, str]) -> None:
    """Run a composed configuration, writing into `folder`. Raises TaqditError."""
    plan = configuration.plan(config)
    Session(plan, folder, choices=choices).run()


def job(config: DictConfig) -> None:
    """One Hydra job. In a sweep errors are raised, so that the sweep can name the failed job."""
    global failure
    context = HydraConfig.get()
    folder = Path(context.runtime.output_dir)
    try:
        if context.job.chdir:
            raise ConfigError("hydra.job.chdir=true would move the store; leave it false")
        execute(config, folder, configuration.choices(context))
    except TaqditError as error:
        log.debug("the run failed", exc_info=True)
        if context.mode == RunMode.MULTIRUN:
            raise
        failure = error


def application() -> int:
    """The Hydra application on sys.argv; 0 at its end. Raises TaqditError, or what Hydra raises."""
    hydra.main(
        version_base="1.3", config_path=str(configuration.config_folder()), config_name="config"
    )(job)()
    if failure is not None:
        raise failure
    return 0


if __name__ == "__main__":
    exit_with(application)
