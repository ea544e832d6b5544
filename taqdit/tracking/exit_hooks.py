"""What foreign code wants to do when the interpreter exits, it may do for a bounded time only."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from typing import Any


class _HooksOf:
    """Equal to every exit hook of some packages: `atexit.unregister` compares, so it hands us
    each of them, which atexit offers no other way to do."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages
        self.found: list[Callable[[], Any]] = []

    def __eq__(self, hook: object) -> bool:
        module = getattr(getattr(hook, "func", hook), "__module__", None) or ""
        ours = module.split(".")[0] in self.packages
        if ours and callable(hook):
            self.found.append(hook)
        return ours


def take_exit_hooks(*packages: str) -> list[Callable[[], Any]]:
    """Unregisters and returns the exit hooks that functions of `packages` are."""
    hooks: Any = _HooksOf(packages)
    atexit.unregister(hooks)
    return list(hooks.found)


class ExitGuard:
    """At exit: ends what is still open, then gives the packages' own hooks `limit` seconds.

    `arm` must be called after the packages registered their hooks (exit hooks run newest first).
    After `distrust` their hooks are not run at all.
    """

    def __init__(self, *packages: str, limit: float) -> None:
        self._packages, self._limit = packages, limit
        self._open: list[Callable[[], Any]] = []
        self._hooks: list[Callable[[], Any]] = []
        self._trusted, self._process = True, os.getpid()
        self._go, self._done = threading.Event(), threading.Event()
        # Started now: no thread can be started any more while the interpreter exits.
        threading.Thread(target=self._run_hooks, name="exit-guard", daemon=True).start()
        # Before any hook of atexit: a package may be about to register one that would come first.
        if (register := getattr(threading, "_register_atexit", None)) is not None:
            register(self._close)

    def arm(self) -> None:
        """Moves this guard in front of every hook registered so far."""
        atexit.unregister(self.at_exit)
        atexit.register(self.at_exit)

    def distrust(self) -> None:
        """The packages failed once: their hooks would wait for something that never comes."""
        self._trusted = False
        self.arm()

    def opened(self, close: Callable[[], Any]) -> None:
        """`close` is called at exit unless `closed` was told first."""
        self._open.append(close)

    def closed(self, close: Callable[[], Any]) -> None:
        """`close` need not be called any more."""
        if close in self._open:
            self._open.remove(close)

    def at_exit(self) -> None:
        """What the interpreter calls."""
        if os.getpid() != self._process:
            return  # a forked child has neither the threads nor the connections
        self._close()
        hooks = take_exit_hooks(*self._packages)
        if hooks and self._trusted:
            self._hooks = hooks
            self._go.set()
            self._done.wait(self._limit)

    def _close(self) -> None:
        """End what is open, in the process that opened it."""
        while self._open and os.getpid() == self._process:
            self._open.pop(0)()

    def _run_hooks(self) -> None:
        self._go.wait()
        for hook in self._hooks:
            try:
                hook()
            except BaseException:  # at exit nobody is left to hear of it
                continue
        self._done.set()
