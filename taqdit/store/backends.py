"""Which backends a stage was made on."""

from collections.abc import Iterable, Mapping
from typing import Any

from taqdit.store.digest import canonical_json


def among(backend: Mapping[str, Any], backends: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a backend is one of several."""
    return canonical_json(backend) in map(canonical_json, backends)


def described(*backends: Mapping[str, Any]) -> str:
    """Backends in words."""
    each = (", ".join(f"{key} {value}" for key, value in backend.items()) for backend in backends)
    return " and ".join(f"({text})" for text in each)
