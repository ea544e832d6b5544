"""Which override it is that Hydra refuses, and what may have been meant by it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from hydra.errors import OverrideParseException

PRESETS = ("experiment", "sweep", "local")  # groups whose options set keys of all others
_NAMED = re.compile(r"(?:Could not [a-z .]+|argument )'([^']+)'")
_OPTIONS = re.compile(r"Could not find '(.+)/([^/']+)' Available options in '[^']*': (.*)")


def culprit(error: BaseException, text: str, overrides: Sequence[str]) -> str | None:
    """The override that an error of Hydra's, `text` in words, is about; None if it does not say."""
    if isinstance(error, OverrideParseException):
        return error.override if error.override in overrides else None
    named = match[1] if (match := _NAMED.search(text)) else None
    for each in overrides:
        names = each, key_of(each), each.lstrip("+~").replace("=", "/", 1)
        if named in names or f"Error merging override {each}. " in text:
            return each
    return None


def key_of(override: str) -> str:
    """The key or group that an override sets."""
    return override.lstrip("+~").partition("=")[0]


def names(text: str, key: str) -> bool:
    """Whether `key` stands in `text`, not as a part of another word or key."""
    return not key or re.search(rf"(?<![\w.]){re.escape(key)}(?!\.?\w)", text) is not None


def left_out(override: str, overrides: Sequence[str]) -> list[str] | None:
    """The other overrides that can still be judged; None where it may decide about all of them.

    Which keys there are below a group depends on its option.
    """
    key = key_of(override)
    if key in PRESETS:
        return None
    return [o for o in overrides if key_of(o) != key and not key_of(o).startswith(f"{key}.")]


def meant(text: str, override: str | None, known: Iterable[str]) -> str:
    """A question after the nearest option in `text`, or of the `known` keys; "" if none is near."""
    if match := _OPTIONS.search(text):
        near = get_close_matches(match[2], match[3].split(), n=1)
        near = [f"{match[1]}={option}" for option in near]
    elif override is None or not text.startswith("Could not "):
        near = []
    else:
        key, known = key_of(override), set(known)
        near = [] if key in known else _near_keys(key, known)  # what is there was not misspelt
    return f"; did you mean {near[0]}?" if near else ""


def _near_keys(key: str, known: set[str]) -> list[str]:
    """Of the keys that end as `key` might have been meant to, the one that is most like it; below
    a section that there is, of its own keys and those whose end holds the very word."""
    section, _, last = key.rpartition(".")
    if section in known:
        known = {k for k in known if k.startswith(f"{section}.") or last in k.rpartition(".")[2]}
    ends = sorted({each.rpartition(".")[2] for each in known})
    near = [end for end in ends if len(last) > 2 and last in end]
    near = near or get_close_matches(last, ends, n=5)
    return get_close_matches(
        key, sorted(k for k in known if k.rpartition(".")[2] in near), n=1, cutoff=0
    )
