"""Config values against annotations."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from taqdit.config.typecheck import describe_type, fits


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1.5, int, False),
        (1, float, True),
        (True, float, False),
        ("1", float, False),
        (None, int | None, True),
        ("x", int | None, False),
        ("x", int | str | None, True),
        ([8, 8], tuple[int, int], True),
        ([8], tuple[int, int], False),
        ([8, "8"], tuple[int, int], False),
        ([1, 2, 3], Sequence[int], True),
        ([1, None], Sequence[int], False),
        ("123", Sequence[str], False),
        ([1, 2], list[int], True),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ({"x": 1}, Any, True),
    ],
)
def test_fits(value, hint, expected):
    assert fits(value, hint) is expected


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "an integer or null"),
        (tuple[int, int], "a list of 2 (an integer each)"),
        (Sequence[str], "a list (a text each)"),
        (Literal["a", "b"], "one of a, b"),
    ],
)
def test_descriptions(hint, words):
    assert describe_type(hint) == words
