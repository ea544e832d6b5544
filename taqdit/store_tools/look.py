"""`taqdit store ls | du | verify`: nothing is changed by any of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from taqdit import config
from taqdit.config.parser import Arguments
from taqdit.errors import CorruptError
from taqdit.store_tools import Checked, Survey, Surveyed, find_store, listing, usage
from taqdit.store_tools import verify as verify_stages
from taqdit.store_tools.remedies import commands
from taqdit.store_tools.verification import GAP
from taqdit.words import counted, size

STAGE_HELP = "only this kind of stage (statistics), or this folder or the beginning of its name"
SCHEMA = 1  # of the JSON: raise it when a key changes its meaning or goes
_JSON = f"print one JSON object, for programs: its keys keep their meaning while schema is {SCHEMA}"


def parser(verb: str, description: str, *, json: bool = False) -> Arguments:
    """Arguments that all of them take."""
    arguments = Arguments(f"store {verb}", description)
    arguments.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help="an output folder, or the store in it (default: the configured output_dir)",
    )
    if json:
        arguments.add_argument("--json", action="store_true", help=_JSON)
    return arguments


def survey_of(folder: Path | None) -> Survey:
    """What lies in the store of a folder. Raises InputError if there is none."""
    return Survey.of(find_store(folder or Path(config.compose_config().output_dir)))


def tell(text: str) -> None:
    """Print a line; what is no printable character (names of files may hold any) as its escape."""
    print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), flush=True)


def ls(arguments: Sequence[str]) -> int:
    """What is stored, in which state, made from what, for which runs."""
    return _show("ls", "List the stages of a store.", listing, arguments)


def du(arguments: Sequence[str]) -> int:
    """How many bytes: by stage, by folder, moved-aside files and leftovers apart."""
    return _show("du", "Say what takes how much space in a store.", usage, arguments)


def _show(verb: str, about: str, view: ModuleType, arguments: Sequence[str]) -> int:
    given = parser(verb, about, json=True).parse_args(list(arguments))
    survey = survey_of(given.folder)
    if given.json:
        _print_json(survey, view.as_json(survey))
        return 0
    for line in view.lines(survey):
        tell(line)
    return 0


def verify(arguments: Sequence[str]) -> int:
    """Read and check every file; exit code 5 if one is corrupt."""
    description = (
        "Check digests, numbers, shapes and counts of a store. Changes nothing; the exit code is 5"
        " if something is corrupt."
    )
    arguments_of = parser("verify", description, json=True)
    arguments_of.add_argument("--stage", metavar="NAME", help=STAGE_HELP)
    given = arguments_of.parse_args(list(arguments))
    survey = survey_of(given.folder)
    stages, checked = survey.chosen(given.stage), []
    if not given.json:
        tell(f"{'STAGE':<28}{'STATE':<16}{'FILES':>7}{'SIZE':>11}{'CORRUPT':>9}{'WARNINGS':>10}")
    for stage in verify_stages(stages):
        checked.append(stage)
        if not given.json:
            tell(_row(stage.stage, **_counts([stage])))
    if given.json:
        _print_json(survey, verdict(checked))
    else:
        for line in _verdict_lines(survey, checked):
            tell(line)
    return CorruptError.exit_code if any(stage.corrupt for stage in checked) else 0


def verdict(checked: Sequence[Checked]) -> dict[str, Any]:
    """`verify --json`."""
    stages = [(result.stage, _counts([result])) for result in checked]
    return {
        **_counts(checked),
        "stages": [{"folder": s.name, "state": s.state, **counts} for s, counts in stages],
        "findings": [
            {
                "severity": finding.severity,
                "folder": finding.stage,
                "file": finding.file,
                "kind": finding.kind,
                "words": finding.words,
                "bytes": finding.bytes,
            }
            for result in checked
            for finding in result.findings
        ],
    }


def _counts(checked: Sequence[Checked]) -> dict[str, int]:
    return {
        "files": sum(result.files for result in checked),
        "bytes": sum(result.bytes for result in checked),
        "corrupt": sum(len(result.corrupt) for result in checked),
        "warnings": sum(len(result.warnings) for result in checked),
    }


def _row(stage: Surveyed, files: int, bytes: int, corrupt: int, warnings: int) -> str:
    row = f"{stage.name:<28}{stage.state:<16}{files:>7}{size(bytes):>11}"
    return f"{row}{corrupt:>9}{warnings:>10}"


def _verdict_lines(survey: Survey, checked: Sequence[Checked]) -> Iterator[str]:
    findings = [finding for result in checked for finding in result.findings]
    yield from (f"{finding.severity:<9}{finding}" for finding in findings)
    files, read, corrupt, warnings = _counts(checked).values()
    total = f"{counted(files, 'file')}, {size(read)}"
    yield f"{total}: {corrupt} corrupt, {counted(warnings, 'warning')}"
    if corrupt:
        yield f"mend it: taqdit store repair {survey.store.parent}"
        return
    gaps = {finding.stage for finding in findings if finding.kind == GAP}
    for command in commands(survey, [s for s in survey.stages if s.name in gaps]):
        yield f"make what is missing: {command}"


def _print_json(survey: Survey, contents: Mapping[str, Any]) -> None:
    print(json.dumps({"schema": SCHEMA, "store": str(survey.store), **contents}, indent=1))
