"""Statistics of activations in the formats of older tools: written, and read without trust.

`export_npz` writes the per-timestep diagnostics, `export_layer_statistics` the JSON files per
linear; `open_statistics` opens a folder of statistics or such an `.npz`.
"""

from __future__ import annotations

from pathlib import Path

from taqdit.activations.diagnostics import export_npz
from taqdit.activations.diagnostics_reader import ImportedStatistics
from taqdit.activations.layer_json import export_layer_statistics, layer_statistics, layers_of
from taqdit.activations.stored import Statistics
from taqdit.errors import InputError

__all__ = [
    "ImportedStatistics",
    "Statistics",
    "export_layer_statistics",
    "export_npz",
    "layer_statistics",
    "layers_of",
    "open_statistics",
]


def open_statistics(path: str | Path) -> Statistics | ImportedStatistics:
    """The statistics in a stage's folder, or in an `.npz` of diagnostics.

    InputError for anything else, CorruptError where the folder's files are damaged.
    """
    path = Path(path)
    if path.is_dir():
        return Statistics.open(path)
    if path.suffix == ".npz":
        return ImportedStatistics.open(path)
    raise InputError(f"{path} is neither a folder of statistics nor an .npz file")
