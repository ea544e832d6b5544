"""What a run leaves behind about itself: run.json, summary.json and its closing words."""

from __future__ import annotations

import logging
import resource
import socket
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from taqdit.activations.opened import ImportedStatistics
from taqdit.activations.stored import Statistics
from taqdit.errors import StorageError
from taqdit.stages.plan import Plan
from taqdit.stages.preflight import size
from taqdit.store import disk, make_folder, publish_json, sha256_file
from taqdit.store.aside import FIRST
from taqdit.store.digest import read_object, stamp
from taqdit.store.secrets import mask_secrets

log = logging.getLogger(__name__)

RECORD, SUMMARY = "run.json", "summary.json"
FOLDERS = ("runs", "sweeps")  # in an output folder: where runs lie, unless one is told otherwise
POINTERS = "runs"  # in a store: a file for each run whose folder lies elsewhere
EARLIER = "earlier"
_REFERRING = ("stages", "imported", "imported_statistics")  # keys of run.json
PACKAGES = ("taqdit", "mlx", "diffusionkit", "numpy", "hydra-core", "omegaconf", "wandb")


def run_record(
    plan: Plan,
    *,
    run_id: str,
    choices: Mapping[str, str],
    folder: Path,
    fingerprints: Mapping[str, str],
    backend: Mapping[str, Any],
) -> dict[str, Any]:
    """run.json: everything that says what was run, and where its data are."""
    imported, statistics = plan.imported, plan.imported_statistics
    return {
        "schema": 1,
        "run_id": run_id,
        "choices": dict(choices),
        "config": mask_secrets(plan.config),
        "prompts": list(plan.prompts.texts),
        "prompt_seeds": list(plan.prompts.seeds),
        "imported": imported and {"path": str(imported.resolve()), "sha256": sha256_file(imported)},
        "imported_statistics": statistics and str(statistics.resolve()),
        "store": disk.relative(plan.output_dir / "store", folder),
        "stages": dict(fingerprints),
        "weights": plan.weights if fingerprints else {},
        "backend": dict(backend),
        "versions": {name: installed(name) for name in PACKAGES},
        "python": sys.version.split()[0],
    }


def publish_record(folder: Path, document: Mapping[str, Any]) -> None:
    """Publish run.json, in the place of a former run's: what that referred to is named on, as
    `earlier`, and a warning says where files of other settings may lie beside.

    It and `publish_pointers` are to be called before any stage is looked for: `taqdit store gc`
    keeps what a record names.
    """
    try:
        old = read_object(folder / RECORD)
    except (OSError, ValueError):
        old = {}
    if old.get("stages") and old.get("config") != document["config"]:
        log.warning(
            "%s holds a run of other settings: what this one does not write anew stays from that"
            " one",
            folder,
        )
    publish_json(folder / RECORD, {**document, EARLIER: _earlier(old, document)})


def went_well(folder: Path) -> bool:
    """Whether a run in this folder has ended well."""
    try:
        return read_object(folder / SUMMARY).get("status") == "ok"
    except (OSError, ValueError):
        return False


def publish_pointers(folder: Path, store: Path, document: Mapping[str, Any]) -> None:
    """Publish a pointer to a run's folder in every store that it refers to: its own one if it has
    stages there, and those that it reads files of. A store beside whose `runs` or `sweeps` it lies
    needs none.

    They come after the record, so that one without a record means that the run has been deleted.
    Where another's store cannot be written, a warning says so.
    """
    place, own = folder.resolve(), [store.resolve()] if document["stages"] else []
    for home in dict.fromkeys([*own, *_stores_read(document)]):
        if any(home.parent / name in place.parents for name in FOLDERS):
            continue
        try:
            _point(home, place, document)
        except StorageError as error:
            if home in own:
                raise
            log.warning("`taqdit store gc` of %s will not know of this run: %s", home, error)


def _earlier(old: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    """What the old record names and the new one does not: folders of stages, and paths."""
    before = old[EARLIER] if isinstance(old.get(EARLIER), list) else []
    named = {each for each in (*before, *_named(old)) if isinstance(each, str)}
    return sorted(named - {*_named(document)})


def _named(document: Mapping[str, Any]) -> Iterator[Any]:
    stages, imported = document.get("stages"), document.get("imported")
    if isinstance(stages, Mapping):
        yield from (f"{kind}/{str(mark)[:12]}" for kind, mark in stages.items())
    if isinstance(imported, Mapping):
        yield imported.get("path")
    yield document.get("imported_statistics")


def _point(store: Path, folder: Path, document: Mapping[str, Any]) -> None:
    with disk.guarded("read", folder.parent):
        above = folder.parent.stat().st_ino
    found = {"schema": 1, "folder": str(folder), "host": socket.gethostname(), "parent": above}
    make_folder(store / POINTERS)
    pointer = stamp({**found, **{key: document[key] for key in _REFERRING}})
    publish_json(store / POINTERS / f"{document['run_id']}.json", pointer)


def _stores_read(document: Mapping[str, Any]) -> Iterator[Path]:
    """The stores in which files lie that a run reads: two above the folder of a stage."""
    imported = document["imported"]
    for name in filter(None, (imported and imported["path"], document["imported_statistics"])):
        path = Path(name).resolve()
        for stage in (path, *path.parents):
            always_kept = stage.parent.name == "imported"
            if len(stage.parts) > 3 and (stage / FIRST).is_file() and not always_kept:
                yield stage.parents[1]


def installed(package: str) -> str | None:
    """Version of an installed package; None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_calibration(points: Any) -> dict[str, Any]:
    """Counts and steps of a calibration set, for summaries and artifacts."""
    return {
        "points": len(points),
        "steps": [int(step) for step in points.steps],
        "cfg_scale": float(points.cfg_scale),
        "prompts": len(points.prompts),
    }


def lineage(kind: str, path: Path, fingerprint: str) -> dict[str, str]:
    """What something was made of, as the metadata of its artifact say it."""
    name = f"{kind}-{fingerprint[:12]}"
    return {"name": name, "type": kind, "path": str(path), "fingerprint": fingerprint}


def describe_statistics(statistics: Statistics | ImportedStatistics) -> dict[str, Any]:
    """What activation statistics cover, for summaries and artifacts."""
    found = {"sites": len(statistics.sites), "steps": int(statistics.num_steps)}
    if isinstance(statistics, ImportedStatistics):
        return found
    return {
        **found,
        "trajectories": int(statistics.extent),
        "folds": int(statistics.folds),
        "fingerprint": statistics.fingerprint,
    }


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_mlx_memory() -> int:
    """Most bytes that MLX's allocator held so far; unified memory on a Mac is counted here."""
    from taqdit.backend import peak_memory as of_allocator

    return of_allocator()


def backend_words(backend: Mapping[str, Any]) -> str:
    """The arithmetic in one line; where it matters, how to make it faster."""
    words = (
        f"mlx {backend['mlx']} on {backend['device']} ({backend['chip']}), BLAS {backend['blas']}"
    )
    if backend["blas"] == "bundled":
        words += "; a faster one: README, 'Speed on Linux'"
    return words


def closing_words(summary: Mapping[str, Any], folder: Path, tracked: str) -> str:
    """What was made or reused, where, how long, peak memory; first layers and verdict."""
    lines = [summary["layers"], ""] if "layers" in summary else []
    if analysis := summary.get("analysis"):
        lines += [
            f"{topic if first else '':<14}{text}"
            for topic, texts in analysis["verdict"].items()
            for first, text in zip((True,) + (False,) * len(texts), texts, strict=False)
        ]
        lines.append("")
    for report in summary["stages"]:
        words = f"{report['made']} made, {report['reused']} reused"
        if report["moved_aside"]:
            words += f", {len(report['moved_aside'])} corrupt moved aside and redone"
        lines.append(f"{report['name']:<14}{words:<28} store/{report['folder']}")
    statistics = summary.get("statistics", {})
    if made := [statistics[key] for key in ("layers", "npz") if key in statistics]:
        lines.append(f"{'':<14}-> {', '.join(made)}")
    if "calibration" in summary:
        found = summary["calibration"]
        lines.append(
            f"{'calibration':<14}{found['points']} points at {len(found['steps'])} steps"
            f"{' -> ' + found['npz'] if 'npz' in found else ''}"
        )
    if summary.get("figures"):
        lines.append(f"{'figures':<14}{len(summary['figures'])} files in figures/")
    if analysis := summary.get("analysis"):
        lines.append(f"{'analysis':<14}{', '.join(analysis['files'])}")
    if "report" in summary:
        lines.append(f"{'report':<14}{folder / summary['report']}")
    if tracked:
        lines.append(f"{'tracking':<14}{tracked}")
    peak, mlx = (size(summary[f"peak_{key}_bytes"]) for key in ("memory", "mlx_memory"))
    lines.append(f"{'run':<14}{folder}")
    lines.append(f"{'':<14}{summary['seconds']:.1f} s, peak memory {peak} (MLX {mlx})")
    return "\n".join(lines)
