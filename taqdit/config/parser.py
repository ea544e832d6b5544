"""Arguments of the verbs: argparse whose complaints are errors like all others."""

from __future__ import annotations

import argparse
from typing import NoReturn

from taqdit.errors import ConfigError


class Arguments(argparse.ArgumentParser):
    """A parser that raises ConfigError instead of leaving the process."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"taqdit {verb}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """One line, and where the help is."""
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")
