"""`taqdit compare RUN_DIR RUN_DIR ... [--into FOLDER]`: one page about several runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from taqdit import config
from taqdit.config.parser import Arguments
from taqdit.errors import InputError
from taqdit.report.run_folder import RECORD, SUMMARY, RunFolder
from taqdit.runs.record import new_folder
from taqdit.tracking.groups import SWEEP_FILE


def compare(arguments: Sequence[str]) -> int:
    """Compare runs and say where the page lies. A sweep's folder stands for its jobs.

    Raises InputError for folders that are no runs, or fewer than two.
    """
    parser = Arguments("compare", "Compare runs: a page, a table and figures.")
    parser.add_argument(
        "folders", nargs="+", metavar="RUN_DIR", help="a run's folder, or a sweep's for all of it"
    )
    parser.add_argument(
        "--into",
        type=Path,
        metavar="FOLDER",
        help="where the page goes (default: a sweep's own folder if only that is given, else"
        " <outputs>/comparisons/<date>/<time>)",
    )
    given = parser.parse_args(list(arguments))
    folders = _runs(Path(name) for name in given.folders)
    into = given.into or _own_folder(given.folders)
    if into is None:
        into = new_folder(Path(config.compose_config().output_dir), "comparisons")
    from taqdit.report.comparison.side_by_side import compare as compare_runs

    compare_runs(folders, into)
    print(f"comparison    {into / 'comparison.html'}")
    return 0


def _runs(named: Iterable[Path]) -> list[Path]:
    """The run folders that are meant, each once, in the order given."""
    folders: dict[Path, Path] = {}
    problems = []
    for folder in named:
        runs = [folder] if RunFolder(folder).is_run else _jobs(folder)
        if not runs:
            problems.append(f"{folder} is no run's folder: it has no {RECORD} or {SUMMARY}")
        for run in runs:
            folders.setdefault(run.resolve(), run)
    if not problems and len(folders) < 2:
        problems.append(f"{len(folders)} run is given; a comparison needs two or more")
    if problems:
        raise InputError(*problems)
    return list(folders.values())


def _jobs(sweep: Path) -> list[Path]:
    """The jobs of a sweep's folder by number, those too that left nothing but Hydra's record."""
    if not (sweep / SWEEP_FILE).is_file():
        return []
    jobs = [
        path for path in sweep.iterdir() if RunFolder(path).is_run or (path / ".hydra").is_dir()
    ]
    return sorted(jobs, key=lambda path: (len(path.name), path.name))


def _own_folder(named: Sequence[str]) -> Path | None:
    """The folder of the sweep that alone is compared."""
    only = Path(named[0]) if len(named) == 1 else None
    return only if only and (only / SWEEP_FILE).is_file() else None
