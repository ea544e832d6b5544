"""The embedded model: a 4.0 M parameter text-to-image model of SD3's architecture, trained on
captioned shapes of 64 x 64 pixels, and all that it was made with.

`scenes`, `render`, `captions` and `tokenizer` define the data (numpy only), `classifier` measures
pictures (MLX), `train` makes the weights (torch, never needed at run time).
"""

import json
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"


def config(folder: Path = WEIGHTS) -> dict[str, Any]:
    """The sizes of all parts, `config.json` of `folder`; the only place where they are written."""
    loaded: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return loaded
