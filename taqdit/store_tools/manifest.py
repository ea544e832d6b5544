"""`taqdit store manifest` and `taqdit store export`: what is stored, as other tools read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taqdit import config
from taqdit.config.parser import Arguments
from taqdit.errors import ConfigError, InputError
from taqdit.report.run_folder import RECORD
from taqdit.store import make_folder, publish_json
from taqdit.store.disk import relative
from taqdit.store_tools import find_store
from taqdit.store_tools.export import FORMATS, export_run
from taqdit.store_tools.image_set import TRAJECTORIES, ImageSet, lacks
from taqdit.store_tools.stage_folder import stages_of
from taqdit.trajectories.pictures import picture_name
from taqdit.trajectories.shards import shard_name
from taqdit.words import counted

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
        image_set = _image_set(folder)
        into = given.into or folder / MANIFEST
        lacking = write_manifest(image_set, into)
        print(f"manifest      {into}")
        rest = f"; {lacks(lacking)}" if lacking else ""
        print(f"{'':<14}{image_set.count - len(lacking)} of {image_set.count} images{rest}")
    return 0


def write_manifest(image_set: ImageSet, into: Path) -> dict[int, str]:
    """Publish the manifest; why the trajectories that are not in it are not whole, by number.

    InputError if `into` is a file that is no such manifest.
    """
    if into.exists() and not _is_manifest(into):
        raise InputError(f"{into} is there and is no manifest of taqdit; choose another --into")
    entries, lacking = image_set.entries()
    folder = relative(image_set.stage.folder, into.parent)
    listed = [
        {
            "image_id": entry.index,
            **image_set.described(entry),
            "filename": f"{folder}/{picture_name(entry.index)}" if image_set.pictures else None,
            "latent_filename": f"{folder}/{shard_name(entry.index)}",
        }
        for entry in entries
    ]
    about = {key: image_set.settings[key] for key in (*_MODEL, *_RUN) if key in image_set.settings}
    document = {
        "format": FORMAT,
        "fingerprint": image_set.stage.fingerprint,
        "num_images": len(listed),
        "expected_images": image_set.count,
        "missing": sorted(lacking),
        "num_steps": image_set.settings["num_steps"],
        "cfg_weight": image_set.settings["cfg_scale"],
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
    written, present = export_run(given.run, given.to, given.format)
    print(f"export        {given.to}")
    print(f"{'':<14}{counted(written, 'file')} written, {present} there already")
    return 0


def _image_set(folder: Path) -> ImageSet:
    is_run = (folder / RECORD).is_file()
    return ImageSet.of_run(folder) if is_run else ImageSet.of_stage(folder)


def _all_stages() -> list[Path]:
    store = find_store(Path(config.compose_config().output_dir))
    folders = [stage.folder for stage in stages_of(store) if stage.kind == TRAJECTORIES]
    if not folders:
        raise InputError(f"{store} holds no trajectories; name a run's folder")
    return folders


def _is_manifest(path: Path) -> bool:
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT
