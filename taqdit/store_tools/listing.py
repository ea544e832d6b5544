"""The lines that `taqdit store ls` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from taqdit.store.disk import relative
from taqdit.store.document import worded
from taqdit.store_tools import RunFound, Survey, Surveyed
from taqdit.store_tools.differing import config_key, differing
from taqdit.store_tools.words import counted, words
from taqdit.words import size

WIDTH = 100  # of what is printed, paths aside


def lines(there: Survey) -> Iterator[str]:
    """What `ls` prints: what is stored, in which state, made from what, for which runs."""
    if not there.stages:
        yield f"the store {there.store} is empty"
    backends = list(dict.fromkeys(map(_backends, filter(_made, there.stages))))
    differs = differing(there)
    for stage in there.stages:
        yield from _described(stage, differs[stage])
        yield f"    {_used(there, stage)}{_beside(stage)}"
        if len(backends) > 1 and _made(stage):
            yield from _wrapped(f"made on {_backends(stage)}")
    for each in there.replaced:
        yield f"{each.name:<27} {'replaced':<16}{f'{each.files} files':<18}{size(each.bytes):>9}"
    yield from notes(there.runs)
    if len(backends) == 1:
        yield from _wrapped(f"made on {backends[0]}", indent="")


def notes(runs: Sequence[RunFound]) -> list[str]:
    """What runs cannot be read or reached, in a few lines."""
    found = [run.note for run in runs if run.note]
    more = [f"and {len(found) - 8} more: taqdit store ls --json names them"] if found[8:] else []
    return [*found[:8], *more]


def below(there: Survey, folder: Path) -> str:
    """A run's folder as seen from the output folder; one that lies elsewhere in full."""
    outputs = there.store.parent.resolve()
    return relative(folder, outputs) if outputs in folder.resolve().parents else str(folder)


def _described(stage: Surveyed, differs: Mapping[str, str]) -> Iterator[str]:
    """What a stage is and in which state: how it differs from the others of its kind goes first."""
    line = f"{stage.name:<28}{stage.state:<16}"
    if not stage.unlisted:
        line += f"{counted(stage.units, stage.unit):<18}{size(stage.bytes):>9}"
    made = words(stage, without=differs)
    told = [f"{config_key(path)}={value}" for path, value in differs.items()]
    more = [f"{len(told) - 8} more (--json)"] if told[8:] else []
    about = "; else ".join(filter(None, [", ".join([*told[:8], *more]), made]))
    inline = not told and len(line) + 2 + len(about) <= WIDTH
    yield f"{line}  {about}".rstrip() if inline else line
    if not inline:
        yield from _wrapped(f"differs in {about}" if told else about)
    if stage.problem:
        yield f"    {stage.state}: {stage.problem}"
    if stage.beyond:
        yield f"    not counted, as the seal does not list it: {_first(stage.beyond)}"
    if stage.held:
        yield f"    at work: {_first(stage.held)}"


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if names[4:] else ""
    return f"{', '.join(names[:4])}{more}"


def _wrapped(text: str, *, indent: str = "    ") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _made(stage: Surveyed) -> bool:
    return bool(stage.backends)


def _backends(stage: Surveyed) -> str:
    return " and ".join(map(worded, stage.backends))


def _used(there: Survey, stage: Surveyed) -> str:
    runs = there.references(stage)
    last = f"{', the last' if runs[1:] else ':'} {below(there, runs[-1].folder)}" if runs else ""
    return f"{counted(len(runs), 'run')}{last}"


def _beside(stage: Surveyed) -> str:
    kinds = {"moved aside": stage.aside, "leftover": stage.leftovers, "unmerged": stage.working}
    return "".join(f"; {len(files)} {name}" for name, files in kinds.items() if files)
