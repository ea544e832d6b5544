"""Does a config value fit a parameter's annotation? Just the annotations that options use."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` (as YAML gives it) may be passed where `hint` is declared.

    An integer fits float, a list fits tuple and Sequence, and bool never fits int.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in args)
    if origin is Literal:
        return value in args
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _fits_sequence(value, origin, args)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _fits_sequence(value: Any, origin: type, args: tuple[Any, ...]) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if origin is tuple and args and args[-1] is not Ellipsis:
        return len(value) == len(args) and all(map(fits, value, args))
    return not args or all(fits(each, args[0]) for each in value)


def describe_type(hint: Any) -> str:
    """The annotation in words, for an error message."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(each) for each in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        inner = describe_type(args[0]) if args else "any"
        length = f" of {len(args)}" if origin is tuple and args and args[-1] is not ... else ""
        return f"a list{length} ({inner} each)"
    if hint is type(None):
        return "null"
    return _WORDS.get(hint, str(getattr(hint, "__name__", hint)))
