"""One run of the training: where its files are, its seed, and how much of everything it does."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taqdit.models.tiny import config as read_config

log = logging.getLogger("taqdit.train")


@dataclass(frozen=True)
class Run:
    """One training run: its folder, seed, the share of the full number of steps it does, and the
    exported weights that it begins with, if any."""

    work: Path
    seed: int = 0
    scale: float = 1.0
    start_from: Path | None = None

    @property
    def plain(self) -> Path:
        """The exported weights as they were trained."""
        return self.work / "plain"

    @property
    def weights(self) -> Path:
        """The exported weights with their outliers: what ships."""
        return self.work / "weights"

    @property
    def without_outliers(self) -> Path | None:
        """Weights without outliers: `plain/`, else those that the run starts from, if any."""
        return self.plain if self.plain.exists() else self.start_from

    @property
    def config(self) -> dict[str, Any]:
        """The sizes of all parts."""
        return read_config()

    def steps(self, full: int) -> int:
        """The steps of a stage that does `full` of them in a whole run."""
        return max(2, round(full * self.scale))

    def count(self, full: int, least: int) -> int:
        """The size of a pool or of a measurement, which shrinks with the run too."""
        return max(least, round(full * min(1.0, self.scale)))
