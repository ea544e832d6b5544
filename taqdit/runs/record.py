"""run.json: everything that says what was run, and where its data are; who points to it."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from taqdit.errors import StorageError
from taqdit.report.run_folder import EARLIER, RECORD, RunFolder
from taqdit.stages.plan import Plan
from taqdit.store import disk, make_folder, publish_json, sha256_file
from taqdit.store.digest import STAGE, stamp
from taqdit.store.secrets import mask_secrets, mask_settings

log = logging.getLogger(__name__)

FOLDERS = ("runs", "sweeps")  # in an output folder: where runs lie, unless one is told otherwise
POINTERS = "runs"  # in a store: a file for each run whose folder lies elsewhere
_REFERRING = ("stages", "imported", "imported_statistics")  # keys of run.json
PACKAGES = ("taqdit", "mlx", "diffusionkit", "numpy", "hydra-core", "omegaconf", "wandb")


def new_folder(outputs: Path, kind: str) -> Path:
    """A folder named as the command line does it: <kind>/<date>/<time with microseconds>."""
    now = datetime.now()
    return outputs / kind / f"{now:%Y-%m-%d}" / f"{now:%H%M%S_%f}"


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
    old = RunFolder(folder).legible(RECORD)
    if old.get("stages") and old.get("config") != document["config"]:
        log.warning(
            "%s holds a run of other settings: what this one does not write anew stays from that"
            " one",
            folder,
        )
    publish_json(folder / RECORD, {**document, EARLIER: _earlier(old, document)})


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
    names = {name for name in (*before, *_named(old)) if isinstance(name, str)}
    return sorted(names - {*_named(document)})


def _named(document: Mapping[str, Any]) -> Iterator[Any]:
    stages, imported = document.get("stages"), document.get("imported")
    if isinstance(stages, Mapping):
        yield from (f"{kind}/{str(fingerprint)[:12]}" for kind, fingerprint in stages.items())
    if isinstance(imported, Mapping):
        yield imported.get("path")
    yield document.get("imported_statistics")


def _point(store: Path, folder: Path, document: Mapping[str, Any]) -> None:
    with disk.guarded("read", folder.parent):
        above = folder.parent.stat().st_ino
    place = {"schema": 1, "folder": str(folder), "host": socket.gethostname(), "parent": above}
    make_folder(store / POINTERS)
    pointer = stamp({**place, **{key: document[key] for key in _REFERRING}})
    publish_json(store / POINTERS / f"{document['run_id']}.json", pointer)


def _stores_read(document: Mapping[str, Any]) -> Iterator[Path]:
    """The stores in which files lie that a run reads: two above the folder of a stage."""
    imported = document["imported"]
    for name in filter(None, (imported and imported["path"], document["imported_statistics"])):
        path = Path(name).resolve()
        for stage in (path, *path.parents):
            always_kept = stage.parent.name == "imported"
            if len(stage.parts) > 3 and (stage / STAGE).is_file() and not always_kept:
                yield stage.parents[1]


def installed(package: str) -> str | None:
    """Version of an installed package; None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def mask_copies(config: DictConfig, copies: list[Path]) -> None:
    """Hide secrets in what Hydra has written down of the command line. Raises StorageError."""
    settings: Any = OmegaConf.to_container(config)
    for path in copies:
        with disk.guarded("read", path):
            written = OmegaConf.to_container(OmegaConf.load(path))
        masked = mask_settings(written, settings)
        if masked != written:
            disk.publish_bytes(path, OmegaConf.to_yaml(masked).encode())


def write_copies(
    folder: Path, config: DictConfig, overrides: Sequence[str], settings: Mapping[str, Any]
) -> None:
    """What Hydra would write down of a run that it had started, without secrets of `settings`."""
    make_folder(folder / ".hydra")
    written = {"config": OmegaConf.to_container(config), "overrides": list(overrides)}
    for name, value in written.items():
        text = OmegaConf.to_yaml(mask_settings(value, settings))
        disk.publish_bytes(folder / ".hydra" / f"{name}.yaml", text.encode())
