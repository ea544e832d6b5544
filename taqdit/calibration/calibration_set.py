"""The calibration set: trajectories x timestep selection, as a view; its `.npz` written.

Points are ordered by their place in the selection, then by trajectory (step-major). Nothing is
copied: a point is read from its trajectory when asked for. What the `.npz` must hold stands here;
`imported.py` reads one.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from taqdit.calibration.points import (
    Batch,
    CalibrationPoint,
    Trajectories,
    selections,
    step_major,
)
from taqdit.errors import ConfigError, NumericError
from taqdit.prompts.reading import MAX_LINES
from taqdit.store import npz
from taqdit.timestep_selection.evidence import Evidence
from taqdit.timestep_selection.selection import Rule
from taqdit.timestep_selection.steps import TrajectorySteps

__all__ = [
    "Batch",
    "CalibrationPoint",
    "CalibrationSet",
    "Trajectories",
    "selections",
]

log = logging.getLogger(__name__)
NEGATIVE = ""
TOKEN_WIDTH, LATENT_CHANNELS = 4096, 16
BUFFER_BYTES = 64 * 2**20  # shuffled latents gathered at once while exporting
_PAIRS = "one row per prompt, beside its negative: numpy.stack([{0}, negative], axis=1)"
SCHEMA = {
    "xs": npz.Field(
        "<f4",
        ("N", "h", "w", LATENT_CHANNELS),
        remedy="latents have their 16 channels last: of (N, 16, h, w) numpy.moveaxis(xs, 1, -1)",
    ),
    "ts": npz.Field("<f2", ("N",), remedy="one timestep for each latent of xs"),
    "prompt_indices": npz.Field("<i4", ("N",), remedy="one row of prompts for each latent of xs"),
    "cs": npz.Field("<f2", ("P", 2, "n", TOKEN_WIDTH), remedy=_PAIRS.format("cs")),
    "cs_pooled": npz.Field("<f2", ("P", 2, "d"), remedy=_PAIRS.format("cs_pooled")),
    "prompts": npz.Field("<U", ("P",), remedy="one text for each row of cs"),
    "cfg_scale": npz.Field("<f4", (), remedy="a single number: numpy.float32(1.5)"),
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

    def pair(self, prompt_index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (2, n, 4096) and pooled (2, d) of a prompt: its row, then that of its negative."""
        rows, negative = self.conditioning(self.prompts[prompt_index]), self.conditioning(NEGATIVE)
        return np.stack([rows[0], negative[0]]), np.stack([rows[1], negative[1]])

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
        same bytes. Steps whose timesteps float16 does not tell apart are said in the log. Raises
        NumericError if a value does not fit float16 or is not finite.
        """
        order = np.random.default_rng(self.seed).permutation(len(self))
        timesteps = self.timesteps[self._table.step[order]].astype(np.float16)
        if (told := len(np.unique(timesteps))) < len(self.steps):
            log.warning(
                "%s: float16 tells the timesteps of %d of its %d steps apart; who reads it sees the"
                " others as one (select fewer, timestep_selection.count)",
                path,
                told,
                len(self.steps),
            )
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
        pairs = (self._half_pair(index, part) for index in range(len(self.prompts)))
        return (len(self.prompts), *self.pair(0)[part].shape), pairs

    def _half_pair(self, prompt_index: int, part: int) -> np.ndarray:
        rows = self.pair(prompt_index)[part]
        texts = self.prompts[prompt_index], NEGATIVE
        return np.stack([_half(row, text) for row, text in zip(rows, texts, strict=True)])


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
