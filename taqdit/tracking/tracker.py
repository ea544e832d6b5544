"""What a run may say about itself, whoever listens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from taqdit.store.secrets import mask_secrets
from taqdit.tracking.plain import merge_bins
from taqdit.words import plain

Numbers = Sequence[float] | np.ndarray
Counted = tuple[Numbers, Numbers]  # a histogram: counts (k,), edges (k + 1,) increasing
ROW_BINS, MIN_BINS, MAX_BINS = 4096, 64, 512  # of a row's histograms; of each (W&B takes 512)


@dataclass(frozen=True)
class RunInfo:
    """Who is being tracked. `run_id` belongs to this run alone and is never used again. `wandb`:
    its `project` and `entity` there; None for a run that W&B is to know nothing of."""

    folder: Path
    run_id: str
    name: str
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    wandb: Mapping[str, Any] | None = None


class Sink(Protocol):
    """One listener. What it is told is plain (JSON's types), free of secrets and its own copy."""

    @property
    def location(self) -> str:
        """Where to look at what was tracked: a path or an address; empty if nowhere (yet)."""
        ...

    def emit(self, kind: str, fields: dict[str, Any]) -> None:
        """One event; `kind` and `fields` are a method of Tracker and its arguments."""
        ...

    def finish(self, ok: bool) -> None:
        """No event comes after this."""
        ...


class Tracker:
    """A run's numbers on their way to any number of sinks, none of which can stop the run.

    `axis` says where on the trajectory a value was taken, e.g. {"step": 3, "sigma": 0.9,
    "timestep": 900.0}; numbers may be Python's or numpy's. Nothing waits for a network. After
    `finish` everything is ignored. Raises StorageError if the disk is full, and ValueError if
    lengths do not fit together.
    """

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks
        self._finished = False

    @property
    def location(self) -> str:
        """Where to look at what was tracked; empty if nowhere."""
        return ", ".join(place for sink in self._sinks if (place := sink.location))

    def scalars(self, values: Mapping[str, float], *, axis: Mapping[str, float]) -> None:
        """All numbers of one point in one call: each call is a row."""
        self._tell("scalars", axis=axis, values=values)

    def histograms(
        self,
        values: Mapping[str, Counted],
        *,
        axis: Mapping[str, float],
        scalars: Mapping[str, float] | None = None,
        along: str = "timestep",
    ) -> None:
        """All histograms and numbers of one point in one call: each call is a row.

        They are drawn along the name `along` of `axis`. A histogram is counted already. So that
        rows stay small, neighbouring bins are merged: 4096 bins a row, but 64 to 512 for each
        histogram; counts become whole numbers with the same total, edges have 7 digits.
        """
        if along not in axis:
            raise ValueError(f"along={along!r} must be a name in axis: {', '.join(axis)}")
        numbers = dict(scalars or {})
        if twice := numbers.keys() & values.keys():
            raise ValueError(f"{min(twice)} is both a histogram and a number")
        most = min(MAX_BINS, max(MIN_BINS, ROW_BINS // max(1, len(values))))
        merged = {name: _merged(name, *counted, most=most) for name, counted in values.items()}
        self._tell("histograms", axis=axis, along=along, scalars=numbers, values=merged)

    def curves(self, name: str, *, x: Numbers, ys: Mapping[str, Numbers], x_name: str) -> None:
        """One chart of whole curves, each as long as `x`. It makes no rows: to compare runs point
        by point, tell the numbers to `scalars` or `histograms` too."""
        for key, y in ys.items():
            if len(y) != len(x):
                raise ValueError(f"{name}/{key}: {len(y)} values for {len(x)} of {x_name}")
        self._tell("curves", name=name, x_name=x_name, x=x, ys=ys)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Rows of plain values, one per column."""
        if wrong := [row for row in rows if len(row) != len(columns)]:
            raise ValueError(f"{name}: {len(columns)} columns, but a row has {len(wrong[0])}")
        self._tell("table", name=name, columns=columns, rows=rows)

    def image(self, name: str, path: Path, caption: str = "") -> None:
        """An image file that exists by now and stays."""
        self._tell("image", name=name, path=path, caption=caption)

    def artifact(self, name: str, *, kind: str, path: Path, metadata: Mapping[str, Any]) -> None:
        """A reference to a file or folder; nothing is copied."""
        self._tell("artifact", name=name, type=kind, path=path, metadata=metadata)

    def uses(self, name: str, *, kind: str, path: Path) -> None:
        """This run read the artifact `name` at `path`; nobody need have tracked it before."""
        self._tell("uses", name=name, type=kind, path=path)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final values; later ones add to or replace earlier ones."""
        self._tell("summary", values=values)

    def finish(self, *, ok: bool) -> None:
        """Ends the record, after a bounded wait for slow sinks. A second call does nothing."""
        if not self._finished:
            self._finished = True
            with ExitStack() as stack:  # in order, and all of them whatever one raises
                for sink in reversed(self._sinks):
                    stack.callback(sink.finish, ok)

    def _tell(self, kind: str, **fields: Any) -> None:
        if not self._finished and self._sinks:
            for sink in self._sinks:
                sink.emit(kind, mask_secrets(plain(fields)))


def _merged(name: str, counts: Numbers, edges: Numbers, *, most: int) -> dict[str, Any]:
    if len(counts) < 1 or len(edges) != len(counts) + 1:
        raise ValueError(f"{name}: {len(counts)} counts need one more edge, not {len(edges)}")
    whole, ends = merge_bins(np.asarray(counts), np.asarray(edges, dtype=float), most=most)
    return {"counts": whole, "edges": [float(f"{end:.7g}") for end in ends]}
