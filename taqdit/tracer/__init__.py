"""Which activations are read while a trajectory is sampled, and how. Importing this is light."""

from taqdit.tracer.options import (
    TracerOptions,
    block_inputs,
    none,
    post_gelu,
)

__all__ = [
    "TracerOptions",
    "block_inputs",
    "none",
    "post_gelu",
]
