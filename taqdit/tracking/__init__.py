"""Where a run's numbers go: events.jsonl, and W&B as its mirror."""

from taqdit.tracking.options import (
    auto,
    local,
    none,
    wandb,
)

__all__ = [
    "auto",
    "local",
    "none",
    "wandb",
]
