"""The `taqdit` command and its verbs."""

from taqdit.cli.verbs import dispatch, main

__all__ = ["dispatch", "main"]
