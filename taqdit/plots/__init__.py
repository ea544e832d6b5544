"""Figures: one function each, from a table to a Figure. Importing this is light."""

from taqdit.plots.options import (
    minimal,
    none,
    paper,
)

__all__ = [
    "minimal",
    "none",
    "paper",
]
