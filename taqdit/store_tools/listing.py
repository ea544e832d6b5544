"""What `taqdit store ls` prints, for people and for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from taqdit.store.disk import relative
from taqdit.store.document import worded
from taqdit.store_tools import RunFound, Survey, Surveyed
from taqdit.store_tools.settings import config_key, differences, in_words, settings
from taqdit.words import counted, listed, size

WIDTH = 100  # of what is printed, paths aside
_SHOWN = 8  # differences, and runs with a problem


def lines(survey: Survey) -> Iterator[str]:
    """What is stored, in which state, made from what, for which runs."""
    if not survey.stages:
        yield f"the store {survey.store} is empty"
    differing = differences(survey)
    backends = {stage: " and ".join(map(worded, stage.backends)) for stage in survey.stages}
    alike = len({*backends.values()} - {""}) == 1
    for stage in survey.stages:
        yield from _described(stage, differing[stage])
        if backends[stage] and not alike:
            yield from _wrapped(f"made on {backends[stage]}")
        yield f"    {_used(survey, stage)}"
    for old in survey.replaced:
        yield f"{old.name:<27} {'replaced':<16}{counted(old.files, 'file'):<18}{size(old.bytes):>9}"
    yield from notes(survey.runs)
    if alike:
        yield from _wrapped(f"made on {max(backends.values())}", "")


def notes(runs: Sequence[RunFound]) -> list[str]:
    """What runs cannot be read or reached, in a few lines."""
    texts = [run.note for run in runs if run.note]
    more = [f"and {len(texts) - _SHOWN} more: taqdit store ls --json names them"]
    return [*texts[:_SHOWN], *(more if texts[_SHOWN:] else [])]


def as_json(survey: Survey) -> dict[str, Any]:
    """The same for programs."""
    differing = differences(survey)
    return {
        "runs": len(survey.runs),
        "unreadable_runs": [
            {"run": _below(survey, run.folder), "problem": run.note}
            for run in survey.runs
            if run.note
        ],
        "stages": [_stage(survey, stage, differing[stage]) for stage in survey.stages],
        "replaced": [
            {"folder": old.name, "files": old.files, "bytes": old.bytes} for old in survey.replaced
        ],
    }


def _stage(survey: Survey, stage: Surveyed, differing: Mapping[str, str]) -> dict[str, Any]:
    return {
        "stage": stage.kind,
        "folder": stage.name,
        "fingerprint": stage.fingerprint or None,
        "state": stage.state,
        "problem": stage.problem,
        "units": stage.units,
        "unit": stage.unit,
        "files": len(stage.files),
        "bytes": stage.bytes,
        "made_of": settings(stage),
        "backends": stage.backends,
        "runs": [_below(survey, run.folder) for run in survey.references(stage)],
        "held": list(stage.held),
        "working": dict(stage.working),
        "aside": dict(stage.aside),
        "leftovers": dict(stage.leftovers),
        "beyond_seal": stage.beyond,
        "differs": dict(differing),
    }


def _described(stage: Surveyed, differing: Mapping[str, str]) -> Iterator[str]:
    """What a stage is, in which state, and how it differs from the others of its kind."""
    line, made_of = f"{stage.name:<28}{stage.state:<16}", in_words(stage)
    if not stage.unlisted:
        line += f"{counted(stage.units, stage.unit):<18}{size(stage.bytes):>9}"
    fits = len(line) + 2 + len(made_of) <= WIDTH
    yield from [f"{line}  {made_of}".rstrip()] if fits else [line, *_wrapped(made_of)]
    if differing:
        texts = [f"{config_key(path)}={value}" for path, value in differing.items()]
        yield from _wrapped(f"differs in {listed(texts, _SHOWN)}")
    if stage.problem:
        yield f"    {stage.state}: {stage.problem}"
    if stage.beyond:
        yield f"    not counted, as the seal does not list it: {listed(stage.beyond, 4)}"
    if stage.held:
        yield f"    at work: {listed(stage.held, 4)}"


def _used(survey: Survey, stage: Surveyed) -> str:
    """By which runs, and what lies beside the data."""
    runs = survey.references(stage)
    which = ": " if len(runs) == 1 else ", the last: "
    last = f"{which}{_below(survey, runs[-1].folder)}" if runs else ""
    beside = {"moved aside": stage.aside, "leftover": stage.leftovers, "unmerged": stage.working}
    rest = "".join(f"; {len(files)} {name}" for name, files in beside.items() if files)
    return f"{counted(len(runs), 'run')}{last}{rest}"


def _below(survey: Survey, folder: Path) -> str:
    """A run's folder as seen from the output folder; one that lies elsewhere in full."""
    outputs = survey.store.parent.resolve()
    return relative(folder, outputs) if outputs in folder.resolve().parents else str(folder)


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    lines = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    lines.initial_indent, lines.subsequent_indent = indent, f"{indent}  "
    return lines.wrap(text)
