"""Where a run's numbers go: events.jsonl, and W&B as its mirror."""

from taqdit.tracking.options import (
    Tracker,
    TrackingOptions,
    auto,
    local,
    none,
    wandb,
)

__all__ = [
    "Tracker",
    "TrackingOptions",
    "auto",
    "local",
    "none",
    "wandb",
]
