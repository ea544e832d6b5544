"""Out of memory, told as what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from taqdit.errors import ConfigError

# What MLX says in a RuntimeError: Metal's and CUDA's allocators, a command buffer, C++ itself.
_SAID = (
    "out of memory",
    "outofmemory",
    "insufficient memory",
    "unable to allocate",
    "attempting to allocate",
    "bad_alloc",
)
_LONGEST = 160  # characters of a foreign message


@contextmanager
def told_by_batch_size(batch_size: int) -> Iterator[None]:
    """Turn running out of memory into a ConfigError that names the batch size to try."""
    try:
        yield
    except Exception as error:
        if (cause := out_of_memory(error)) is None:
            raise
        raise ConfigError(_advice(batch_size, cause)) from error


def out_of_memory(error: BaseException | None) -> BaseException | None:
    """The error of this one and of those it came from that says that memory ran out, if any."""
    while error is not None:
        if isinstance(error, MemoryError):
            return error
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return error
        if isinstance(error, RuntimeError) and any(each in str(error).lower() for each in _SAID):
            return error
        error = error.__cause__
    return None


def _advice(batch_size: int, cause: BaseException) -> str:
    said = " ".join(str(cause).split())[:_LONGEST] or type(cause).__name__
    smaller = f"try sampler.batch_size={batch_size // 2}"
    if batch_size == 1:
        smaller = "a batch cannot be smaller; try a smaller model.latent_size"
    return (
        f"sampler.batch_size={batch_size} needs more memory than there is ({said}); {smaller} or"
        " model.low_memory=true, and preflight=only to see what a run needs. What is published is"
        " kept, under the batch size it was made with"
    )
