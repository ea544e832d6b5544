"""From a config node to an object: `build`, and what it may reach.

An option is a frozen dataclass, or a function that gives one. YAML never selects code by itself: a
`_target_` names a public option of one of taqdit's option modules, or of a module that the
environment variable TAQDIT_PLUGINS names.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from taqdit.config.typecheck import describe_type, fits
from taqdit.errors import ConfigError
from taqdit.store.secrets import mask_secrets

OPTION_MODULES = (
    "taqdit.models.options",
    "taqdit.prompts",
    "taqdit.schedule",
    "taqdit.sampler",
    "taqdit.timestep_selection",
    "taqdit.tracer",
    "taqdit.analysis",
    "taqdit.plots",
    "taqdit.tracking",
)


def allowed_modules() -> tuple[str, ...]:
    """Option modules of taqdit, then those named by TAQDIT_PLUGINS (comma separated)."""
    plugins = os.environ.get("TAQDIT_PLUGINS", "")
    return OPTION_MODULES + tuple(name.strip() for name in plugins.split(",") if name.strip())


def resolve(target: str) -> Any:
    """The option that `target` ('module.name') names.

    Raises ConfigError unless the module is an option module, lists the name in `__all__`, and
    defines the object itself: nothing that a module merely imported can be reached.
    """
    module_name, _, name = target.rpartition(".")
    if module_name not in allowed_modules():
        raise ConfigError(
            f"_target_={target!r} is not an option of taqdit; use one of its option modules, or"
            " name your own module in the environment variable TAQDIT_PLUGINS"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"_target_={target!r}: module cannot be imported ({error})") from error
    option = getattr(module, name, None) if name in getattr(module, "__all__", ()) else None
    if not _is_option(option, module_name):
        raise ConfigError(f"_target_={target!r} is not a public option of {module_name}")
    return option


def _is_option(option: Any, module_name: str) -> bool:
    """Whether it is a function or a dataclass, defined in the module or below it."""
    known = inspect.isfunction(option) or (inspect.isclass(option) and is_dataclass(option))
    return known and f"{option.__module__}.".startswith(f"{module_name}.")


def build(node: Mapping[str, Any]) -> Any:
    """The object a config node describes: `_target_` called with the node's other keys.

    With `_partial_: true` the function is bound, not called. Raises ConfigError or InputError.
    """
    target, arguments = _split(node)
    if node.get("_partial_", False):
        return functools.partial(target, **arguments)
    return target(**arguments)


def _split(node: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    arguments = plain(node)
    target = resolve(str(arguments.pop("_target_", None)))
    partial = bool(arguments.pop("_partial_", False))
    problems = list(_signature_problems(target, arguments, partial=partial))
    if problems:
        raise ConfigError(*problems)
    return target, arguments


def plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """A config node as resolved Python containers."""
    if isinstance(node, DictConfig):
        return dict(OmegaConf.to_container(node, resolve=True, throw_on_missing=True))  # type: ignore[arg-type]
    return dict(node)


def _signature_problems(
    target: Any, arguments: Mapping[str, Any], *, partial: bool
) -> Iterator[str]:
    """`partial`: arguments that are no keywords are given when the option is called."""
    parameters, hints = dict(inspect.signature(target).parameters), get_type_hints(target)
    if partial:
        parameters = {k: each for k, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
    for name, value in arguments.items():
        shown = f"{name}={mask_secrets({name: value})[name]!r}"
        if name not in parameters:
            known = ", ".join(parameters) or "no argument"
            yield f"{shown} is not an argument of {target.__name__}; it takes {known}"
        elif name in hints and not fits(value, hints[name]):
            yield f"{shown} must be {describe_type(hints[name])}"
