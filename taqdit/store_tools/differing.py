"""What tells the stages of one kind apart: the inputs that are not the same in all of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache, partial
from itertools import combinations
from typing import Any

from taqdit.activations import Site
from taqdit.stages import kinds
from taqdit.store import canonical_json, sha256_hex
from taqdit.store_tools.stage_folder import Surveyed
from taqdit.store_tools.survey import Survey

_GROUPS = {"options": "model", "selection": "timestep_selection", "rule": "timestep_selection"}
_DIGESTS = ("weights", "source", "selected")  # told where nothing else tells
_LONGEST = 40  # characters of a value
_DIGITS = 12  # of a fingerprint, as folders are named
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BLOCK = re.compile(r"(.*_)(\d+)")
_FACETS: tuple[Callable[[Site], str], ...] = (
    lambda site: site.place,
    lambda site: site.stream,
    lambda site: site.block,
)


def differing(there: Survey) -> dict[Surveyed, dict[str, str]]:
    """Of each stage, input -> value in words, where stages of its kind differ in it.

    An input is named by its path, `cfg_scale` or `options.w16`. A stage that lacks it, or whose
    stage.json is not known, says nothing of it.
    """
    kinds: dict[str, list[Surveyed]] = {}
    for stage in there.stages:
        kinds.setdefault(stage.kind, []).append(stage)
    found: dict[Surveyed, dict[str, str]] = {}
    for stages in kinds.values():
        known = {each: dict(_inputs(there, each)) for each in stages if each.inputs}
        found |= {each: {} for each in stages} | _differing(known)
    return found


def config_key(path: str) -> str:
    """What an input is called in the configuration, `sampler.cfg_scale`; its path if it is not."""
    first, _, rest = path.partition(".")
    if first.endswith("_option"):
        return first.removesuffix("_option")
    if first in _GROUPS:
        return f"{_GROUPS[first]}.{rest}".removesuffix(".").removesuffix("._target_")
    if first == "sites":
        return path
    keys = (key for kind in kinds.KINDS for key in kind.keys if "._" not in key)
    return next((key for key in keys if key.rpartition(".")[2] == path), path)


def _inputs(there: Survey, stage: Surveyed) -> Iterator[tuple[str, Any]]:
    """The inputs, mappings in them taken apart; of an analysis, the statistics by their folder."""
    for path, value in _flat(stage.inputs):
        if stage.kind == "analysis" and path == "statistics":
            value = sorted(there.analysed(stage)) or value
            value = value[0] if isinstance(value, list) and len(value) == 1 else value
        yield path, value


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        elif key != "_partial_":
            yield f"{above}{key}", value


def _differing(known: Mapping[Surveyed, Mapping[str, Any]]) -> dict[Surveyed, dict[str, str]]:
    paths = dict.fromkeys(path for inputs in known.values() for path in inputs)
    found: dict[Surveyed, dict[str, str]] = {each: {} for each in known}
    for path in sorted(paths, key=_is_digest):
        values = {each: inputs[path] for each, inputs in known.items() if path in inputs}
        if len(values) == len(known) and len(set(map(canonical_json, values.values()))) == 1:
            continue
        sites = path == "sites" and all(map(_are_names, values.values()))
        union = {name for names in values.values() for name in names} if sites else set()
        in_words = cache(partial(sites_told, union=union))  # the same for most
        for each in _alike(values, found) if _is_digest(path) else values:
            value = values[each]
            found[each][path] = in_words(tuple(value)) if sites else _brief(path, value)
    return found


def _alike(stages: Iterable[Surveyed], found: Mapping[Surveyed, dict[str, str]]) -> list[Surveyed]:
    """Those of the stages of which the same is told as of another one."""
    told = Counter(tuple(each.items()) for each in found.values())
    return [each for each in stages if told[tuple(found[each].items())] > 1]


def _is_digest(path: str) -> bool:
    return path.partition(".")[0] in _DIGESTS


def _brief(path: str, value: Any) -> str:
    """A value in a few characters; a long one as its length and a digest."""
    if isinstance(value, str):
        if _DIGEST.fullmatch(value):
            return value[:_DIGITS]
        is_option = path == "rule" or path.endswith(("_option", "._target_"))
        value = value.rpartition(".")[2] if is_option else value
        return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 3]}..."
    if isinstance(value, list):
        told = f"[{', '.join(_brief('', each) for each in value[:_LONGEST])}]"
        mark = sha256_hex(canonical_json(value).encode())[:6]
        plain = len(told) <= _LONGEST and path != "prompts"  # whose texts are nobody's business
        return told if plain else f"{len(value)} ({mark})"
    return canonical_json(value)[:_LONGEST]


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and "." in each for each in value)


def sites_told(names: Collection[str], union: Iterable[str]) -> str:
    """Which of all sites that are listed these are: `2 (post_gelu, mm_00-01)`, by as few of place,
    stream and block as tell."""
    every, own = [Site(name, 1) for name in sorted(union)], {*names}
    for number in range(len(_FACETS) + 1):
        for facets in combinations(_FACETS, number):
            values = [{facet(Site(name, 1)) for name in own} for facet in facets]
            pairs = list(zip(facets, values, strict=True))
            if own == {s.name for s in every if all(f(s) in chosen for f, chosen in pairs)}:
                told = ", ".join(_listed(chosen) for chosen in values)
                if len(told) <= _LONGEST:
                    return f"{len(own)} ({told})" if told else str(len(own))
    return f"{len(own)} ({sha256_hex(canonical_json(sorted(own)).encode())[:6]})"


def _listed(names: Iterable[str]) -> str:
    """Names, those that are numbered on as one: `mm_00-05 final`."""
    runs: list[list[str]] = []
    for name in sorted(names):
        match, before = _BLOCK.fullmatch(name), runs and _BLOCK.fullmatch(runs[-1][-1])
        follows = match and before and match[1] == before[1] and int(match[2]) == int(before[2]) + 1
        runs[-1].append(name) if follows else runs.append([name])
    told = [run[0] if len(run) == 1 else f"{run[0]}-{run[-1].rpartition('_')[2]}" for run in runs]
    return " ".join(told)
