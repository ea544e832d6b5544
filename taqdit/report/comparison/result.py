"""What one run left behind, read without trust: a missing or damaged file is a status, no error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taqdit.analysis.scores import FITTED, ROUGH
from taqdit.quantizer import BITS
from taqdit.report.run_folder import (
    ANALYSIS,
    COMPOSED,
    OK,
    OVERRIDES,
    RECORD,
    SUMMARY,
    RunFolder,
    shaped,
)
from taqdit.store import plain_yaml

MISSING, DAMAGED = "missing", "damaged"
_NUMBER = (float,)
_RECORD = {
    "config": dict,
    "choices": {str: str},
    "stages": {str: str},
    "run_id": str,
    "store": str,
    "prompts": ([str],),
    "prompt_seeds": ([(int,)],),
}
_SELECTED = {
    "rule": str,
    "points": float,
    "steps": [int],
    "loss_db": [_NUMBER],
    "half_width_db": [_NUMBER],
    "fitted": bool,
    "exact": bool,
}
_COMPARISON = {"own": (int,), "selections": [_SELECTED]}


@dataclass(frozen=True)
class Selected:
    """How one selection did in a run's analysis; widths as in BITS, None = not known.

    `points`: per trajectory. `half_width_db`: half of the 95 % interval of the loss. `fitted`,
    `exact`: see `taqdit.analysis.scores.Candidate`.
    """

    rule: str
    points: float
    steps: tuple[int, ...]
    loss_db: tuple[float | None, ...]
    half_width_db: tuple[float | None, ...]
    fitted: bool
    exact: bool
    own: bool

    def __post_init__(self) -> None:
        widths = {len(self.loss_db), len(self.half_width_db)}
        if self.points is None or widths != {len(BITS)}:
            raise ValueError(f"{self.rule} has no number of points, or not a loss for each width")

    @property
    def name(self) -> str:
        """The rule with the marks that its losses need."""
        return self.rule + FITTED * self.fitted + ROUGH * (not self.exact)


@dataclass(frozen=True)
class RunResult:
    """One run as its folder tells it.

    `status` is that of summary.json (ok, failed, interrupted, preflight), or missing or damaged,
    where `error` says what is. `overrides` are those of the command line, `choices` the options of
    the config groups, `numbers` the flat scores, `steps` the calibration steps. `fingerprints`
    are those of the stages in `store`, `extent` is the number of traced trajectories.
    """

    folder: Path
    status: str
    error: str | None = None
    overrides: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    selections: tuple[Selected, ...] = ()
    steps: tuple[int, ...] = ()
    seconds: float | None = None
    run_id: str | None = None
    store: Path | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    extent: int | None = None
    prompts: tuple[tuple[str, int | None], ...] = ()

    @property
    def own(self) -> Selected | None:
        """The run's own selection; None if it was not analysed."""
        return next((selection for selection in self.selections if selection.own), None)


def read(folder: str | Path) -> RunResult:
    """The run in a folder. Whatever is missing or damaged there: a status, never an exception."""
    folder = Path(folder)
    notes: list[tuple[str, str]] = []  # (status, text)
    known: dict[str, Any] = {}
    for name, parse in _FILES.items():
        try:
            known |= parse(RunFolder(folder))
        except FileNotFoundError:
            notes += [(MISSING, f"{name} is not there")] if name in (SUMMARY, RECORD) else []
        except (ValueError, TypeError, ArithmeticError, OSError, RecursionError) as error:
            first = next(iter(str(error).splitlines()), "")
            notes.append((DAMAGED, f"{name} is damaged ({type(error).__name__}: {first})"))
    if known.pop("analysed", False) and "selections" not in known and not notes:
        notes.append((MISSING, f"{ANALYSIS} is not there"))
    composed = known.pop("composed", {})
    known["config"] = known.get("config") or composed
    return RunResult(folder, **_judged(known, notes, exists=folder.is_dir()))


def _judged(known: dict[str, Any], notes: list[tuple[str, str]], *, exists: bool) -> dict[str, Any]:
    """With the status that the notes leave: damage outdoes all, what is missing only `ok`."""
    texts = "; ".join(text for _, text in notes)
    if not exists:
        return {**known, "status": MISSING, "error": "there is no such folder"}
    if any(kind == DAMAGED for kind, _ in notes):
        return {**known, "status": DAMAGED, "error": texts}
    if notes and known.get("status", OK) == OK:
        return {**known, "status": MISSING, "error": f"{texts}: the run did not finish"}
    return known


def _summary(run: RunFolder) -> dict[str, Any]:
    document = run.document(SUMMARY)

    def part(stage: str, key: str, shape: Any) -> Any:
        return (shaped(document.get(stage), ({key: (shape,)},), stage) or {}).get(key)

    scores = part("analysis", "scores", {str: _NUMBER}) or {}
    return {
        **shaped(document, {"status": str, "error": (str,), "seconds": _NUMBER}),
        "numbers": {name: number for name, number in scores.items() if number is not None},
        "steps": part("calibration", "steps", [int]) or (),
        "extent": part("statistics", "trajectories", int),
        "analysed": bool(document.get("analysis")),
    }


def _record(run: RunFolder) -> dict[str, Any]:
    record = shaped(run.document(RECORD), _RECORD)
    texts, seeds = record.pop("prompts") or (), record.pop("prompt_seeds") or ()
    return {
        "fingerprints": record.pop("stages"),
        **record,
        "store": run.path / record["store"],
        "prompts": tuple(zip(texts, seeds, strict=True)),
    }


def _analysis(run: RunFolder) -> dict[str, Any]:
    comparison = shaped(run.document(ANALYSIS).get("comparison"), _COMPARISON)
    own, selections = comparison["own"], enumerate(comparison["selections"])
    return {
        "selections": tuple(Selected(**fields, own=place == own) for place, fields in selections)
    }


def _overrides(run: RunFolder) -> dict[str, Any]:
    return {"overrides": shaped(plain_yaml.read(run.path / OVERRIDES), [str])}


def _composed(run: RunFolder) -> dict[str, Any]:
    """The configuration as Hydra left it: all there is of a run that never began."""
    return {"composed": shaped(plain_yaml.read(run.path / COMPOSED), dict)}


_FILES: dict[str, Callable[[RunFolder], dict[str, Any]]] = {
    SUMMARY: _summary,
    RECORD: _record,
    ANALYSIS: _analysis,
    OVERRIDES: _overrides,
    COMPOSED: _composed,
}
