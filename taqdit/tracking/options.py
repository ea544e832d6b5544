"""Where a run's numbers go. Options of the config group `tracking`.

Every option but `none` writes <run folder>/events.jsonl; W&B mirrors it and never harms the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from taqdit.errors import require
from taqdit.store.secrets import mask_secrets
from taqdit.tracking.credentials import MODES, resolve_mode
from taqdit.tracking.events import LocalSink
from taqdit.tracking.process import MirrorOptions, WandbSink
from taqdit.tracking.tracker import RunInfo, Tracker
from taqdit.words import plain

__all__ = ["Tracker", "TrackingOptions", "auto", "local", "none", "wandb"]

_ONLINE_INIT, _OFFLINE_INIT = 30.0, 20.0


@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """Where a run's numbers go. Nothing is opened before `start`.

    Timeouts are seconds; `init_timeout` None means 30 online and 20 offline. Raises ConfigError for
    values out of range.
    """

    mode: str = field(default="auto", init=False)
    project: str = "taqdit"
    entity: str | None = None
    init_timeout: float | None = None
    call_timeout: float = 30.0
    finish_timeout: float = 60.0

    backend: ClassVar[str] = "wandb"  # or local, none

    def __post_init__(self) -> None:
        project, mode = self.project, self.mode
        good = 1 <= len(project) <= 128 and not set(project) & set("/\\#?%:")
        waits = [(n, getattr(self, n)) for n in ("init_timeout", "call_timeout", "finish_timeout")]
        require(
            (mode in ("auto", *MODES), f"mode={mode} must be one of {', '.join(MODES)}"),
            (good, f"project={project!r} must be 1 to 128 characters, none of / \\ # ? % :"),
            *(
                (wait is None or 0 < wait <= 86400, f"{name}={wait} must lie in (0, 86400] s")
                for name, wait in waits
            ),
        )

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


class auto(TrackingOptions):
    """W&B online if a key is configured, else offline; WANDB_MODE and W&B's settings decide first.

    Looks at files and the environment only: no prompt, no wait, no network.
    """


@dataclass(frozen=True, kw_only=True)
class wandb(TrackingOptions):
    """W&B as `mode` says: online, offline or disabled."""

    mode: str = "online"


class local(TrackingOptions):
    """events.jsonl in the run's folder and nothing else."""

    backend = "local"

    def __init__(self) -> None:
        super().__init__()


class none(TrackingOptions):
    """Nothing is tracked."""

    backend = "none"

    def __init__(self) -> None:
        super().__init__()
