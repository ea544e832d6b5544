"""Where a store lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from taqdit.errors import InputError
from taqdit.stages import kinds
from taqdit.store.digest import STAGE
from taqdit.store_tools.stage_folder import is_stage_name


def find_store(folder: Path) -> Path:
    """The store of an output folder; the folder itself if it is a store.

    Raises InputError if it is neither. A folder that only looks like one is none: what is done to
    a store must not be done to somebody's figures and weights.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give an output folder, or the store in it")
    if (folder / "store").is_dir():
        return folder / "store"
    if folder.name in ("", ".."):  # `.` and `..`: what lies above those is not what their path says
        folder = folder.resolve()
    if folder.resolve().name == "store" or any(_stages_in(folder)):
        return folder
    raise InputError(f"{folder} holds no store; give an output folder, or the store in it")


def _stages_in(folder: Path) -> Iterator[Path]:
    for kind in kinds.stored():
        for path in (folder / kind).glob(f"*/{STAGE}"):
            if is_stage_name(path.parent.name):
                yield path
