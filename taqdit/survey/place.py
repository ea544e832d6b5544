"""Where a store lies."""

from __future__ import annotations

from pathlib import Path

from taqdit.errors import InputError
from taqdit.survey.stages import KINDS


def find_store(folder: Path) -> Path:
    """The store of an output folder; the folder itself if it is a store.

    Raises InputError if it is neither.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give an output folder, or the store in it")
    if (folder / "store").is_dir():
        return folder / "store"
    if folder.name == "store" or any((folder / kind).is_dir() for kind in KINDS):
        return folder
    raise InputError(f"{folder} holds no store; give an output folder, or the store in it")
