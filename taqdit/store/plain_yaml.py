"""YAML files that Hydra left in a run's folder, read without trusting them.

Aliases cost exponential time, and the C loader of PyYAML overflows its stack on deep nesting.
"""

from __future__ import annotations

from pathlib import Path

import yaml  # type: ignore[import-untyped]

from taqdit.store.disk import reading

MAX_BYTES, MAX_DEPTH, MAX_EVENTS = 2**18, 50, 10_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def checked_text(path: Path) -> str:
    """The text of a file, once it is known to be plain YAML. OSError when it cannot be read,
    ValueError for anything else."""
    with reading(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    text, depth = data.decode(), 0
    try:
        for number, event in enumerate(yaml.parse(text, Loader=_LOADER)):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or number > MAX_EVENTS or isinstance(event, yaml.AliasEvent):
                raise ValueError("it holds an alias, nests too deeply, or is too long")
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML: {' '.join(str(error).split())[:200]}") from error
    return text


def read(path: Path) -> object:
    """What a file holds: lists, mappings by text, and scalars. Errors as `checked_text`."""
    text = checked_text(path)
    try:
        return yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML: {' '.join(str(error).split())[:200]}") from error
