"""Nothing that looks like a key is ever written down."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MASK = "***"
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_KEYS = {"key", "token", "apikey", "apitoken"}
_PASSWORDS = {
    "secret",
    "secrets",
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "credential",
    "credentials",
}
_LOOKS_LIKE_A_KEY = re.compile(
    r"(?<![0-9A-Za-z])(?:(?<!/snapshots/)[0-9a-fA-F]{40}(?![0-9A-Za-z])"
    r"|wandb_v\d_[\w-]{20,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[\w-]{20,})"
)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
# Possessive throughout, and no name is begun twice: the time grows with the length alone.
_TEXT = r"'(?:\\.|[^'\\])*+'|\"(?:\\.|[^\"\\])*+\""  # quoted, in Hydra's grammar
_OVERRIDE = re.compile(r"[+~]*([\w.@:/-]+)=")
_NAMED = re.compile(rf"{_TEXT}|((?:\\[\\'\"]|[^][{{}}(),:='\"])++)(?P<is>[:=]\s*+)?+", re.DOTALL)
_VALUE = re.compile(rf"(?:{_TEXT}|\\.|[^][{{}}(),'\"\\])++(?=[,}}])|.*", re.DOTALL)
_NOTHING = re.compile(r"null|true|false|''|\"\"|", re.IGNORECASE)
_NUMBERS = {int, float, bool, type(None)}
_SHORTEST_ENV_SECRET = 16  # shorter values ("disabled") are words that occur by chance
_SHORTEST_SETTING = 4


def mask_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of `config` in which everything that looks like a secret is `***`.

    Masked are text under a name with the word key, token, secret, password or credential in it
    (numbers too for the last three), 40 hexadecimal digits (but for the revision in a path of
    Hugging Face's cache), the usual token prefixes, logins inside addresses, and the values of
    environment variables with such a name.
    """
    known = environment_secrets()
    return {str(name): _masked(value, str(name), known) for name, value in config.items()}


def mask_text(text: str) -> str:
    """`text` without what looks like a key."""
    return _clean(text, environment_secrets())


def mask_settings(settings: Any, config: Mapping[str, Any]) -> Any:
    """A deep copy of what repeats settings of `config` (as a command line does), without what
    `mask_secrets` hides in them and in it, however it is spelled."""
    typed: set[str] = set()
    settings = _without_typed(settings, typed)
    secrets = sorted(_hidden(config, mask_secrets(config)) | typed, key=len, reverse=True)
    known = (*secrets, *environment_secrets())
    return _masked(settings, "", known)


def repeats_secret(
    texts: Sequence[str], overrides: Sequence[str], config: Mapping[str, Any]
) -> bool:
    """Whether a secret of `config`, `overrides` or the environment stands in one of `texts`, which
    may be overrides too. What merely looks like a key, as a commit does, is none."""
    typed: set[str] = set()
    _without_typed(overrides, typed)
    named = _hidden(config, _masked(config, "", None))
    known = (*typed, *named, *environment_secrets())
    typed_here = _without_typed(texts, set()) != [*texts]
    return typed_here or any(secret in text for text in texts for secret in known)


def environment_secrets() -> tuple[str, ...]:
    """Values of the environment variables whose name says that they are secret."""
    return tuple(
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_ENV_SECRET and is_secret_name(name)
    )


def is_secret_name(name: str) -> bool:
    """Whether what has this name is not to be written down."""
    return bool(_words(name) & (_KEYS | _PASSWORDS))


def _masked(value: Any, name: str, known: tuple[str, ...] | None) -> Any:
    """A copy without what its name says is secret, and without what else `_clean` hides."""
    if isinstance(value, Mapping):
        return {str(k): _masked(v, _path(name, str(k)), known) for k, v in value.items()}
    if isinstance(value, list | tuple):
        if _NUMBERS.issuperset(map(type, value)) and not _words(name) & _PASSWORDS:
            return list(value)  # the counts of a histogram: not worth a look each
        return [_masked(item, name, known) for item in value]
    if isinstance(value, str | bytes):
        text = value if isinstance(value, str) else value.decode("utf-8", "replace")
        return MASK if text and _words(name) & (_KEYS | _PASSWORDS) else _clean(text, known)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return MASK if _words(name) & _PASSWORDS else value
    return value


def _hidden(value: Any, masked: Any) -> set[str]:
    """What was masked whole, as it is written; not what is so short that it occurs by chance."""
    if isinstance(value, Mapping):
        return set().union(*(_hidden(each, masked[str(name)]) for name, each in value.items()))
    if isinstance(value, list | tuple):
        return set().union(*map(_hidden, value, masked))
    text = str(value)
    return {text} if masked == MASK and len(text) >= _SHORTEST_SETTING else set()


def _without_typed(settings: Any, typed: set[str]) -> Any:
    """`settings` without secret values in its overrides, of which the longer ones join `typed`."""
    if isinstance(settings, Mapping):
        return {str(name): _without_typed(each, typed) for name, each in settings.items()}
    if isinstance(settings, list | tuple):
        return [_without_typed(each, typed) for each in settings]
    if isinstance(settings, str):
        for begin, end in reversed([*_typed(settings)]):
            typed |= {settings[begin:end]} if end - begin >= _SHORTEST_SETTING else set()
            settings = settings[:begin] + MASK + settings[end:]
    return settings


def _typed(text: str) -> Iterator[tuple[int, int]]:
    """Where in an override, or in several (`override_dirname`), secret values stand as they were
    typed, quoted and escaped: all that follows if the first key is secret, else the value behind
    each secret name; where one with brackets ends is not looked for."""
    if (override := _OVERRIDE.match(text)) is None:
        return
    at = override.end()
    if is_secret_name(override[1]) and not _NOTHING.fullmatch(text, at):
        yield at, len(text)
        return
    for entry in _NAMED.finditer(text, at):
        if entry["is"] and entry.end() > at and is_secret_name(entry[1]):
            value = _VALUE.match(text, entry.end())
            if value and not _NOTHING.fullmatch(value[0]):
                at = value.end()
                yield value.span()


def _path(parent: str, name: str) -> str:
    """What stands below a secret name is secret too."""
    return f"{parent}.{name}" if _words(parent) & (_KEYS | _PASSWORDS) else name


def _words(name: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(name)}


def _clean(text: str, known: tuple[str, ...] | None) -> str:
    """`text` without the `known` secrets, keys and logins; as it is if `known` is None."""
    if known is None:
        return text
    for secret in known:
        text = text.replace(secret, MASK)
    return _URL_LOGIN.sub(MASK, _LOOKS_LIKE_A_KEY.sub(MASK, text))
