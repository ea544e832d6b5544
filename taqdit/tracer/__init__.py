"""Which activations are read while a trajectory is sampled, and how. Importing this is light."""

from taqdit.tracer.options import (
    block_inputs,
    none,
    post_gelu,
)

__all__ = [
    "block_inputs",
    "none",
    "post_gelu",
]
