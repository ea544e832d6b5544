"""What is not as it was when a run was made: versions, backend, prompts, weights, stages."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from taqdit.runs.record import installed
from taqdit.stages import kinds
from taqdit.stages.fingerprints import fingerprint
from taqdit.stages.plan import Plan
from taqdit.store.digest import STAGE, read_object

DIGITS = 12  # of a digest, for people


def differences(record: Mapping[str, Any], store: Path, plan: Plan) -> Iterator[str]:
    """One line per difference between a run's record (run.json) and what `plan` would run now.

    Weights that are not on this machine are not fetched: a line says that they are not compared.
    """
    from taqdit.backend import describe

    versions = {name: installed(name) for name in record["versions"]}
    yield from _changes("version", record["versions"], versions)
    yield from _changes("version", {"python": record.get("python")}, {"python": _python()})
    yield from _changes("backend", record.get("backend") or {}, describe())
    if not record["stages"]:
        return
    if not plan.model.weights_present():
        yield "  weights   are not on this machine, so neither they nor the stages are compared"
        return
    yield from _stages(record["stages"], store, plan)


def _stages(marks: Mapping[str, str], store: Path, plan: Plan) -> Iterator[str]:
    """Stages that will not be found in the store, and why; changed weights once."""
    before: dict[str, str] = {}
    for name, mark in marks.items():
        kind = kinds.stored().get(name)
        if kind is None or kind.inputs is None or not kind.is_used(plan):
            continue
        inputs = kind.inputs(plan)
        recorded = _stored_inputs(store, name, mark)
        if recorded is None:
            yield f"  stage     {name}: {mark[:DIGITS]} is not in the store any more"
        elif fingerprint(inputs) != mark:
            before |= recorded.get("weights") or {}
            keys = [k for k in sorted(recorded | inputs) if recorded.get(k) != inputs.get(k)]
            yield f"  stage     {name}: other inputs ({', '.join(keys)}), so another folder"
    if before:
        shown = {name: digest[:DIGITS] for name, digest in before.items()}
        now = {name: digest[:DIGITS] for name, digest in plan.weights.items()}
        yield from _changes("weights", shown, now)


def _stored_inputs(store: Path, name: str, mark: str) -> dict[str, Any] | None:
    """The inputs that a stage's folder names; None if it is not there or cannot be read."""
    path = store / name / mark[:12] / STAGE
    try:
        inputs = read_object(path).get("inputs")
    except (OSError, ValueError):
        return None
    return inputs if isinstance(inputs, dict) else None


def _changes(kind: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in [*then, *(each for each in now if each not in then)]:
        if then.get(name) != now.get(name):
            yield f"  {kind:<10}{name}: {_word(then, name)} then, {_word(now, name)} now"


def _word(values: Mapping[str, Any], name: str) -> str:
    return "none" if values.get(name) is None else str(values[name])


def _python() -> str:
    return sys.version.split()[0]
