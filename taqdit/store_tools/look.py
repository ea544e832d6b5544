"""`taqdit store ls | du | verify`: nothing is changed by any of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taqdit import config
from taqdit.config.parser import Arguments
from taqdit.errors import CorruptError
from taqdit.stages.preflight import size
from taqdit.store_tools import Checked, Finding, Survey, Surveyed, find_store
from taqdit.store_tools import verify as verify_stages
from taqdit.store_tools.differing import differing
from taqdit.store_tools.listing import below, lines
from taqdit.store_tools.remedies import commands
from taqdit.store_tools.usage import Usage, usage
from taqdit.store_tools.verification import GAP
from taqdit.store_tools.words import counted, made_of

STAGE_HELP = "only this kind of stage (statistics), or this folder or the beginning of its name"
SCHEMA = 1  # of the JSON: raise it when a key changes its meaning or goes


def parser(verb: str, description: str) -> Arguments:
    """Arguments that all of them take."""
    found = Arguments(f"store {verb}", description)
    found.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help="an output folder, or the store in it (default: the configured output_dir)",
    )
    return found


def survey(folder: Path | None) -> Survey:
    """What lies in the store of a folder. Raises InputError if there is none."""
    return Survey.of(find_store(folder or Path(config.compose_config().output_dir)))


def tell(text: str) -> None:
    """Print a line; what is no printable character (names of files may hold any) as its escape."""
    print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), flush=True)


def ls(arguments: Sequence[str]) -> int:
    """What is stored, in which state, made from what, for which runs."""
    found = parser("ls", "List the stages of a store.")
    _add_json(found)
    given = found.parse_args(list(arguments))
    there = survey(given.folder)
    if given.json:
        _print_json(listing(there))
    else:
        for line in lines(there):
            tell(line)
    return 0


def du(arguments: Sequence[str]) -> int:
    """How many bytes: by stage, by folder, moved-aside files and leftovers apart."""
    found = parser("du", "Say what takes how much space in a store.")
    _add_json(found)
    given = found.parse_args(list(arguments))
    there = survey(given.folder)
    spent = usage(there)
    if given.json:
        _print_json({"schema": SCHEMA, "store": str(there.store), **spent.as_dict()})
    else:
        _print_usage(there, spent)
    return 0


def verify(arguments: Sequence[str]) -> int:
    """Read and check every file; exit code 5 if one is corrupt."""
    found = parser(
        "verify",
        "Check digests, numbers, shapes and counts of a store. Changes nothing; the exit code is 5"
        " if something is corrupt.",
    )
    _add_json(found)
    found.add_argument("--stage", metavar="NAME", help=STAGE_HELP)
    given = found.parse_args(list(arguments))
    there = survey(given.folder)
    chosen, checked = there.chosen(given.stage), []
    if not given.json:
        tell(f"{'STAGE':<28}{'STATE':<16}{'FILES':>7}{'SIZE':>11}{'CORRUPT':>9}{'WARNINGS':>10}")
    for each in verify_stages(chosen):
        checked.append(each)
        if not given.json:
            tell(_row(each))
    if given.json:
        _print_json(verdict(there, checked))
    else:
        _print_verdict(there, checked)
    return CorruptError.exit_code if any(each.corrupt for each in checked) else 0


def listing(there: Survey) -> dict[str, Any]:
    """`ls --json`."""
    differs = differing(there)
    return {
        "schema": SCHEMA,
        "store": str(there.store),
        "runs": len(there.runs),
        "unreadable_runs": [
            {"run": below(there, run.folder), "problem": run.note} for run in there.runs if run.note
        ],
        "stages": [_stage(there, stage, differs[stage]) for stage in there.stages],
        "replaced": [
            {"folder": each.name, "files": each.files, "bytes": each.bytes}
            for each in there.replaced
        ],
    }


def verdict(there: Survey, checked: Sequence[Checked]) -> dict[str, Any]:
    """`verify --json`."""
    return {
        "schema": SCHEMA,
        "store": str(there.store),
        "files": sum(each.files for each in checked),
        "bytes": sum(each.bytes for each in checked),
        "corrupt": sum(len(each.corrupt) for each in checked),
        "warnings": sum(len(each.warnings) for each in checked),
        "stages": [
            {
                "folder": each.stage.name,
                "state": each.stage.state,
                "files": each.files,
                "bytes": each.bytes,
                "corrupt": len(each.corrupt),
                "warnings": len(each.warnings),
            }
            for each in checked
        ],
        "findings": [_finding(finding) for each in checked for finding in each.findings],
    }


def _finding(found: Finding) -> dict[str, Any]:
    return {
        "severity": found.severity,
        "folder": found.stage,
        "file": found.file,
        "kind": found.kind,
        "words": found.words,
        "bytes": found.bytes,
    }


def _stage(there: Survey, stage: Surveyed, differs: Mapping[str, str]) -> dict[str, Any]:
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
        "made_of": made_of(stage),
        "backends": stage.backends,
        "runs": [below(there, run.folder) for run in there.references(stage)],
        "held": list(stage.held),
        "working": dict(stage.working),
        "aside": dict(stage.aside),
        "leftovers": dict(stage.leftovers),
        "beyond_seal": stage.beyond,
        "differs": dict(differs),
    }


def _print_usage(there: Survey, spent: Usage) -> None:
    tell(f"{size(spent.bytes):>11}  {there.store}")
    for kind, share in spent.stages.items():
        what = f"{kind}, {counted(share.folders, 'folder')}, {counted(share.files, 'file')}"
        tell(f"{size(share.bytes):>11}  {what}")
        for folder, part in spent.folders.items() if share.folders > 1 else ():
            if folder.startswith(f"{kind}/"):
                tell(f"{size(part.bytes):>11}    {folder}, {counted(part.files, 'file')}")
    if spent.working.files:
        what = f"of it checkpoints and parts, {counted(spent.working.files, 'file')}"
        tell(f"{size(spent.working.bytes):>11}  {what}")
    for name, share in spent.beside.items():
        if share.files:
            tell(f"{size(share.bytes):>11}  {name}, {counted(share.files, 'file')}")
    for stage in there.stages:
        if stage.unlisted:
            tell(f"{'unknown':>11}  {stage.name}: {stage.problem}")


def _row(each: Checked) -> str:
    stage = each.stage
    return (
        f"{stage.name:<28}{stage.state:<16}{each.files:>7}{size(each.bytes):>11}"
        f"{len(each.corrupt):>9}{len(each.warnings):>10}"
    )


def _print_verdict(there: Survey, checked: Sequence[Checked]) -> None:
    findings = [finding for each in checked for finding in each.findings]
    for finding in findings:
        tell(f"{finding.severity:<9}{finding}")
    corrupt, warnings = (sum(map(len, each)) for each in _columns(checked))
    files, read = sum(each.files for each in checked), sum(each.bytes for each in checked)
    tell(
        f"{counted(files, 'file')}, {size(read)}: {corrupt} corrupt, {counted(warnings, 'warning')}"
    )
    if corrupt:
        tell(f"mend it: taqdit store repair {there.store.parent}")
        return
    gaps = [each.stage for each in checked if any(found.kind == GAP for found in each.findings)]
    for command in commands(there, gaps):
        tell(f"make what is missing: {command}")


def _columns(checked: Sequence[Checked]) -> Iterable[list[list[Finding]]]:
    return [each.corrupt for each in checked], [each.warnings for each in checked]


def _add_json(found: Arguments) -> None:
    found.add_argument(
        "--json",
        action="store_true",
        help=f"print one JSON object, for programs: its keys keep their meaning while schema is"
        f" {SCHEMA}",
    )


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1))
