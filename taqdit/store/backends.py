"""Which backends a stage was made on."""

from collections.abc import Iterable, Mapping
from typing import Any

from taqdit.store.digest import canonical_json

UNKNOWN: Mapping[str, Any] = {"backend": "unknown"}
"""Stands for all that a lost stage.json named. It equals no real one, which names its device."""


def among(backend: Mapping[str, Any], backends: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a backend is one of several."""
    return canonical_json(backend) in map(canonical_json, backends)


def worded(backend: Mapping[str, Any]) -> str:
    """A backend in words."""
    if backend == UNKNOWN:
        return "an unknown backend"
    return ", ".join(f"{key} {value}" for key, value in backend.items())


def described(*backends: Mapping[str, Any]) -> str:
    """Backends in words, each that is known in brackets."""
    each = (worded(b) if b == UNKNOWN else f"({worded(b)})" for b in backends)
    return " and ".join(each)
