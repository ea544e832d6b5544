"""Prompts: sets that come with the package, and files."""

from taqdit.prompts.options import (
    file,
    paper_20,
    shapes,
    varied_1000,
)

__all__ = [
    "file",
    "paper_20",
    "shapes",
    "varied_1000",
]
