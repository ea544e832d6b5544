"""The mirror of a run in W&B, seen from the run: a child process that reads its events.jsonl.

The run writes its own record and never waits for W&B: the child (`mirror.py`) alone loads wandb.
What hangs in there is killed, and `taqdit sync` finishes from events.jsonl what broke off.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taqdit.store.digest import parse_object
from taqdit.store.secrets import mask_text

_log = logging.getLogger(__name__)
_BOOT = 60.0  # seconds that an interpreter may take to start on a busy machine
# What another run of this process, or a setting for runs of other kinds, must not decide.
_NOT_OURS = ("WANDB_SERVICE", "WANDB_MODE", "WANDB_RESUME")


@dataclass(frozen=True)
class MirrorOptions:
    """How a run gets to W&B, and for how many seconds to wait for it. With a `scratch` folder,
    where W&B's own files go, what it has of the run so far is replaced; else an id that it knows
    is refused, and its files go to the run's folder."""

    online: bool
    init_timeout: float
    call_timeout: float
    finish_timeout: float
    scratch: str | None = None


class MirrorProcess:
    """The child process that hands the events of one run to W&B.

    It has a session of its own, so Ctrl-C in the terminal does not reach it, and writes nothing to
    the terminal. It learns by its standard input that the run has ended, however it ended: then it
    hands on what is left and ends too, within `finish_timeout`.
    """

    def __init__(self, folder: Path, run_id: str, options: MirrorOptions) -> None:
        self.location = ""  # of the run: an address online, a folder offline
        self.whole = False  # W&B has all of it
        self.failure = ""  # why the child has ended before that
        self._options, self._heard = options, b""
        self._started, self._opened = time.monotonic(), 0.0
        self._child: subprocess.Popen[bytes] | None = None
        line = [sys.executable, "-P", "-m", "taqdit.tracking.mirror"]
        try:
            self._child = subprocess.Popen(
                [*line, str(folder), run_id, json.dumps(asdict(options))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(online=options.online),
                start_new_session=True,
            )
        except OSError as error:
            self.failure = f"its process cannot be started ({error})"

    def listen(self, seconds: float = 0.0) -> bool:
        """Take what the child says within so many seconds; False once it has ended."""
        child = self._child
        if child is None or child.stdout is None or child.returncode is not None:
            return False
        ready = select.poll()  # not select: a run may have more than 1024 files open
        ready.register(child.stdout, select.POLLIN)
        if not ready.poll(seconds * 1000):
            return True
        said = os.read(child.stdout.fileno(), 65536)
        *lines, self._heard = (self._heard + said).split(b"\n")
        for line in lines:
            with suppress(ValueError):  # what an interpreter says while it starts is not for us
                self._take(parse_object(line))
        if not said:
            self.stop(f"its process ended ({_how(child.wait())})")
        return bool(said)

    def finish(self) -> None:
        """Wait for a start still under way, then at most `finish_timeout` seconds; then kill."""
        asked, limit = time.monotonic(), self._options.finish_timeout
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
        while self.listen(max(0.0, self._deadline(asked) - time.monotonic())):
            if time.monotonic() >= self._deadline(asked):
                self.stop(f"finish did not end within {limit:g} s")

    def _deadline(self, asked: float) -> float:
        """Until then the child may live. It watches over its own start."""
        if not self._opened:
            return self._started + _BOOT + self._options.init_timeout
        return max(asked, self._opened) + self._options.finish_timeout

    def stop(self, reason: str) -> None:
        """End the child, if it has not; W&B's own process watches it and ends with it."""
        child = self._child
        if child is not None and child.poll() is None:
            child.kill()
            child.wait()
        if not self.whole:
            self.failure = self.failure or mask_text(reason)

    def _take(self, said: dict[str, Any]) -> None:
        if "opened" in said:
            self._opened, self.location = time.monotonic(), said["opened"]
        if "note" in said:
            _log.info("W&B: %s", mask_text(said["note"]))
        if "failed" in said:
            self.failure = mask_text(said["failed"])
        self.whole = self.whole or "whole" in said


class WandbSink:
    """Has a run's events mirrored while they are written; says in one line if that breaks off."""

    def __init__(self, folder: Path, run_id: str, options: MirrorOptions) -> None:
        self._folder, self._warned = folder, False
        self._mirror = MirrorProcess(folder, run_id, options)

    @property
    def location(self) -> str:
        """The run's address online, its folder offline; empty before W&B has started."""
        return self._mirror.location

    def emit(self, kind: str, fields: dict[str, Any]) -> None:
        """The event is in events.jsonl already, where the mirror finds it."""
        self._mirror.listen()
        self._warn()

    def finish(self, ok: bool) -> None:
        """Waits at most `finish_timeout` seconds for W&B to take the rest."""
        self._mirror.finish()
        self._warn()

    def _warn(self) -> None:
        if self._mirror.failure and not self._warned:
            self._warned = True
            words = "W&B: %s; from here on events.jsonl alone; finish it: taqdit sync %s"
            _log.warning(words, self._mirror.failure, self._folder)


def _environment(*, online: bool) -> dict[str, str]:
    """This process's environment, where the child finds the modules that this process finds."""
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
    if not online:  # or W&B's own telemetry would reach for the network
        kept.setdefault("WANDB_ERROR_REPORTING", "false")
    return kept | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


def _how(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit code {status}"
