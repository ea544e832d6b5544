"""The one door to MLX: `from taqdit.backend import mx, nn`.

On Linux, MLX's CPU backend brings a reference BLAS that is 10 to 20 times slower than a tuned one.
Symbols that are already in the process's global scope win over it, so a tuned library is loaded
here, globally, before `mlx.core` is imported for the first time (later has no effect). Nothing
found means slower, never an error.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import logging
import os
import platform
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

_log = logging.getLogger(__name__)
_VARIABLE = "TAQDIT_BLAS"
_ADDRESSES = 8 * 2**30  # bytes


def _candidates() -> Iterator[str]:
    """Every tuned BLAS library at hand, best first."""
    if openblas := ctypes.util.find_library("openblas"):
        yield openblas
    yield from map(str, sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")))
    torch = importlib.util.find_spec("torch")
    for folder in (torch.submodule_search_locations or []) if torch else []:
        if (library := Path(folder, "lib", "libtorch_cpu.so")).exists():
            yield str(library)


def _label(library: str) -> str:
    """'openblas (libopenblas.so.0)': what it is, however it was found; never its folder."""
    file_name = Path(library).name
    kind = next((k for k in ("openblas", "mkl", "torch") if k in file_name), "other")
    return f"{kind} ({file_name})"


def _open(library: str) -> ctypes.CDLL:
    """The library in the process's global scope; OSError when it is no BLAS or cannot be read."""
    # Looked at privately first: a library that turns out to be none must not shadow any symbol.
    if not hasattr(ctypes.CDLL(library), "sgemm_"):
        raise OSError(f"{Path(library).name} has no sgemm_")
    return ctypes.CDLL(library, ctypes.RTLD_GLOBAL)


def _room() -> bool:
    """Whether there is address space: OpenBLAS asks without end for what is refused to it."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return limit == resource.RLIM_INFINITY or limit >= _ADDRESSES


def _choose_blas() -> tuple[str, ctypes.CDLL | None]:
    """('openblas (libopenblas.so.0)', its handle) after loading it, or ('bundled', None)."""
    wanted = os.environ.get(_VARIABLE, "").strip()
    if wanted == "0":
        return "bundled", None
    if not wanted and not _room():
        _log.warning(
            "address space is limited (ulimit -v) to less than %d GB: no other BLAS is looked for",
            _ADDRESSES >> 30,
        )
        return "bundled", None
    for library in [wanted, *_candidates()] if wanted else _candidates():
        try:
            return _label(library), _open(library)
        except OSError as error:
            reason = str(error).replace(library, Path(library).name)
            level, source = logging.INFO, "the BLAS found"
            if library == wanted:
                level, source = logging.WARNING, f"{_VARIABLE}={wanted}"
            _log.log(level, "%s cannot be used: %s; looking further", source, reason)
    return "bundled", None


_blas, _handle = "bundled", None
if sys.platform == "darwin":
    _blas = "accelerate"
elif "mlx.core" in sys.modules:
    _log.info("mlx was imported before taqdit.backend: its BLAS stays as it is")
    _blas = "unknown (mlx was imported first)"
else:
    _blas, _handle = _choose_blas()
_log.info("BLAS of the CPU backend: %s", _blas)

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

__all__ = [
    "describe",
    "mx",
    "nn",
    "on_cpu",
    "peak_memory",
    "reset_peak_memory",
    "side_stream",
    "threads",
    "tree_flatten",
]


def describe() -> dict[str, str]:
    """What the numbers may depend on: mlx version, device, chip, BLAS, platform. No path in it."""
    return {
        "mlx": str(mx.__version__),  # type: ignore[attr-defined]
        "device": mx.default_device().type.name,
        "chip": str(mx.device_info().get("device_name", "unknown")),
        "blas": _blas,
        "platform": f"{platform.system()} {platform.machine()}".lower(),
    }


def on_cpu() -> bool:
    """Whether MLX computes on the CPU, so that the host reads its arrays without a copy."""
    return bool(mx.default_device() == mx.Device(mx.cpu))


@lru_cache(maxsize=1)
def side_stream() -> mx.Stream:
    """Where to compute what the main work need not wait for: on the CPU, a thread of its own.

    A GPU's own stream is kept there: it would gain nothing.
    """
    return mx.new_stream(mx.cpu) if on_cpu() else mx.default_stream(mx.default_device())


def peak_memory() -> int:
    """Bytes that MLX's allocator held at most since the start or the last reset."""
    return int(mx.get_peak_memory())


def reset_peak_memory() -> None:
    """Let `peak_memory` start again from what is held now."""
    mx.reset_peak_memory()


def threads() -> int:
    """Threads that a matrix product on the CPU uses; 1 with the bundled BLAS."""
    for name in ("openblas_get_num_threads", "MKL_Get_Max_Threads", "omp_get_max_threads"):
        if hasattr(_handle, name):
            return int(getattr(_handle, name)())
    return 1 if _blas == "bundled" else os.cpu_count() or 1
