"""summary.json: what a run made, how long it took; and its closing words."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taqdit.activations.opened import ImportedStatistics
from taqdit.activations.stored import Statistics
from taqdit.words import size


def describe_calibration(points: Any) -> dict[str, Any]:
    """Counts and steps of a calibration set, for summaries and artifacts."""
    return {
        "points": len(points),
        "steps": [int(step) for step in points.steps],
        "cfg_scale": float(points.cfg_scale),
        "prompts": len(points.prompts),
    }


def lineage(kind: str, path: Path, fingerprint: str) -> dict[str, str]:
    """What something was made of, as the metadata of its artifact say it."""
    name = f"{kind}-{fingerprint[:12]}"
    return {"name": name, "type": kind, "path": str(path), "fingerprint": fingerprint}


def describe_statistics(statistics: Statistics | ImportedStatistics) -> dict[str, Any]:
    """What activation statistics cover, for summaries and artifacts."""
    covers = {"sites": len(statistics.sites), "steps": int(statistics.num_steps)}
    if isinstance(statistics, ImportedStatistics):
        return covers
    return {
        **covers,
        "trajectories": int(statistics.extent),
        "folds": int(statistics.folds),
        "fingerprint": statistics.fingerprint,
    }


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_mlx_memory() -> int:
    """Most bytes that MLX's allocator held so far; unified memory on a Mac is counted here."""
    from taqdit.backend import peak_memory as of_allocator

    return of_allocator()


def backend_words(backend: Mapping[str, Any]) -> str:
    """The arithmetic in one line; where it matters, how to make it faster."""
    words = (
        f"mlx {backend['mlx']} on {backend['device']} ({backend['chip']}), BLAS {backend['blas']}"
    )
    if backend["blas"] == "bundled":
        words += "; a faster one: README, 'Speed on Linux'"
    return words


def closing_words(summary: Mapping[str, Any], folder: Path, tracked: str) -> str:
    """What was made or reused, where, how long, peak memory; first layers and verdict."""
    analysis, statistics = summary.get("analysis"), summary.get("statistics", {})
    rows = []  # a word, and what is said under it
    for stage in summary["stages"]:
        words = f"{stage['made']} made, {stage['reused']} reused"
        if stage["moved_aside"]:
            words += f", {len(stage['moved_aside'])} corrupt moved aside and redone"
        rows.append((stage["name"], f"{words:<28} store/{stage['folder']}"))
    if files := [statistics[key] for key in ("layers", "npz") if key in statistics]:
        rows.append(("", f"-> {', '.join(files)}"))
    if points := summary.get("calibration"):
        words = f"{points['points']} points at {len(points['steps'])} steps"
        rows.append(("calibration", words + (f" -> {points['npz']}" if "npz" in points else "")))
    if figures := summary.get("figures"):
        rows.append(("figures", f"{len(figures)} files in figures/"))
    if analysis:
        rows.append(("analysis", ", ".join(analysis["files"])))
    if "report" in summary:
        rows.append(("report", f"{folder / summary['report']}"))
    if tracked:
        rows.append(("tracking", tracked))
    peak, mlx = (size(summary[f"peak_{key}_bytes"]) for key in ("memory", "mlx_memory"))
    rows.append(("run", f"{folder}"))
    rows.append(("", f"{summary['seconds']:.1f} s, peak memory {peak} (MLX {mlx})"))
    lines = [summary["layers"], ""] if "layers" in summary else []
    if analysis:
        lines += [
            f"{'' if place else topic:<14}{text}"
            for topic, texts in analysis["verdict"].items()
            for place, text in enumerate(texts)
        ]
        lines.append("")
    return "\n".join([*lines, *(f"{word:<14}{text}" for word, text in rows)])
