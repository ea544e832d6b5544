"""A bar with steps per second and time left, and one line that says how long the rest will take."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

log = logging.getLogger(__name__)
SHORT = 10  # seconds that are not worth an estimate
WARM_STEPS = 3  # solver steps until the estimate is made; the first one pays for set-up


class Progress:
    """Counts solver steps of batches; a context manager, silent where stderr is no screen."""

    def __init__(self, *, shown: bool | None = None) -> None:
        self._shown = sys.stderr.isatty() if shown is None else shown
        self._bar: Any = None
        self._done = self._total = 0
        self._warm_at = 0.0

    def start(self, total: int) -> None:
        """Begin counting up to `total` steps."""
        from tqdm import tqdm

        self.close()
        self._total, self._done = total, 0
        self._bar = tqdm(
            total=total, unit="step", desc="sampling", disable=not self._shown, leave=False
        )

    def advance(self, count: int) -> None:
        """Count finished steps; after a few, log the estimated minutes once."""
        if self._bar is None or not count:
            return
        self._done += count
        self._bar.update(count)
        if self._done == 1:
            self._warm_at = time.perf_counter()
        if self._done == 1 + WARM_STEPS:
            seconds = (time.perf_counter() - self._warm_at) / WARM_STEPS
            left = seconds * (self._total - self._done)
            if left >= SHORT:
                told = f"{left / 60:.1f} minutes" if left >= 60 else f"{left:.0f} seconds"
                log.info("about %s of sampling left (%.2f s/step)", told, seconds)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
