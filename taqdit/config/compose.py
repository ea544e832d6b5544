"""Composing with Hydra. Whatever Hydra may rename between versions stays in here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from taqdit.config.foreign import refuse_code
from taqdit.config.launchers import missing_plugin
from taqdit.errors import ConfigError


def config_folder() -> Path:
    """The folder `conf/`: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent.parent
    packaged = here / "conf"
    return packaged if (packaged / "config.yaml").is_file() else here.parent / "conf"


def compose_config(overrides: Sequence[str] = (), *, with_hydra: bool = False) -> DictConfig:
    """The configuration that the command line `taqdit *overrides` would run.

    Raises ConfigError for what Hydra refuses, in one line, and for files with more than settings.
    """
    refuse_code(overrides, config_folder())
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
            return compose("config", overrides=list(overrides), return_hydra_config=with_hydra)
    except Exception as error:
        if hydra_complains(error):
            raise ConfigError(one_line(error)) from error
        raise
    finally:
        GlobalHydra.instance().clear()


def hydra_complains(error: BaseException) -> bool:
    """Whether `error` is Hydra's or OmegaConf's complaint about a configuration."""
    origins = [type(error).__module__]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None and isinstance(error, ValueError):
        origins.append(trace.tb_frame.f_globals.get("__name__", ""))
    return any(name.split(".")[0] in ("hydra", "omegaconf", "yaml", "antlr4") for name in origins)


# What Hydra adds for its own users, advice that is wrong here included.
_ABOUT_HYDRA = re.compile(
    r"Config search path|Set the environment variable|To append to your config use|full_key: |"
    r"See https://hydra"
)


def one_line(error: BaseException) -> str:
    """Hydra's message (and its cause's) without search paths and line breaks."""
    if (how := missing_plugin(error)) is not None:
        return how
    parts = []
    for each in (error, error.__cause__):
        text = str(each) if each is not None else ""
        kept = _ABOUT_HYDRA.split(text)[0]
        parts.append(" ".join(kept.split()))
    return ". ".join(dict.fromkeys(part.rstrip(".") for part in parts if part))


def without_hydra(config: DictConfig) -> DictConfig:
    """The job's part of a configuration composed with Hydra's own node."""
    job = config.copy()
    OmegaConf.set_struct(job, False)
    job.pop("hydra", None)
    return job


def from_mapping(config: Mapping[str, Any]) -> DictConfig:
    """A resolved configuration, as run.json holds it, back as a config node."""
    return OmegaConf.create(dict(config))


def choices(hydra_config: Any) -> dict[str, str]:
    """The chosen option of each config group, without Hydra's own groups and empty ones."""
    chosen = hydra_config.runtime.choices.items()
    return {
        group: str(choice)
        for group, choice in chosen
        if choice is not None and not group.startswith("hydra/") and group != "local"
    }
