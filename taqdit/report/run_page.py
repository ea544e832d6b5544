"""report.html of one run: what it was, what it made, its pictures, figures and layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omegaconf import OmegaConf

from taqdit.activations.layer_summary import COLUMNS
from taqdit.report.figures import Drawn
from taqdit.report.html import FigureEntry, Picture, Report, SortableTable, render
from taqdit.store import publish_bytes
from taqdit.store.secrets import mask_secrets
from taqdit.words import size

PAGE, LAYERS_CSV = "report.html", "layers.csv"
MOST_PICTURES = 36
_NOTHING: Mapping[str, Sequence[str]] = MappingProxyType({})
GRID = "image_grid"  # shows the pictures, which the page has one by one
EMBEDDED = 60  # figures; more would make the page heavy, and lie in figures/ all the same


def write_page(
    folder: Path,
    *,
    run: Mapping[str, Any],
    summary: Mapping[str, Any],
    pictures: Sequence[tuple[str, Path]],
    figures: Sequence[Drawn],
    layers: Sequence[tuple[Any, ...]],
    verdict: Mapping[str, Sequence[str]] = _NOTHING,
    tables: Sequence[SortableTable] = (),
) -> Path:
    """Publish report.html in the run's folder.

    `run` and `summary` are run.json and summary.json; `pictures` are captions with PNG files;
    `layers` the rows of the layer summary (() = nothing was traced); `verdict` and `tables` those
    of the analysis.
    """
    shown = [each for each in figures if each.name != GRID]
    report = Report(
        title=f"taqdit · {run['config']['model']['_target_'].rpartition('.')[2]}",
        subtitle=f"{folder.parent.name} {folder.name} · run {run['run_id']}",
        notes=[*_notes(summary), *_left_out(len(pictures), len(shown))],
        facts=_facts(run, summary),
        stages=_stages(summary),
        pictures=[Picture(text, path.read_bytes()) for text, path in pictures[:MOST_PICTURES]],
        figures=_figures(folder, shown[:EMBEDDED]),
        findings=[(topic, "\n".join(texts)) for topic, texts in verdict.items()],
        tables=[*tables, *([layers_table(layers)] if layers else [])],
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(mask_secrets(dict(run["config"])))),
        provenance_json=json.dumps(_provenance(run), indent=2, sort_keys=True),
    )
    path = folder / PAGE
    publish_bytes(path, render(report))
    return path


_IMPORTED = ("imported", "imported_statistics")  # keys of run.json


def _imported(run: Mapping[str, Any]) -> bool:
    return any(run.get(key) for key in _IMPORTED)


def _notes(summary: Mapping[str, Any]) -> list[str]:
    return [f"{each['folder']} was {each['note']}" for each in summary["stages"] if each["note"]]


def _left_out(pictures: int, figures: int) -> list[str]:
    """What the page leaves out to stay light."""
    notes = []
    if pictures > MOST_PICTURES:
        notes.append(f"{MOST_PICTURES} of {pictures} pictures are shown; all lie in the store")
    if figures > EMBEDDED:
        notes.append(f"{EMBEDDED} of {figures} figures are shown; all lie in figures/")
    return notes


def _facts(run: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    config, choices = run["config"], run["choices"]
    sampler, schedule = config["sampler"], config["schedule"]
    facts = [
        ("options", ", ".join(f"{group}={choice}" for group, choice in sorted(choices.items()))),
        ("sampling", "none: made elsewhere")
        if _imported(run)
        else (
            "sampling",
            f"{sampler['num_trajectories']} trajectories x {schedule['num_steps']} steps,"
            f" CFG {sampler['cfg_scale']:g}, seed {sampler['seed']}",
        ),
    ]
    if found := summary.get("calibration"):
        steps = ", ".join(map(str, found["steps"]))
        facts.append(("calibration", f"{found['points']} points at steps {steps}"))
    if found := summary.get("statistics"):
        covers = f"{found['sites']} sites x {found['steps']} steps"
        whence = found.get("imported") or f"{found['trajectories']} trajectories"
        facts.append(("statistics", f"{covers} of {whence}"))
    backend = run["backend"]
    facts += [
        ("backend", ", ".join(f"{key} {value}" for key, value in backend.items())),
        ("versions", ", ".join(f"{name} {v}" for name, v in run["versions"].items() if v)),
        ("time", f"{summary['seconds']:.1f} s"),
        ("memory", f"process {size(summary['peak_memory_bytes'])} at the peak"),
    ]
    return facts


def _stages(summary: Mapping[str, Any]) -> SortableTable | None:
    rows = [
        (each["name"], each["made"], each["reused"], each["seconds"], f"store/{each['folder']}")
        for each in summary["stages"]
    ]
    columns = ("stage", "made", "reused", "seconds", "folder")
    return SortableTable("Stages", columns, rows) if rows else None


def _figures(folder: Path, figures: Sequence[Drawn]) -> list[tuple[str, list[FigureEntry]]]:
    groups: dict[str, list[FigureEntry]] = {}
    for each in figures:
        links = tuple(path.relative_to(folder).as_posix() for path in each.files[1:])
        entry = FigureEntry(each.name, each.title, each.files[0].read_bytes(), links)
        groups.setdefault(each.heading, []).append(entry)
    return list(groups.items())


def layers_table(rows: Sequence[tuple[Any, ...]]) -> SortableTable:
    """The rows of the layer summary, a layer's name first."""
    note = "; ".join(f"{name}: {meaning}" for name, meaning in COLUMNS.items())
    return SortableTable("Layers", ("layer", *COLUMNS), rows, note=f"{note}.", files=(LAYERS_CSV,))


def _provenance(run: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("run_id", "store", "stages", "backend", "versions", "python", *_IMPORTED)
    return {key: run[key] for key in kept if key in run}
