"""Where the embedded model's files lie, and the sizes of its parts."""

import json
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"


def config(folder: Path = WEIGHTS) -> dict[str, Any]:
    """The sizes of all parts, `config.json` of `folder`; the only place where they are written."""
    loaded: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return loaded
