"""The W&B group of a sweep: the same sweep, started again, lands in the same group."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from taqdit.store import canonical_json, plain_yaml, sha256_hex
from taqdit.store.secrets import mask_secrets

SWEEP_FILE = "multirun.yaml"  # Hydra writes it into a sweep's folder before the first job
ASIDE = {  # where a sweep runs and how it is shown, not what it asks
    *("output_dir", "tracking", "plots", "preflight", "refresh", "allow_backend_change"),
    *("local", "hydra"),
}
MOST = 55  # characters of a group's name that people read, before the digest
_SWEPT = re.compile(r"(choice|range|glob|interval|shuffle|sort)\(|[^\[{(]*,")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def sweep_group(folder: Path) -> str | None:
    """The group of the run in `folder`: a name made from its sweep's overrides.

    None for a run outside a sweep, or where Hydra left no record of the sweep that can be read.
    """
    hydra = _hydra_node(folder / ".hydra" / "hydra.yaml")
    if hydra.get("mode") != "MULTIRUN":
        return None
    for parent in folder.parents[:3]:  # hydra.sweep.subdir may be a path
        if (parent / SWEEP_FILE).is_file():
            return _group_of(_hydra_node(parent / SWEEP_FILE))
    return None


def group_name(overrides: Iterable[str]) -> str | None:
    """A name for the sweep that these overrides make: swept keys first, each part sorted, then a
    digest of them all. Their order, spaces and what stands in ASIDE do not change it."""
    parts = map(_parts, overrides)
    asked = {key: value for key, value in parts if _root(key) not in ASIDE}
    asked = {key: str(value) for key, value in mask_secrets(asked).items()}
    if not asked:
        return None
    ordered = sorted(asked, key=lambda key: (_SWEPT.match(asked[key]) is None, key))
    words = "_".join(f"{key.split('.')[-1]}={asked[key]}" for key in ordered)
    readable = re.sub(r"[^\w.,=~-]+", "-", words)[:MOST].rstrip("-_,=")
    return f"{readable}-{sha256_hex(canonical_json(asked).encode())[:8]}"


def run_date(folder: Path) -> str:
    """The day in the path of a run's folder (a sweep's jobs share one), else today: YYYY-MM-DD."""
    days = [parent.name for parent in folder.parents if _DAY.fullmatch(parent.name)]
    return days[0] if days else date.today().isoformat()


def _parts(override: str) -> tuple[str, str]:
    """Key and value of an override; what a key adds or forces (+, ++) makes no difference."""
    key, _, value = override.partition("=")
    return key.strip().lstrip("+"), re.sub(r"\s*,\s*", ",", value.strip())


def _root(key: str) -> str:
    return re.split(r"[./@]", key.lstrip("~"))[0]


def _group_of(hydra: Mapping[str, Any]) -> str | None:
    """The group of a sweep from Hydra's record; the command line wins over a preset's keys."""
    swept = (hydra.get("sweeper") or {}).get("params") or {}
    task = (hydra.get("overrides") or {}).get("task") or []
    listed = {k: ",".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in swept.items()}
    return group_name([*(f"{key}={value}" for key, value in listed.items()), *map(str, task)])


def _hydra_node(path: Path) -> dict[str, Any]:
    """The `hydra` node of a YAML file of Hydra's; empty if there is none."""
    try:
        found = plain_yaml.read(path)
    except (OSError, ValueError):
        return {}
    node = found.get("hydra") if isinstance(found, dict) else None
    return node if isinstance(node, dict) else {}
