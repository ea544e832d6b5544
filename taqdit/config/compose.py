"""Composing with Hydra. Whatever Hydra may rename between versions stays in here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from taqdit.config.foreign import refuse_code
from taqdit.config.launchers import missing_plugin
from taqdit.config.refused import culprit, key_of, left_out, meant, names
from taqdit.errors import ConfigError


def config_folder() -> Path:
    """The folder `conf/`: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent.parent
    packaged = here / "conf"
    return packaged if (packaged / "config.yaml").is_file() else here.parent / "conf"


def compose_config(overrides: Sequence[str] = (), *, with_hydra: bool = False) -> DictConfig:
    """The configuration that the command line `taqdit *overrides` would run.

    Raises ConfigError for what Hydra refuses, a line for each override, and for files with more
    than settings.
    """
    refuse_code(overrides, config_folder())
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
            return _composed(overrides, with_hydra=with_hydra)
    finally:
        GlobalHydra.instance().clear()


def _composed(overrides: Sequence[str], *, with_hydra: bool) -> DictConfig:
    """Compose; without what is refused, to say what else is, and which keys there are."""
    left: list[str] | None = list(overrides)
    refused: list[tuple[str, str | None]] = []
    first, known = None, [path.name for path in config_folder().iterdir() if path.is_dir()]
    while left is not None:
        try:
            composed = compose("config", overrides=left, return_hydra_config=with_hydra)
        except Exception as error:
            if not hydra_complains(error):
                raise
            first, text = first or error, one_line(error)
            wrong = culprit(error, text, left)
            if wrong is not None and not names(text, key_of(wrong)):
                text = f"{key_of(wrong)}: {text}"  # what cannot be parsed is told by a part
            refused.append((text, wrong))
            left = None if wrong is None else left_out(wrong, left)
        else:
            if first is None:
                return composed
            known += _keys(OmegaConf.to_container(composed))
            left = None
    raise ConfigError(*(text + meant(text, wrong, known) for text, wrong in refused)) from first


def _keys(node: Any, above: str = "") -> Iterator[str]:
    """Every key of a nested mapping, sections included, from the top."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{above}{key}"
        yield from _keys(value, f"{above}{key}.")


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
        parts.append(" ".join(_ABOUT_HYDRA.split(text)[0].split()))
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
