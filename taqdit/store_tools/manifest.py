"""`taqdit store manifest` and `taqdit store export`: what is stored, as other tools read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taqdit import config
from taqdit.config.parser import Arguments
from taqdit.errors import ConfigError, InputError
from taqdit.runs.record import RECORD
from taqdit.store import make_folder, publish_json
from taqdit.store.disk import relative
from taqdit.store_tools import find_store
from taqdit.store_tools.export import FORMATS, export_run
from taqdit.store_tools.image_set import TRAJECTORIES, ImageSet, lacks
from taqdit.store_tools.stage_folder import stages_of
from taqdit.store_tools.words import counted
from taqdit.trajectories.pictures import picture_name
from taqdit.trajectories.trajectory import shard_name

MANIFEST = "manifest.json"
FORMAT = "taqdit-manifest-1"
_MODEL = ("model", "model_option", "options", "weights")
_RUN = ("schedule_option", "sampler_option", "shift", "seed", "batch_size", "latent_shape")


def manifest(arguments: Sequence[str]) -> int:
    """Derive manifest.json, as older tools have it, from what is stored.

    InputError for a folder that is neither a run nor a stage of trajectories.
    """
    parser = Arguments("store manifest", "Derive manifest.json from what is in the store.")
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help="a run's folder, or one of store/trajectories (default: each of those)",
    )
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help=f"default: {MANIFEST} in that folder"
    )
    given = parser.parse_args(list(arguments))
    folders = [given.folder] if given.folder else _all_stages()
    if given.into and len(folders) > 1:
        raise ConfigError(f"--into takes one manifest and there are {len(folders)}; name a folder")
    for folder in folders:
        found = _image_set(folder)
        into = given.into or folder / MANIFEST
        lacking = write_manifest(found, into)
        print(f"manifest      {into}")
        words = f"; {lacks(lacking)}" if lacking else ""
        print(f"{'':<14}{found.count - len(lacking)} of {found.count} images{words}")
    return 0


def write_manifest(found: ImageSet, into: Path) -> dict[int, str]:
    """Publish the manifest; why the trajectories that are not in it are not whole, by number.

    InputError if `into` is a file that is no such manifest.
    """
    if into.exists() and not _is_manifest(into):
        raise InputError(f"{into} is there and is no manifest of taqdit; choose another --into")
    entries, lacking = found.entries()
    folder = relative(found.stage.folder, into.parent)
    listed = [
        {
            "image_id": entry.index,
            **found.described(entry),
            "filename": f"{folder}/{picture_name(entry.index)}" if found.pictures else None,
            "latent_filename": f"{folder}/{shard_name(entry.index)}",
        }
        for entry in entries
    ]
    about = {key: found.settings[key] for key in (*_MODEL, *_RUN) if key in found.settings}
    document = {
        "format": FORMAT,
        "fingerprint": found.stage.fingerprint,
        "num_images": len(listed),
        "expected_images": found.count,
        "missing": sorted(lacking),
        "num_steps": found.settings["num_steps"],
        "cfg_weight": found.settings["cfg_scale"],
        **about,
        "images": listed,
    }
    make_folder(into.parent)
    publish_json(into, document)
    return lacking


def export(arguments: Sequence[str]) -> int:
    """Hand out a run's images with metadata.jsonl, its calibration.npz, or its latents.

    InputError if the folder holds anything else, CorruptError if something is missing or damaged.
    """
    parser = Arguments("store export", "Hand out what a run stored, as other tools read it.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the folder of a run")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where to")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="images",
        help="images: PNGs and metadata.jsonl (default); npz: calibration.npz;"
        " latents: an .npz per image and metadata.jsonl",
    )
    given = parser.parse_args(list(arguments))
    made, there = export_run(given.run, given.to, given.format)
    print(f"export        {given.to}")
    print(f"{'':<14}{counted(made, 'file')} written, {there} there already")
    return 0


def _image_set(folder: Path) -> ImageSet:
    is_run = (folder / RECORD).is_file()
    return ImageSet.of_run(folder) if is_run else ImageSet.of_stage(folder)


def _all_stages() -> list[Path]:
    store = find_store(Path(config.compose_config().output_dir))
    found = [each.folder for each in stages_of(store) if each.kind == TRAJECTORIES]
    if not found:
        raise InputError(f"{store} holds no trajectories; name a run's folder")
    return found


def _is_manifest(path: Path) -> bool:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT
