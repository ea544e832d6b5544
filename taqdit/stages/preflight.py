"""What a run would compute and write, stated before the first forward.

Only shapes and counts are used, so that it works without the weights at hand.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taqdit.activations.bins import PER_ROW
from taqdit.calibration.points import selections
from taqdit.errors import StorageError
from taqdit.models.peak_memory import peak_bytes
from taqdit.quantizer import BITS
from taqdit.sampler import SELECTED
from taqdit.stages.plan import Plan
from taqdit.timestep_selection.evidence import Evidence
from taqdit.timestep_selection.steps import TrajectorySteps

FLOAT32 = 4
FLOAT16 = 2
PNG_BYTES_PER_VALUE = 1.0  # uncompressed pixels: an upper bound for pictures
CHANNEL_BYTES = 36  # mean, m2 float64; low, high float32; negative, large (2) uint32
HISTOGRAM_ROWS = 42  # signs and exponents of a site at a step; 37 to 45 in the embedded model
ANALYSIS_BYTES = 10_000  # kept of a site at a step; 9,600 in the embedded model
CHECKPOINTS = 2  # that lie beside what is made of them
PROCESS_BYTES = 400_000_000  # interpreter, libraries, buffers, figures; the default run had 390
RESERVE = 64 * 2**20  # left free on the disk: figures, logs, the W&B file


@dataclass(frozen=True)
class Estimate:
    """Counts, and bytes as they will lie on the disk."""

    points: int
    trajectories: int
    forwards: int
    rows_per_forward: int
    conditioning_bytes: int
    trajectory_bytes: int
    picture_bytes: int
    export_bytes: int
    statistics_bytes: int
    analysis_bytes: int
    free_bytes: int
    peak_memory_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything that a run which reuses nothing writes."""
        return (
            self.conditioning_bytes
            + self.trajectory_bytes
            + self.picture_bytes
            + self.export_bytes
            + self.statistics_bytes * (1 + CHECKPOINTS)
            + self.analysis_bytes
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "total_bytes": self.total_bytes}


def estimate(plan: Plan, *, free_bytes: int) -> Estimate:
    """The work and the bytes of a run from scratch."""
    model, sampler = plan.model, plan.sampler
    latent = model.latent_shape[0] * model.latent_shape[1] * model.latent_shape[2]
    height, width, colours = model.image_shape
    texts = len(plan.texts) + 1
    row = model.num_text_tokens * model.token_width + model.pooled_width
    points = count_points(plan) if "calibration" in plan.stages else 0
    trajectories = plan.trajectories_computed
    pictures = trajectories * height * width * colours if sampler.images else 0
    exported = points * (latent * FLOAT32 + FLOAT16 + FLOAT32)
    exported += 2 * min(len(plan.prompts.texts), sampler.num_trajectories) * row * FLOAT16
    return Estimate(
        points=points,
        trajectories=trajectories,
        forwards=sampler.num_batches * sampler.evaluations(plan.schedule.num_steps),
        rows_per_forward=2 * sampler.batch_size,
        conditioning_bytes=texts * row * (FLOAT16 if model.w16 else FLOAT32)
        if plan.prompts.store_conditioning
        else 0,
        trajectory_bytes=count_latents(plan) * latent * np.dtype(sampler.latents_dtype).itemsize,
        picture_bytes=int(pictures * PNG_BYTES_PER_VALUE),
        export_bytes=exported if plan.export and points else 0,
        statistics_bytes=statistics_bytes(plan) if plan.traces else 0,
        analysis_bytes=len(plan.layout.sites) * plan.schedule.num_steps * ANALYSIS_BYTES
        if plan.traces
        else 0,
        free_bytes=free_bytes,
        peak_memory_bytes=peak_bytes(model, sampler.batch_size, num_steps=plan.schedule.num_steps),
    )


def statistics_bytes(plan: Plan) -> int:
    """Bytes of the statistics of all steps, in memory while they are made and then on the disk.

    Exact per channel; a histogram holds only the exponents that occur, HISTOGRAM_ROWS being usual.
    """
    layout = plan.layout
    counts = HISTOGRAM_ROWS * (2 + layout.folds * 4 * PER_ROW)
    per_step = layout.channels * CHANNEL_BYTES + len(layout.sites) * (counts + 8 * layout.folds)
    return plan.schedule.num_steps * per_step


def count_latents(plan: Plan) -> int:
    """Latents that the run stores, of all trajectories."""
    if plan.sampler.latents == SELECTED:  # rules may differ per trajectory
        return sum(len(plan.stored_steps(index)) for index in range(plan.trajectories_computed))
    return plan.trajectories_computed * len(plan.stored_steps(0))


def count_points(plan: Plan) -> int:
    """Calibration points of the run; asks the rule for every trajectory, as rules may differ."""
    nothing = Evidence.blank(plan.schedule.num_steps, BITS)
    first = TrajectorySteps(plan.schedule.sigmas(), seed=plan.sampler.seed, evidence=nothing)
    chosen = selections(plan.select, first, plan.sampler.num_trajectories)
    return sum(int(selection.counts.sum()) for selection in chosen)


def free_bytes(folder: Path) -> int:
    """Free space on the disk that holds `folder`, which need not exist yet."""
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def refuse_full_disk(found: Estimate, *, needed: int, folder: Path) -> None:
    """Raise StorageError if `needed` bytes and a reserve do not fit."""
    if needed + RESERVE > found.free_bytes:
        raise StorageError(
            f"the disk of {folder} has {size(found.free_bytes)} free and the run writes about"
            f" {size(needed)} (and keeps {size(RESERVE)} free); free some space, set output_dir,"
            " or lower sampler.num_trajectories"
        )


def describe(found: Estimate) -> str:
    """The estimate as the lines that are shown before a run."""
    parts = [f"trajectories {size(found.trajectory_bytes)}"]
    if found.conditioning_bytes:
        parts.insert(0, f"conditioning {size(found.conditioning_bytes)}")
    if found.picture_bytes:
        parts.append(f"pictures at most {size(found.picture_bytes)}")
    if found.statistics_bytes:
        beside = f"statistics {size(found.statistics_bytes)} and up to twice that meanwhile"
        parts.append(beside)
    if found.analysis_bytes:
        parts.append(f"analysis {size(found.analysis_bytes)}")
    if found.export_bytes:
        parts.append(f"calibration.npz {size(found.export_bytes)}")
    points = f"{found.points:,}" if found.points else "no"
    return "\n".join(
        [
            f"points    {points} calibration points of {found.trajectories:,} trajectories",
            f"forwards  {found.forwards:,} of {found.rows_per_forward} rows",
            f"writes    {size(found.total_bytes)} ({found.total_bytes:,} bytes): "
            + ", ".join(parts),
            f"disk      {size(found.free_bytes)} free",
            _memory(found.peak_memory_bytes, PROCESS_BYTES + found.statistics_bytes),
        ]
    )


def _memory(device: int, process: int) -> str:
    text = f"memory    about {size(device)} of MLX memory at the peak, and {size(process)} for the"
    text += " process"
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return text
    if process + device > there:  # Apple's chips and CPUs share it; other GPUs have their own
        return f"{text}: more than the main memory of {size(there)}"
    return f"{text}, of {size(there)} of main memory"


def size(count: int) -> str:
    """Bytes in words, in powers of 1000."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
