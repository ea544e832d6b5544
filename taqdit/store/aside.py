"""A stage's folder out of the way, as a whole."""

from itertools import count
from pathlib import Path

from taqdit.errors import StorageError
from taqdit.store import disk
from taqdit.store.claim import claim, idle


def set_aside(folder: Path) -> Path | None:
    """Rename a stage's folder to `<folder>.replaced-<n>`; None if there is none.

    Raises StorageError if another process is at work in it.
    """
    if not folder.exists():
        return None
    with claim(folder.with_name(f"{folder.name}.claim")) as mine:
        if not mine or not idle(folder, "*.claim"):
            raise StorageError(f"{folder} is in use by another process; wait for it to end")
        target = next(
            path
            for n in count(1)
            if not (path := folder.with_name(f"{folder.name}.replaced-{n}")).exists()
        )
        disk.move(folder, target)
        return target
