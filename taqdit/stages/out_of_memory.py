"""Out of memory, told as what to do about it where it happened.

MLX on the CPU of Linux ends the process (SIGSEGV) where it cannot allocate, as under `ulimit -v`,
and `mx.set_memory_limit` prevents nothing there: then nothing is told, and what is published is
kept, as after any kill.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from taqdit.errors import ConfigError
from taqdit.models.spec import ModelSpec

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


class OutOfMemory(ConfigError):
    """Memory ran out: where, and which settings need less."""


@contextmanager
def told(doing: str, *advice: str) -> Iterator[None]:
    """Turn running out of memory while `doing` something into an OutOfMemory that advises.

    The innermost of several has the word. Without advice it is to close other programs.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        if (cause := out_of_memory(error)) is None:
            raise
        raise OutOfMemory(_line(doing, advice, cause)) from error


def encoding(model: ModelSpec) -> AbstractContextManager[None]:
    """While prompts are encoded, for which the model is loaded; batches do not matter yet."""
    t5 = ["model.use_t5=false"] if model.use_t5 else []
    return told("encoding the prompts", *t5, *_unset(model, "w16"))


def sampling(model: ModelSpec, *, batch_size: int, traced: bool) -> AbstractContextManager[None]:
    """While a batch is sampled, and traced."""
    smaller = f"sampler.batch_size={batch_size // 2}"
    if batch_size == 1:
        smaller = "a smaller model.latent_size"
    fewer = ["fewer tracer.blocks"] if traced else []
    return told(f"sampler.batch_size={batch_size}", smaller, *_lighter(model), *fewer)


def decoding(model: ModelSpec) -> AbstractContextManager[None]:
    """While an image is decoded: one at a time, whatever the batch size."""
    return told("decoding an image", *_lighter(model), "sampler.images=false")


def analysing() -> AbstractContextManager[None]:
    """While statistics are analysed; they are stored by then."""
    return told("the analysis", "fewer tracer.blocks (they are traced anew)", "analysis=none")


def drawing(formats: Collection[str]) -> AbstractContextManager[None]:
    """While figures are drawn, in these formats."""
    fewer = ["plots=minimal"] if len(formats) > 1 else []
    return told("drawing the figures", *fewer, *(["plots=none"] if formats else []))


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


def _lighter(model: ModelSpec) -> list[str]:
    """Settings that make a forward need less, of those that are not set."""
    return _unset(model, "low_memory") or _unset(model, "w16", "a16")


def _unset(model: ModelSpec, *names: str) -> list[str]:
    return [f"model.{name}=true" for name in names if not getattr(model, name)]


def _line(doing: str, advice: Sequence[str], cause: BaseException) -> str:
    said = " ".join(str(cause).split())[:_LONGEST] or type(cause).__name__
    *others, last = advice or ["closing other programs"]
    tries = f"{', '.join(others)} or {last}" if others else last
    return (
        f"{doing} needs more memory than there is ({said}); try {tries}, and preflight=only to see"
        " what a run needs. What is published is kept, under the settings it was made with"
    )
