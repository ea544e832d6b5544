"""The one door to MLX: `from taqdit.backend import mx, nn`.

On Linux, MLX's CPU backend brings a reference BLAS that is 10 to 20 times slower than a tuned one.
Symbols that are already in the process's global scope win over it, so a tuned library is loaded
here, globally, before `mlx.core` is imported for the first time (later has no effect). Nothing
found means slower, never an error.

Python packages bring libraries of their own in a folder beside them, `<package>.libs`, with hashed
names. The OpenBLAS in faiss-cpu's calls its functions by BLAS's own names; those of numpy and scipy
have changed ones, which MLX would not find.
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
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)
_VARIABLE = "TAQDIT_BLAS"
_ADDRESSES = 8 * 2**30  # bytes
_COMPANIONS = ("libquadmath", "libgfortran", "libgomp")  # each needs only those before it


def _candidates() -> Iterator[str]:
    """Every tuned BLAS library at hand, best first.

    The system's OpenBLAS and MKL were put there for their speed and have threads of their own; a
    package's is older, on OpenMP, and as fast; torch's is a part of something large.
    """
    if openblas := ctypes.util.find_library("openblas"):
        yield openblas
    yield from map(str, sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")))
    for entry in sys.path:
        yield from map(str, sorted(Path(entry).glob("*.libs/libopenblas*.so*")))
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
    if Path(library).parent.suffix == ".libs":
        _open_companions(Path(library).parent)
    # Looked at privately first: a library that turns out to be none must not shadow any symbol.
    found = ctypes.CDLL(library)
    if not hasattr(found, "sgemm_"):
        raise OSError(f"{Path(library).name} has no sgemm_")
    if hasattr(found, "openblas_get_config"):
        found.openblas_get_config.restype = ctypes.c_char_p
        if b"USE64BITINT" in found.openblas_get_config():
            raise OSError(f"{Path(library).name} takes 64-bit integers, MLX gives 32-bit ones")
    return ctypes.CDLL(library, ctypes.RTLD_GLOBAL)


def _open_companions(folder: Path) -> None:
    """What a package's OpenBLAS needs of its folder: it would look for it in the system's alone."""
    with _openmp_settings():
        for name in _COMPANIONS:
            for companion in sorted(folder.glob(f"{name}*.so*")):
                ctypes.CDLL(str(companion))


@contextmanager
def _openmp_settings() -> Iterator[None]:
    """What a libgomp that is loaded meanwhile reads, where the environment says nothing of it.

    Its idle threads spin unless told to be passive: where another process wants the core, sampling
    took three to seven times as long. And an OpenBLAS on OpenMP has as many threads as OpenMP,
    whatever OPENBLAS_NUM_THREADS says.
    """
    settings = {}
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        settings["OMP_WAIT_POLICY"] = "passive"
    if "OMP_NUM_THREADS" not in os.environ and "OPENBLAS_NUM_THREADS" in os.environ:
        settings["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"]
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            del os.environ[name]


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
            reason = str(error).replace(f"{Path(library).parent}{os.sep}", "")
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


def peak_memory() -> int:
    """Bytes that MLX's allocator held at most since the start or the last reset."""
    return int(mx.get_peak_memory())


def reset_peak_memory() -> None:
    """Let `peak_memory` start again from what is held now."""
    mx.reset_peak_memory()


def threads() -> int:
    """Threads that a matrix product on the CPU uses; 1 with the bundled BLAS."""
    # OpenBLAS on OpenMP learns at its first product how many there are: OpenMP is asked first.
    for name in ("MKL_Get_Max_Threads", "omp_get_max_threads", "openblas_get_num_threads"):
        if hasattr(_handle, name):
            return int(getattr(_handle, name)())
    return 1 if _blas == "bundled" else os.cpu_count() or 1
