"""What opening a file costs: the most memory beyond what there was, and the time."""

import gc
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Memory:
    """The most resident memory since this was made, beyond what there was then.

    Linux forgets its high-water mark when told to. Elsewhere the mark of the whole process is
    taken, which is right as long as it rises.
    """

    def __init__(self) -> None:
        if _RESET.exists():
            _RESET.write_text("5")
        self._before = _resident()

    def extra(self) -> int:
        """Bytes."""
        return _peak() - self._before


def _resident() -> int:
    return _status("VmRSS:") if _STATUS.exists() else _peak()


def _peak() -> int:
    if _STATUS.exists():
        return _status("VmHWM:")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int:
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return next(int(line[1]) * 1024 for line in lines if line[0] == key)


def _timed(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def cost(call: Callable[[], object], *, times: int = 3, traced: bool = True) -> tuple[float, int]:
    """Seconds, the best of a few, and bytes: resident, or if `traced` as Python counts what it
    allots, since memory that an earlier call has freed does not show as resident anew."""
    memory, seconds = Memory(), [_timed(call)]
    extra = memory.extra()
    while seconds[0] > 0.2 and len(seconds) < times:
        seconds.append(_timed(call))
    if traced:
        gc.collect()
        tracemalloc.start()
        call()
        extra = max(extra, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return min(seconds), extra
