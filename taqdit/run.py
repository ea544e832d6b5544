"""One run: compose, check, state the plan, run the stages, leave a summary.

`python -m taqdit.run [overrides]` is the Hydra application; `taqdit` (cli.py) wraps it.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from taqdit import config as configuration
from taqdit.errors import ConfigError, TaqditError
from taqdit.runs import sweep as sweeping
from taqdit.runs.exits import exit_with
from taqdit.runs.session import Session
from taqdit.store import disk
from taqdit.store.secrets import mask_settings

log = logging.getLogger(__name__)
failure: TaqditError | None = None  # of a single run: the outermost wrapper gives its exit code
prepared: configuration.Checked | None = None  # of a single run: what the command has checked


def execute(config: DictConfig, folder: Path, choices: dict[str, str]) -> None:
    """Run a composed configuration, writing into `folder`. Raises TaqditError."""
    plan = configuration.plan(config, prepared)
    Session(plan, folder, choices=choices).run()


def job(config: DictConfig) -> None:
    """One Hydra job. One of a sweep leaves its failure in its folder, and the sweep goes on."""
    global failure
    context = HydraConfig.get()
    folder, sweep = Path(context.runtime.output_dir), Path(context.sweep.dir)
    try:
        mask_copies(config, [*folder.glob(".hydra/*.yaml"), *sweep.glob("multirun.yaml")])
        if context.job.chdir:
            raise ConfigError("hydra.job.chdir=true would move the store; leave it false")
        execute(config, folder, configuration.choices(context))
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


def mask_copies(config: DictConfig, copies: list[Path]) -> None:
    """Hide secrets in what Hydra has written down of the command line. Raises StorageError."""
    settings: Any = OmegaConf.to_container(config)
    for path in copies:
        with disk.guarded("read", path):
            told = OmegaConf.to_container(OmegaConf.load(path))
        masked = mask_settings(told, settings)
        if masked != told:
            disk.publish_bytes(path, OmegaConf.to_yaml(masked).encode())


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
        _tell_failures()  # a launcher broke: say what the jobs left
        if (told := configuration.gave_up(error)) is not None:
            raise TaqditError(told) from error
        raise
    found = failure or (sweeping.report.error if sweeping.report else None)
    if found is not None:
        raise found
    return 0


def _tell_failures() -> None:
    jobs = sweeping.report.jobs if sweeping.report else None
    found = sweeping.failures(jobs or [])
    for text in found.args if found else ():
        print(f"taqdit: {text}", file=sys.stderr)


if __name__ == "__main__":
    exit_with(application)
