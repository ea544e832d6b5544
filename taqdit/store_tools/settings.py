"""What a stage was made of, and what tells it from the others of its kind: its inputs, in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from taqdit.stages import kinds
from taqdit.store import canonical_json, sha256_hex
from taqdit.store_tools.stage_folder import Surveyed
from taqdit.store_tools.survey import Survey

_FORMS = {  # setting -> how it is told, in this order
    "model": "{}", "kind": "{}", "file": "{}", "options": "{}", "num_prompts": "{} prompts",
    "num_steps": "{} steps", "sampler": "{}", "cfg_scale": "CFG {}", "seed": "seed {}",
    "latents": "{} latents", "latents_dtype": "{}", "num_sites": "{} sites", "folds": "{} folds",
    "trajectories": "of trajectories {}", "weighting": "weighting {}", "rule": "{}",
}  # fmt: skip
_UNTOLD = ("shift", "batch_size", "latent_shape", "count")  # settings in JSON only
_KEYS = {
    key.rpartition(".")[2]: key for kind in kinds.KINDS for key in kind.keys if "._" not in key
}
_GROUPS = {"options": "model", "selection": "timestep_selection", "rule": "timestep_selection"}
_DIGESTS = ("weights", "source", "selected", "backends")  # told where nothing else tells
_LONGEST = 50  # characters of a value
_DIGITS = 12  # of a fingerprint, as folders are named
_DIGEST = re.compile(r"[0-9a-f]{64}")


def settings(stage: Surveyed) -> dict[str, Any]:
    """The short ones of the settings that a stage was made of; no texts of prompts."""
    inputs = stage.inputs
    listed = {f"num_{key}": inputs.get(key) for key in ("prompts", "sites")}
    short = {key: inputs[key] for key in (*_FORMS, *_UNTOLD) if _is_short(inputs.get(key))}
    short |= {key: len(names) for key, names in listed.items() if isinstance(names, list)}
    if isinstance(options := inputs.get("options"), dict):
        short["options"] = sorted(str(name) for name, on in options.items() if on is True)
    if option := inputs.get("sampler_option"):
        short["sampler"] = str(option).rpartition(".")[2]
    if isinstance(fingerprint := inputs.get("trajectories"), str):
        short["trajectories"] = fingerprint[:_DIGITS]
    return short


def in_words(stage: Surveyed) -> str:
    """The same for people: `tiny, 16 prompts, 30 steps, euler, CFG 2, seed 0`."""
    texts = {key: _spelled(key, value) for key, value in settings(stage).items()}
    return ", ".join(form.format(texts[key]) for key, form in _FORMS.items() if texts.get(key))


def differences(survey: Survey) -> dict[Surveyed, dict[str, str]]:
    """Of each stage, input -> value in words, where stages of its kind differ in it.

    An input is named by its path, `cfg_scale` or `options.w16`. A stage that lacks it, or whose
    stage.json is not known, says nothing of it.
    """
    apart: dict[Surveyed, dict[str, str]] = {stage: {} for stage in survey.stages}
    for kind in {stage.kind for stage in survey.stages}:
        stages = [stage for stage in survey.stages if stage.kind == kind and stage.inputs]
        apart |= _differences({stage: dict(_inputs(survey, stage)) for stage in stages})
    return apart


def config_key(path: str) -> str:
    """What an input is called in the configuration, `sampler.cfg_scale`; its path if it is not."""
    first, _, rest = path.partition(".")
    if first.endswith("_option"):
        return first.removesuffix("_option")
    if first in _GROUPS:
        return f"{_GROUPS[first]}.{rest}".removesuffix(".").removesuffix("._target_")
    return path if first == "sites" else _KEYS.get(path, path)


def _inputs(survey: Survey, stage: Surveyed) -> Iterator[tuple[str, Any]]:
    """The inputs, mappings in them taken apart; of an analysis, the statistics by their folder."""
    for path, value in _flat(stage.inputs):
        if stage.kind == "analysis" and path == "statistics":
            value = sorted(survey.analysed(stage)) or value
            value = value[0] if isinstance(value, list) and len(value) == 1 else value
        yield path, value


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        elif key != "_partial_":
            yield f"{above}{key}", value


def _differences(inputs: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, str]]:
    """Digests are told of those stages only that nothing else tells apart."""
    apart: dict[Any, dict[str, str]] = {stage: {} for stage in inputs}
    paths = dict.fromkeys(path for own in inputs.values() for path in own)
    for path in sorted(paths, key=_is_digest):
        values = {stage: own[path] for stage, own in inputs.items() if path in own}
        if len(values) == len(inputs) and len(set(map(canonical_json, values.values()))) == 1:
            continue
        texts = {stage: tuple(own.items()) for stage, own in apart.items()}
        alike = Counter(texts.values())
        for stage, value in values.items():
            if not _is_digest(path) or alike[texts[stage]] > 1:
                apart[stage][path] = _brief(path, value)
    return apart


def _is_digest(path: str) -> bool:
    return path.partition(".")[0] in _DIGESTS


def _brief(path: str, value: Any) -> str:
    """A value in a few characters; a long list as its length and a digest, of sites also where in
    a block they are."""
    if isinstance(value, list):
        text = f"[{', '.join(_brief('', item) for item in value[:_LONGEST])}]"
        if len(text) <= _LONGEST and path not in ("prompts", "sites"):
            return text
        digest = sha256_hex(canonical_json(value).encode())[:6]
        places = " ".join(sorted({str(name).rpartition(".")[2] for name in value}))
        text = f"{len(value)} ({places}, {digest})"
        return text if path == "sites" and len(text) <= _LONGEST else f"{len(value)} ({digest})"
    text = value if isinstance(value, str) else canonical_json(value)
    if _DIGEST.fullmatch(text):
        return text[:_DIGITS]
    if path == "rule" or path.endswith(("_option", "._target_")):
        text = text.rpartition(".")[2]
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _is_short(value: object) -> bool:
    if isinstance(value, list):
        return len(value) <= 4 and all(type(item) is int for item in value)
    return isinstance(value, str | int | float) and len(str(value)) <= 100


def _spelled(key: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if key == "rule":
        return str(value).rpartition(".")[2]
    return f"{value:g}" if isinstance(value, float) else str(value)
