"""Runs that W&B kept offline: where they lie, which are uploaded, and their upload."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


def offline_runs(folder: Path) -> list[Path]:
    """The .wandb files of the offline runs in and below `folder`, sorted. The store has none."""
    return sorted(_walk(folder))


def is_uploaded(file: Path) -> bool:
    """Whether `wandb sync` has left its mark beside a .wandb file."""
    return file.with_suffix(".wandb.synced").exists()


def upload(files: Sequence[Path]) -> list[Path]:
    """Hand .wandb files to `wandb sync`, which tells its progress on stderr; those it left undone.

    W&B itself waits for a server that does not answer; nothing is asked.
    """
    kept = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    line = [sys.executable, "-m", "wandb", "sync", *(str(file.resolve()) for file in files)]
    subprocess.run(line, env=kept, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    return [file for file in files if not is_uploaded(file)]


def _walk(folder: Path) -> Iterator[Path]:
    for where, below, files in os.walk(folder):
        here = Path(where)
        if here.name.startswith("offline-run-"):
            below.clear()
            yield from (here / name for name in files if name.endswith(".wandb"))
        below[:] = [name for name in below if name != "store"]
