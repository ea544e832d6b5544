"""What a run would compute and write, stated before the first forward.

Only shapes and counts are used, so that it works without the weights at hand.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from taqdit.errors import StorageError
from taqdit.models.peak_memory import peak_bytes
from taqdit.stages import kinds
from taqdit.stages.calibration import count_points
from taqdit.stages.plan import Plan
from taqdit.stages.stage_kind import Part
from taqdit.words import size

PROCESS_BYTES = 400_000_000  # interpreter, libraries, buffers, figures; the default run had 390
RESERVE = 64 * 2**20  # left free on the disk: figures, logs, the W&B file


@dataclass(frozen=True)
class Estimate:
    """Counts, and bytes as they will lie on the disk. `parts` are what each stage writes."""

    points: int
    trajectories: int
    forwards: int
    rows_per_forward: int
    parts: Mapping[str, tuple[Part, ...]]
    free_bytes: int
    peak_memory_bytes: int

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes by key of the parts."""
        return {part.key: part.nbytes for parts in self.parts.values() for part in parts}

    @property
    def total_bytes(self) -> int:
        """Everything that a run which reuses nothing writes."""
        every = [part for parts in self.parts.values() for part in parts]
        return sum(part.nbytes * (1 + part.meanwhile) for part in every)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        counts = {field.name: getattr(self, field.name) for field in fields(self)}
        del counts["parts"]
        sizes = {f"{key}_bytes": nbytes for key, nbytes in self.nbytes.items()}
        return {**counts, **sizes, "total_bytes": self.total_bytes}


def estimate(plan: Plan, *, free_bytes: int) -> Estimate:
    """The work and the bytes of a run from scratch."""
    model, sampler = plan.model, plan.sampler
    num_steps = plan.schedule.num_steps
    in_order = sorted(kinds.KINDS, key=lambda kind: not kind.stored)
    return Estimate(
        points=count_points(plan),
        trajectories=plan.trajectories_computed,
        forwards=sampler.num_batches * sampler.evaluations(num_steps),
        rows_per_forward=2 * sampler.batch_size,
        parts={kind.name: kind.parts(plan) for kind in in_order},
        free_bytes=free_bytes,
        peak_memory_bytes=peak_bytes(model, sampler.batch_size, num_steps=num_steps),
    )


def free_bytes(folder: Path) -> int:
    """Free space on the disk that holds `folder`, which need not exist yet."""
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def refuse_full_disk(whole: Estimate, *, needed: int, folder: Path) -> None:
    """Raise StorageError if `needed` bytes and a reserve do not fit."""
    if needed + RESERVE > whole.free_bytes:
        raise StorageError(
            f"the disk of {folder} has {size(whole.free_bytes)} free and the run writes about"
            f" {size(needed)} (and keeps {size(RESERVE)} free); free some space, set output_dir,"
            " or lower sampler.num_trajectories"
        )


def describe(whole: Estimate) -> str:
    """The estimate as the lines that are shown before a run."""
    parts = [part for parts in whole.parts.values() for part in parts if part.nbytes]
    writes = [(part.words or part.label + " {}").format(size(part.nbytes)) for part in parts]
    points = f"{whole.points:,}" if whole.points else "no"
    return "\n".join(
        [
            f"points    {points} calibration points of {whole.trajectories:,} trajectories",
            f"forwards  {whole.forwards:,} of {whole.rows_per_forward} rows",
            f"writes    {size(whole.total_bytes)} ({whole.total_bytes:,} bytes): "
            + ", ".join(writes),
            f"disk      {size(whole.free_bytes)} free",
            _memory(whole.peak_memory_bytes, PROCESS_BYTES + whole.nbytes.get("statistics", 0)),
        ]
    )


def _memory(device: int, process: int) -> str:
    text = f"memory    about {size(device)} of MLX memory at the peak, and {size(process)} for the"
    text += " process"
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return text
    if process + device > memory:  # Apple's chips and CPUs share it; other GPUs have their own
        return f"{text}: more than the main memory of {size(memory)}"
    return f"{text}, of {size(memory)} of main memory"
