"""A calibration set made elsewhere: the points of an `.npz`, read without trusting it.

The file tells conditioning by the number of a prompt, not by its text: two prompts may read alike
and have other rows, and each has a negative of its own.
"""

from __future__ import annotations

import logging
import operator
from pathlib import Path

import numpy as np

from taqdit.calibration.calibration_set import LIMITS, NEGATIVE, SCHEMA, CalibrationSet
from taqdit.calibration.points import Table
from taqdit.errors import InputError
from taqdit.prompts.reading import MAX_CHARACTERS, refuse_characters
from taqdit.store import npz

log = logging.getLogger(__name__)
MOST = 1000  # the timestep of pure noise
Place = tuple[int, int]  # of a row of conditioning: prompt, and 0 = its own, 1 = its negative's


class ImportedCalibrationSet(CalibrationSet):
    """The points of an `.npz` made elsewhere, in the file's order.

    The format does not tell sampling steps and trajectories: `step` counts the distinct timesteps
    of the file from the noisiest, `num_steps` is how many there are, sigma is timestep / 1000.
    `pair(point.prompt_index)` is the conditioning of a point; `conditioning(text)` raises
    InputError for a text that has several rows in the file.
    """

    def __init__(
        self, arrays: dict[str, np.ndarray], *, seed: int = 0, rows: np.ndarray | None = None
    ) -> None:
        """`rows` (N,): which points of the file; None: all."""
        self._arrays, self.seed = arrays, seed
        self._chosen = np.arange(len(arrays["ts"])) if rows is None else rows
        timesteps = arrays["ts"][self._chosen].astype(np.float32)
        self.timesteps = np.flip(np.unique(timesteps)).copy()
        self.sigmas = self.timesteps / np.float32(1000)
        self.num_steps = len(self.timesteps)
        self.cfg_scale = float(arrays["cfg_scale"])
        self.prompts = tuple(str(text) for text in arrays["prompts"])
        self.conditioning = self._row
        self._places: dict[str, Place] = {}
        self._table = Table(
            trajectory=np.full(len(timesteps), -1),
            step=np.searchsorted(-self.timesteps, -timesteps),
            prompt_index=arrays["prompt_indices"][self._chosen].astype(np.int64),
            loss_weight=np.ones(len(timesteps)),
        )

    def latents(self, points: np.ndarray) -> np.ndarray:
        """The latents (b, h, w, 16) float32 of the points (b,), copied."""
        return np.array(self._arrays["xs"][self._chosen[points]])

    def sample(self, count: int, *, seed: int) -> ImportedCalibrationSet:
        """So many of the points, drawn without replacement, in the file's order; all if there are
        no more. Steps of which no point is drawn are none of the sample's."""
        if count >= len(self):
            return self
        drawn = np.random.default_rng(seed).choice(len(self), count, replace=False)
        return ImportedCalibrationSet(
            self._arrays, seed=self.seed, rows=self._chosen[np.sort(drawn)]
        )

    def pair(self, prompt_index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (2, n, 4096) and pooled (2, d) of a prompt: its row, then that of its negative."""
        index = operator.index(prompt_index)
        if not 0 <= index < len(self.prompts):
            raise IndexError(f"prompt {index} of {len(self.prompts)}")
        return self._arrays["cs"][index], self._arrays["cs_pooled"][index]

    def misfits(self, latent_shape: tuple[int, ...], pooled_width: int) -> list[str]:
        """Why a model of these shapes cannot be given the points; nothing where it can."""
        found, width = self.latent_shape, self._arrays["cs_pooled"].shape[-1]
        checks = (
            (
                found == tuple(latent_shape),
                f"its latents are {found} and the model's {tuple(latent_shape)}; set"
                f" model.latent_size={list(found[:2])}",
            ),
            (
                width == pooled_width,
                f"its pooled conditioning has {width} numbers and the model's {pooled_width}; set"
                " the model that it was made with",
            ),
            (
                self.cfg_scale > 0,
                f"its cfg_scale is {self.cfg_scale:g} and must be above 0; save the one that it was"
                " sampled with, 1 without guidance",
            ),
        )
        return [text for holds, text in checks if not holds]

    def _row(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        if text not in self._places:
            self._places[text] = self._place(text)
        return self._at(self._places[text])

    def _at(self, place: Place) -> tuple[np.ndarray, np.ndarray]:
        return self._arrays["cs"][place], self._arrays["cs_pooled"][place]

    def _place(self, text: str) -> Place:
        """Where the row of a text is. InputError if it has none, or several that differ."""
        numbers = range(len(self.prompts))
        places = [(number, 0) for number in numbers if self.prompts[number] == text]
        places += [(number, 1) for number in numbers if text == NEGATIVE]
        if not places:
            raise InputError(f"the imported calibration set has no prompt {text!r}")
        first, *others = places
        for other in others:
            if not all(map(np.array_equal, self._at(first), self._at(other))):
                raise InputError(
                    f"the imported calibration set has several rows for the text {text!r}:"
                    f" {_words(first)} and {_words(other)} differ; pair(point.prompt_index) gives"
                    " those of a point"
                )
        return first


def _words(place: Place) -> str:
    number, negative = place
    return f"{'the negative of ' if negative else ''}prompt {number}"


def import_npz(path: Path) -> ImportedCalibrationSet:
    """Read a calibration set as `export_npz` writes it; uncompressed latents stay on the disk.

    Raises InputError, before reading much, for anything that is not one: other members, dtypes
    or shapes, pickled prompts, NaN, timesteps outside [0, 1000] or that are sigmas, indices
    without a prompt, a damaged or hostile archive.
    """
    arrays = npz.read(Path(path), SCHEMA, LIMITS)
    try:
        _require_indices(arrays["prompt_indices"], len(arrays["prompts"]))
        _require_timesteps(arrays["ts"])
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    for number, text in enumerate(map(str, arrays["prompts"])):
        if len(text) > MAX_CHARACTERS:
            raise InputError(
                f"{path}, prompt {number}: {len(text):,} characters; at most {MAX_CHARACTERS:,}"
            )
        refuse_characters(text, f"{path}, prompt {number}")
    _tell_close_timesteps(path, arrays["ts"])
    return ImportedCalibrationSet(arrays)


def _require_indices(indices: np.ndarray, prompts: int) -> None:
    outside = np.flatnonzero((indices < 0) | (indices >= prompts))
    if len(outside):
        raise ValueError(
            f"prompt_indices must lie in [0, {prompts - 1}] and prompt_indices[{outside[0]}] is"
            f" {indices[outside[0]]}; they count the rows of prompts from 0"
        )


def _require_timesteps(timesteps: np.ndarray) -> None:
    outside = np.flatnonzero((timesteps < 0) | (timesteps > MOST))
    if len(outside):
        raise ValueError(
            f"ts must lie in [0, {MOST}] and ts[{outside[0]}] is {timesteps[outside[0]]:g}; a"
            " timestep is 1000 sigma"
        )
    if timesteps.max() <= 1:
        raise ValueError(
            f"ts must lie in [0, {MOST}] and is at most {timesteps.max():g} throughout, as sigmas"
            " are; save (1000 * ts).astype('<f2') as ts"
        )


def _tell_close_timesteps(path: Path, timesteps: np.ndarray) -> None:
    """Say where timesteps are neighbours in float16: there several steps may have become one."""
    distinct = np.unique(timesteps)
    close = np.flatnonzero(np.nextafter(distinct[:-1], np.float16(np.inf)) == distinct[1:])
    if len(close):
        highest = distinct[close[-1]]
        log.warning(
            "%s: its timesteps lie as near as float16 tells them apart (%g at %g), so steps may"
            " have become one; each of its %d timesteps counts as a step",
            path,
            np.spacing(highest),
            highest,
            len(distinct),
        )
