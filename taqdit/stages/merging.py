"""A step of the statistics while it is being merged."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from taqdit.activations import StepStatistics


@dataclass
class Merging:
    """A step that this process merges: its claim, the batches merged, what they add up to."""

    claim: ExitStack
    covered: int = 0
    statistics: StepStatistics | None = None

    def add(self, part: StepStatistics) -> None:
        """Merge what the next batch showed. Raises OverflowError."""
        known = self.statistics
        self.statistics = part if known is None else known.merged(part)
        self.covered += 1
