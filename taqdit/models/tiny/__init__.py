"""The embedded model: a 4.0 M parameter text-to-image model of SD3's architecture, trained on
captioned shapes of 64 x 64 pixels, and all that it was made with.

`scenes`, `render`, `captions` and `tokenizer` define the data (numpy only), `classifier` measures
pictures (MLX), `train` makes the weights (torch, never needed at run time).
"""

from taqdit.models.tiny.sizes import WEIGHTS, config

__all__ = ["WEIGHTS", "config"]
