"""A configuration as overrides: flattened, compared, spelled so that Hydra reads it back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from taqdit.store.secrets import MASK

_NAME = re.compile(r"[A-Za-z_]\w*")


def flatten(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Every value of a nested configuration by its dotted key. Lists are values."""
    return dict(_leaves(config, above))


def _leaves(config: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value and all(map(_NAME.fullmatch, value)):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def agrees(recorded: Any, value: Any) -> bool:
    """Whether a recorded value is `value`; what was masked in it may have been anything."""
    if isinstance(recorded, list) and isinstance(value, list | tuple):
        return len(recorded) == len(value) and all(map(agrees, recorded, value))
    if hides(recorded):
        pattern = "(?s:.+)".join(map(re.escape, str(recorded).split(MASK)))
        return value not in (None, "") and re.fullmatch(pattern, str(value)) is not None
    return type(recorded) is type(value) and bool(recorded == value)


def hides(recorded: Any) -> bool:
    """Whether a part of a recorded value was masked."""
    if isinstance(recorded, Mapping):
        return any(map(hides, recorded.values()))
    if isinstance(recorded, list):
        return any(map(hides, recorded))
    return isinstance(recorded, str) and MASK in recorded


def spell(value: Any) -> str:
    """`value` in Hydra's override grammar. Text is quoted, and nothing in it is interpolated."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{spell(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(spell, value)) + "]"
    if isinstance(value, int | float):
        return repr(value)
    return _quoted(str(value))


def _quoted(text: str) -> str:
    """Single quotes; a backslash counts only before a quote or `${`, and is doubled there."""
    literal = re.sub(r"(\\*)(\$\{)", lambda match: f"{match[1] * 2}\\{match[2]}", text)
    inside = re.sub(r"(\\*)'", lambda match: f"{match[1] * 2}\\'", literal)
    return "'" + re.sub(r"(\\+)\Z", lambda match: match[1] * 2, inside) + "'"
