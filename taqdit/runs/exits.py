"""The outermost wrapper: one line per error, and the exit code of its kind."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from taqdit.errors import ConfigError, StorageError, TaqditError

INTERRUPTED = 130
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = 141  # 128 + SIGPIPE, as shells have it


def exit_with(command: Callable[[], int]) -> None:
    """Run `command` and leave the process with its exit code, or that of the error it raised.

    SIGTERM acts like Ctrl-C. A fault of ours keeps its traceback.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes exceptions on instead of printing them
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = command()
    except TaqditError as error:
        for text in error.args:
            print(f"taqdit: {text}", file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:  # whoever read our output has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = CLOSED
    except KeyboardInterrupt:
        print("taqdit: interrupted; what is published is kept, run again to go on", file=sys.stderr)
        code = INTERRUPTED
    except Exception as error:
        code = _foreign(error)
    logging.shutdown()
    sys.exit(code)


def _foreign(error: Exception) -> int:
    """Hydra's complaint becomes one line, and what the system refused Hydra."""
    from taqdit.config import hydra_complains, one_line

    if hydra_complains(error):  # some of Hydra's are OSErrors too
        print(f"taqdit: {one_line(error)}", file=sys.stderr)
        return ConfigError.exit_code
    if isinstance(error, OSError):  # Hydra's own folders; ours come as StorageError
        place = "" if error.filename is None else f"{error.filename}: "
        advice = (
            "free some space (taqdit store du, gc)" if error.errno in FULL else "check the path"
        )
        words = f"{place}{error.strerror or error}; {advice}, or set another output_dir"
        print(f"taqdit: {words}", file=sys.stderr)
        return StorageError.exit_code
    raise error


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
