"""What one run left behind, read without trust: a missing or damaged file is a status, no error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from taqdit.analysis.scores import FITTED, ROUGH
from taqdit.quantizer import BITS
from taqdit.store.digest import read_object
from taqdit.store.plain_yaml import checked_text

MISSING, DAMAGED, OK = "missing", "damaged", "ok"
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError)


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

    @property
    def name(self) -> str:
        """The rule with the marks that its losses need."""
        return self.rule + FITTED * self.fitted + ROUGH * (not self.exact)


@dataclass(frozen=True)
class RunResult:
    """One run as its folder tells it.

    `status` is that of summary.json (ok, failed, interrupted, preflight), or missing or damaged,
    where `error` says what is. `overrides` are those of the command line, `choices` the options of
    the config groups, `numbers` the flat scores, `steps` the calibration steps. `marks` are the
    fingerprints of the stages in `store`, `extent` the number of traced trajectories.
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
    marks: Mapping[str, str] = field(default_factory=dict)
    extent: int | None = None
    prompts: tuple[tuple[str, int | None], ...] = ()

    @property
    def own(self) -> Selected | None:
        """The run's own selection; None if it was not analysed."""
        return next((each for each in self.selections if each.own), None)


def read(folder: str | Path) -> RunResult:
    """The run in a folder. Whatever is missing or damaged there: a status, never an exception."""
    folder = Path(folder)
    notes: list[tuple[str, str]] = []  # (status, text)
    found: dict[str, Any] = {}
    for name, parse in _FILES.items():
        try:
            found |= parse(folder / name)
        except FileNotFoundError:
            notes += [(MISSING, f"{name} is not there")] if name in _NEEDED else []
        except (*_UNREADABLE, OSError, RecursionError) as error:
            notes.append((DAMAGED, f"{name} is damaged ({_why(error)})"))
    if found.pop("analysed", False) and "selections" not in found and not notes:
        notes.append((MISSING, "analysis.json is not there"))
    found["config"] = found.get("config") or found.get("composed", {})
    found.pop("composed", None)
    if store := found.get("store"):
        found["store"] = folder / store
    return RunResult(folder, **_judged(found, notes, exists=folder.is_dir()))


def _judged(found: dict[str, Any], notes: list[tuple[str, str]], *, exists: bool) -> dict[str, Any]:
    """With the status that the notes leave: damage outdoes all, what is missing only `ok`."""
    texts = "; ".join(text for _, text in notes)
    if not exists:
        return {**found, "status": MISSING, "error": "there is no such folder"}
    if any(kind == DAMAGED for kind, _ in notes):
        return {**found, "status": DAMAGED, "error": texts}
    if notes and found.get("status", OK) == OK:
        return {**found, "status": MISSING, "error": f"{texts}: the run did not finish"}
    return found


def _summary(path: Path) -> dict[str, Any]:
    found = _json(path)
    analysis = _mapping(found.get("analysis", {}))
    scores = _mapping(analysis.get("scores", {}))
    statistics = _mapping(found.get("statistics", {}))
    error, extent = found.get("error"), statistics.get("trajectories")
    return {
        "status": _text(found["status"]),
        "error": None if error is None else _text(error),
        "seconds": _number(found.get("seconds")),
        "numbers": {
            name: number for name, value in scores.items() if (number := _number(value)) is not None
        },
        "steps": _steps(_mapping(found.get("calibration", {})).get("steps", [])),
        "extent": None if extent is None else int(extent),
        "analysed": bool(analysis),
    }


def _record(path: Path) -> dict[str, Any]:
    found = _json(path)
    texts, seeds = found.get("prompts", []), found.get("prompt_seeds", [])
    return {
        "config": _mapping(found["config"]),
        "choices": {name: _text(value) for name, value in _mapping(found["choices"]).items()},
        "marks": {name: _text(value) for name, value in _mapping(found["stages"]).items()},
        "run_id": _text(found["run_id"]),
        "store": Path(_text(found["store"])),
        "prompts": tuple((_text(text), seed) for text, seed in zip(texts, seeds, strict=True)),
    }


def _analysis(path: Path) -> dict[str, Any]:
    comparison = _mapping(_json(path)["comparison"])
    own = comparison["own"]
    selections = enumerate(comparison["selections"])
    return {"selections": tuple(_selected(each, own=place == own) for place, each in selections)}


def _selected(found: Any, *, own: bool) -> Selected:
    points = _number(found["points"])
    if points is None:
        raise ValueError("a selection has no number of points")
    return Selected(
        rule=_text(found["rule"]),
        points=points,
        steps=_steps(found["steps"]),
        loss_db=_widths(found["loss_db"]),
        half_width_db=_widths(found["half_width_db"]),
        fitted=bool(found["fitted"]),
        exact=bool(found["exact"]),
        own=own,
    )


def _overrides(path: Path) -> dict[str, Any]:
    found = OmegaConf.to_container(_yaml(path))
    if not isinstance(found, list):
        raise ValueError("it is no list")
    return {"overrides": tuple(_text(each) for each in found)}


def _composed(path: Path) -> dict[str, Any]:
    """The configuration as Hydra left it: all there is of a run that never began."""
    return {"composed": _mapping(OmegaConf.to_container(_yaml(path)))}


_FILES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "summary.json": _summary,
    "run.json": _record,
    "analysis.json": _analysis,
    ".hydra/overrides.yaml": _overrides,
    ".hydra/config.yaml": _composed,
}
_LARGEST = 2**26  # bytes; the analysis of 300 sites at 300 steps has 8 million
_NEEDED = ("summary.json", "run.json")


def _json(path: Path) -> dict[str, Any]:
    return read_object(path, most=_LARGEST)


def _yaml(path: Path) -> Any:
    text = checked_text(path)
    try:
        return OmegaConf.create(text)
    except Exception as error:  # the parser's own kinds, which OmegaConf hands through
        raise ValueError(str(error)) from error


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"a mapping is wanted, not {type(value).__name__}")
    return {str(key): each for key, each in value.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text is wanted, not {type(value).__name__}")
    return value


def _number(value: Any) -> float | None:
    """A finite number; None for none and for what is not finite."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number is wanted, not {type(value).__name__}")
    return float(value) if math.isfinite(value) else None


def _widths(values: Any) -> tuple[float | None, ...]:
    found = tuple(_number(value) for value in values)
    if len(found) != len(BITS):
        raise ValueError(f"{len(found)} values for {len(BITS)} widths")
    return found


def _steps(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _why(error: BaseException) -> str:
    """The first line of an error, and its kind, which may be all there is."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    first = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
