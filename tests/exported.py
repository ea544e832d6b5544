"""Activations in plain numpy, and the same as stored statistics: what exports are tested with."""

import io
import struct
import warnings
import zipfile

import numpy as np
from statistics_oracle import statistics_of

from taqdit.activations import Layout, Site, StepStatistics
from taqdit.activations.step_shards import write_step
from taqdit.activations.stored import Statistics
from taqdit.store import Stage

TIMESTEPS = np.float32([1000, 612.3456, 8.9]).astype(np.float64)
LAYOUT = Layout(
    (
        Site("embed.context_in", 5),
        Site("mm_00_img.qkv_in", 6),
        Site("mm_00_img.o_in", 6),
        Site("mm_00_img.fc1_in", 6),
        Site("mm_00_img.post_gelu", 8),
        Site("mm_00_txt.qkv_in", 6),
        Site("uni_00.post_gelu", 8),
        Site("final.linear_in", 6),
    ),
    folds=2,
)
GELU = 4  # number of the site with the outlier
OUTLIER = 412.0


def activations() -> list[list[np.ndarray]]:
    """One array (rows, tokens, C) float32 per step and site; row r is in fold r mod 2."""
    rng = np.random.default_rng(3)
    made = []
    for _ in TIMESTEPS:
        arrays = []
        for site in LAYOUT.sites:
            shift = np.linspace(-1, 1, site.width)
            arrays.append(rng.normal(shift, 1.5, (4, 30, site.width)).astype(np.float32))
        arrays[0][:, 10:] = 0  # padding
        arrays[1][..., 2] += 1000
        arrays[2] *= 6  # beyond the bins on both sides
        made.append(arrays)
    made[1][GELU] = np.clip(made[1][GELU], -0.17, 7)
    made[1][GELU][3, 5, 2] = OUTLIER
    return made


def reduced(made: list[list[np.ndarray]]) -> list[StepStatistics]:
    """Statistics of each step."""
    return [statistics_of(LAYOUT, arrays, [0, 1, 0, 1]) for arrays in made]


def stored(folder, steps: list[StepStatistics]) -> Statistics:
    """Statistics as a stage holds them."""
    stage = Stage.open(
        folder,
        "statistics",
        fingerprint="ab" * 32,
        inputs={"num_steps": 3},
        backend={"device": "cpu"},
    )
    for step, each in enumerate(steps):
        write_step(
            stage,
            f"trajectories_0000004_step_{step:04d}.safetensors",
            each,
            extent=4,
            step=step,
            sigma=TIMESTEPS[step] / 1000,
            timestep=TIMESTEPS[step],
        )
    return Statistics.open(stage.folder)


def older(arrays: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """What the older tools write of arrays (.., C) by site id, one per timestep."""
    made = {
        "timesteps_unique": np.sort(TIMESTEPS).astype(np.float32),
        "histogram_bin_edges": np.linspace(-8, 8, 513, dtype=np.float32),
    }
    for label, parts in arrays.items():
        for timestep, array in zip(TIMESTEPS, parts, strict=False):
            flat = array.reshape(-1, array.shape[-1]).astype(np.float64)
            numbers = {
                "count": np.array(len(flat), np.int64),
                "mean": flat.mean(axis=0),
                "std": flat.std(axis=0),
                "min": flat.min(axis=0),
                "max": flat.max(axis=0),
                "histogram": np.histogram(flat, 512, (-8, 8))[0],
            }
            made |= {f"{label}::t={timestep:.6f}::{k}": v for k, v in numbers.items()}
    return made


def saved(members: dict[str, np.ndarray], *, compressed: bool = False) -> bytes:
    """An .npz by numpy."""
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **members)
    return out.getvalue()


def zipped(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of anything, duplicates too."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, content in entries:
            archive.writestr(name, content)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    """A member's bytes."""
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=True)
    return out.getvalue()


def claims(shape: str, descr: str = "<f8") -> bytes:
    """The header of an array that says so."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text
