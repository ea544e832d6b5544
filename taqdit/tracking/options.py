"""Where a run's numbers go. Config group `tracking`; one public function per option.

Every option but `none` writes <run folder>/events.jsonl; W&B mirrors it and never harms the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taqdit.errors import require
from taqdit.store.secrets import mask_secrets
from taqdit.tracking.credentials import MODES, resolve_mode
from taqdit.tracking.local import LocalSink
from taqdit.tracking.process import MirrorOptions, WandbSink
from taqdit.tracking.tracker import RunInfo, Tracker
from taqdit.words import plain

__all__ = ["Tracker", "TrackingOptions", "auto", "local", "none", "wandb"]

_ONLINE_INIT, _OFFLINE_INIT = 30.0, 20.0


@dataclass(frozen=True)
class TrackingOptions:
    """What an option function chose. Nothing is opened before `start`."""

    backend: str  # wandb | local | none
    mode: str = "auto"
    project: str = "taqdit"
    entity: str | None = None
    init_timeout: float | None = None
    call_timeout: float = 30.0
    finish_timeout: float = 60.0

    def start(
        self,
        run_folder: Path,
        *,
        run_id: str,
        name: str,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        config: Mapping[str, Any],
    ) -> Tracker:
        """A tracker of the run whose folder (it exists) is given. `config` is masked here."""
        if self.backend == "none":
            return Tracker()
        mode = resolve_mode(self.mode) if self.backend == "wandb" else "disabled"
        place = {"project": self.project, "entity": self.entity} if mode != "disabled" else None
        masked = mask_secrets(plain(config))
        run = RunInfo(run_folder, run_id, name, group, job_type, tuple(tags), masked, place)
        local = LocalSink(run)
        if place is None:
            return Tracker(local)
        online = mode == "online"
        init = self.init_timeout or (_ONLINE_INIT if online else _OFFLINE_INIT)
        options = MirrorOptions(online, init, self.call_timeout, self.finish_timeout)
        return Tracker(local, WandbSink(run_folder, run_id, options))


def auto(
    *,
    project: str = "taqdit",
    entity: str | None = None,
    init_timeout: float | None = None,
    call_timeout: float = 30.0,
    finish_timeout: float = 60.0,
) -> TrackingOptions:
    """W&B online if a key is configured, else offline; WANDB_MODE and W&B's settings decide first.

    Looks at files and the environment only: no prompt, no wait, no network.
    """
    waits = init_timeout, call_timeout, finish_timeout
    return _checked(TrackingOptions("wandb", "auto", project, entity, *waits), modes=("auto",))


def wandb(
    *,
    mode: str = "online",
    project: str = "taqdit",
    entity: str | None = None,
    init_timeout: float | None = None,
    call_timeout: float = 30.0,
    finish_timeout: float = 60.0,
) -> TrackingOptions:
    """W&B as `mode` says: online, offline or disabled. Timeouts in seconds; `init_timeout` None
    means 30 online and 20 offline. Raises ConfigError for values out of range."""
    waits = init_timeout, call_timeout, finish_timeout
    return _checked(TrackingOptions("wandb", mode, project, entity, *waits), modes=MODES)


def local() -> TrackingOptions:
    """events.jsonl in the run's folder and nothing else."""
    return TrackingOptions("local")


def none() -> TrackingOptions:
    """Nothing is tracked."""
    return TrackingOptions("none")


def _checked(options: TrackingOptions, *, modes: tuple[str, ...]) -> TrackingOptions:
    project = options.project
    good = 1 <= len(project) <= 128 and not set(project) & set("/\\#?%:")
    waits = [(n, getattr(options, n)) for n in ("init_timeout", "call_timeout", "finish_timeout")]
    require(
        (
            options.mode in ("auto", *MODES),
            f"mode={options.mode} must be one of {', '.join(MODES)}",
        ),
        (good, f"project={project!r} must be 1 to 128 characters, none of / \\ # ? % :"),
        *(
            (seconds is None or 0 < seconds <= 86400, f"{name}={seconds} must lie in (0, 86400] s")
            for name, seconds in waits
        ),
    )
    return options
