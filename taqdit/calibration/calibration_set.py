"""The calibration set: trajectories x timestep selection, as a view; its `.npz` out and in.

Points are ordered by their place in the selection, then by trajectory (step-major). Nothing is
copied: a point is read from its trajectory when asked for. The keys of the `.npz` (`xs`, `ts`,
`cs` ..) live in this file only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from taqdit.calibration.points import (
    Batch,
    CalibrationPoint,
    Table,
    Trajectories,
    selections,
    step_major,
)
from taqdit.errors import ConfigError, InputError, NumericError
from taqdit.prompts.reading import MAX_CHARACTERS, MAX_LINES, refuse_characters
from taqdit.store import npz
from taqdit.timestep_selection.evidence import Evidence
from taqdit.timestep_selection.selection import Rule
from taqdit.timestep_selection.steps import TrajectorySteps

__all__ = [
    "Batch",
    "CalibrationPoint",
    "CalibrationSet",
    "ImportedCalibrationSet",
    "Trajectories",
    "import_npz",
    "selections",
]

NEGATIVE = ""
TOKEN_WIDTH, LATENT_CHANNELS = 4096, 16
BUFFER_BYTES = 64 * 2**20  # shuffled latents gathered at once while exporting
SCHEMA = {
    "xs": npz.Field("<f4", ("N", "h", "w", LATENT_CHANNELS)),
    "ts": npz.Field("<f2", ("N",)),
    "prompt_indices": npz.Field("<i4", ("N",)),
    "cs": npz.Field("<f2", ("P", 2, "n", TOKEN_WIDTH)),
    "cs_pooled": npz.Field("<f2", ("P", 2, "d")),
    "prompts": npz.Field("<U", ("P",)),
    "cfg_scale": npz.Field("<f4", ()),
}
LIMITS = {"N": 2**31 - 1, "h": 4096, "w": 4096, "P": MAX_LINES, "n": 65_536, "d": 65_536}

Row = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""text -> tokens (n, 4096) and pooled (d,); "" gives the negative row."""


class CalibrationSet:
    """Calibration points as a lazy sequence; memory stays at about one trajectory.

    A step with a count above one gives that many equal points. `prompts` are the texts that
    the points use, `counts` (num_steps,) the points of each step. `evidence`: what a data-driven
    rule selects by.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        rule: Rule,
        *,
        cfg_scale: float,
        seed: int,
        conditioning: Row,
        evidence: Evidence | None = None,
    ) -> None:
        self._trajectories = trajectories
        self.num_steps = trajectories.num_steps
        self.sigmas = trajectories.sigmas[: self.num_steps]
        self.timesteps = trajectories.timesteps[: self.num_steps]
        self.cfg_scale, self.seed, self.conditioning = float(cfg_scale), seed, conditioning
        self.prompts = trajectories.prompts.texts[: len(trajectories)]
        first = TrajectorySteps(trajectories.sigmas, seed=seed, evidence=evidence)
        chosen = selections(rule, first, len(trajectories))
        self._table = step_major(chosen, len(self.prompts))

    def __len__(self) -> int:
        return len(self._table.step)

    def __getitem__(self, index: int) -> CalibrationPoint:
        k = operator.index(index)
        if not -len(self) <= k < len(self):
            raise IndexError(f"calibration point {k} of {len(self)}")
        trajectory, step, prompt, weight = (column[k] for column in self._table)
        return CalibrationPoint(
            trajectory=int(trajectory),
            step=int(step),
            sigma=float(self.sigmas[step]),
            timestep=float(self.timesteps[step]),
            latent=self.latents(np.array([k]))[0],
            prompt=self.prompts[prompt],
            prompt_index=int(prompt),
            loss_weight=float(weight),
        )

    def __iter__(self) -> Iterator[CalibrationPoint]:
        return (self[k] for k in range(len(self)))

    @property
    def steps(self) -> np.ndarray:
        """The steps in use, sorted, each once; int64."""
        return np.unique(self._table.step)

    @property
    def counts(self) -> np.ndarray:
        """Points per step, (num_steps,) int64."""
        return np.bincount(self._table.step, minlength=self.num_steps)

    @cached_property
    def latent_shape(self) -> tuple[int, ...]:
        """(h, w, 16)."""
        return self.latents(np.array([0])).shape[1:]

    def batches(self, step: int, batch_size: int) -> Iterator[Batch]:
        """The points of one step in order, `batch_size` at a time, the last batch the remainder."""
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1")
        points = np.flatnonzero(self._table.step == step)
        if not len(points):
            raise ConfigError(f"step={step} is not selected; the steps are {self.steps.tolist()}")
        groups = (points[k : k + batch_size] for k in range(0, len(points), batch_size))
        table = self._table
        return (
            Batch(self.latents(group), table.prompt_index[group], table.trajectory[group])
            for group in groups
        )

    def latents(self, points: np.ndarray) -> np.ndarray:
        """The latents (b, h, w, 16) float32 of the points (b,), copied; each shard read once."""
        trajectory, step = self._table.trajectory[points], self._table.step[points]
        found: np.ndarray | None = None
        for index in np.unique(trajectory):
            rows = np.flatnonzero(trajectory == index)
            own = self._trajectories.latents_at(int(index), step[rows])
            if found is None:
                found = np.empty((len(points), *own.shape[1:]), np.float32)
            found[rows] = own
        return np.empty((0,), np.float32) if found is None else found

    def export_npz(self, path: Path) -> None:
        """Write calibration.npz: all points in one seeded permutation, prompts as Unicode.

        Streamed: memory stays at one trajectory and a buffer of 64 MB. The same set gives the
        same bytes. Raises NumericError if a value does not fit float16 or is not finite.
        """
        order = np.random.default_rng(self.seed).permutation(len(self))
        timesteps = self.timesteps[self._table.step[order]].astype(np.float16)
        columns = {
            "ts": timesteps,
            "prompt_indices": self._table.prompt_index[order].astype(np.int32),
            "prompts": np.array(self.prompts, dtype=np.str_),
            "cfg_scale": np.array(self.cfg_scale, np.float32),
        }
        streams = {
            "xs": ((len(self), *self.latent_shape), self._shuffled(order)),
            "cs": self._rows(0),
            "cs_pooled": self._rows(1),
        }
        npz.write(Path(path), [_member(key, columns, streams) for key in SCHEMA])

    def _shuffled(self, order: np.ndarray) -> Iterator[np.ndarray]:
        size = max(1, BUFFER_BYTES // (4 * int(np.prod(self.latent_shape))))
        for start in range(0, len(order), size):
            points = order[start : start + size]
            latents = self.latents(points)
            finite = np.isfinite(latents).all(axis=(1, 2, 3))
            if not finite.all():
                point = points[int(np.flatnonzero(~finite)[0])]
                raise NumericError(
                    f"the latent of trajectory {self._table.trajectory[point]} before step"
                    f" {self._table.step[point]} holds NaN or Inf; nothing was exported"
                )
            yield latents
            del latents  # before the next ones are gathered

    def _rows(self, part: int) -> tuple[tuple[int, ...], Iterator[np.ndarray]]:
        """Shape and float16 chunks of tokens (part 0) or pooled (1): row 0 prompt, 1 negative."""
        negative = _half(self.conditioning(NEGATIVE)[part], NEGATIVE)
        pairs = (
            np.stack([_half(self.conditioning(text)[part], text), negative])
            for text in self.prompts
        )
        return (len(self.prompts), 2, *negative.shape), pairs


class ImportedCalibrationSet(CalibrationSet):
    """The points of an `.npz` made elsewhere, in the file's order.

    The format does not tell sampling steps and trajectories: `step` counts the distinct timesteps
    of the file from the noisiest, `num_steps` is how many there are, sigma is timestep / 1000.
    """

    def __init__(self, arrays: dict[str, np.ndarray], *, seed: int = 0) -> None:
        self._arrays, self.seed = arrays, seed
        timesteps = arrays["ts"].astype(np.float32)
        self.timesteps = np.flip(np.unique(timesteps)).copy()
        self.sigmas = self.timesteps / np.float32(1000)
        self.num_steps = len(self.timesteps)
        self.cfg_scale = float(arrays["cfg_scale"])
        self.prompts = tuple(str(text) for text in arrays["prompts"])
        self.conditioning = self._row
        self._table = Table(
            trajectory=np.full(len(timesteps), -1),
            step=np.searchsorted(-self.timesteps, -timesteps),
            prompt_index=arrays["prompt_indices"].astype(np.int64),
            loss_weight=np.ones(len(timesteps)),
        )

    def latents(self, points: np.ndarray) -> np.ndarray:
        """The latents (b, h, w, 16) float32 of the points (b,), copied."""
        return np.array(self._arrays["xs"][points])

    def _row(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        if text != NEGATIVE and text not in self.prompts:
            raise InputError(f"the imported calibration set has no prompt {text!r}")
        place = (0, 1) if text == NEGATIVE else (self.prompts.index(text), 0)
        return self._arrays["cs"][place], self._arrays["cs_pooled"][place]


def import_npz(path: Path) -> ImportedCalibrationSet:
    """Read a calibration set as `export_npz` writes it; uncompressed latents stay on the disk.

    Raises InputError, before reading much, for anything that is not one: other members, dtypes
    or shapes, pickled prompts, NaN, timesteps outside [0, 1000], indices without a prompt, a
    damaged or hostile archive.
    """
    arrays = npz.read(Path(path), SCHEMA, LIMITS)
    indices, timesteps = arrays["prompt_indices"], arrays["ts"]
    texts = [str(text) for text in arrays["prompts"]]
    if indices.min() < 0 or indices.max() >= len(texts):
        raise InputError(f"{path}: prompt_indices must lie in [0, {len(texts) - 1}]")
    if timesteps.min() < 0 or timesteps.max() > 1000:
        raise InputError(f"{path}: ts must lie in [0, 1000]")
    for number, text in enumerate(texts):
        if len(text) > MAX_CHARACTERS:
            raise InputError(
                f"{path}, prompt {number}: {len(text):,} characters; at most {MAX_CHARACTERS:,}"
            )
        refuse_characters(text, f"{path}, prompt {number}")
    return ImportedCalibrationSet(arrays)


def _half(array: np.ndarray, text: str) -> np.ndarray:
    """As float16. Raises NumericError if a value does not fit."""
    with np.errstate(over="ignore"):
        half = np.asarray(array).astype(np.float16)
    if not np.isfinite(half).all():
        peak = float(np.abs(array).max())
        raise NumericError(
            f"the conditioning of {text!r} reaches {peak:g} and the .npz holds float16 (at most"
            " 65504); set calibration.export=false"
        )
    return half


def _member(
    key: str,
    columns: dict[str, np.ndarray],
    streams: dict[str, tuple[tuple[int, ...], Iterator[np.ndarray]]],
) -> npz.Member:
    if key in columns:
        column = columns[key]
        return npz.Member(key, column.dtype, column.shape, [column])
    shape, chunks = streams[key]
    return npz.Member(key, np.dtype(SCHEMA[key].dtype), shape, chunks)
