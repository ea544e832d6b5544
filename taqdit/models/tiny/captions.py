"""The caption grammar: eleven templates, attributes that may be left out, and some noise words."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from taqdit.models.tiny.scenes import BACKGROUND_NAMES, COLOUR_NAMES, POSITIONS, SHAPES, SIZES

PREFIXES = ("a photo of", "a picture of", "an image of", "a drawing of")
TEMPLATES_ONE = (
    "a {size} {colour} {shape} at the {pos} on a {bg} background",
    "{bg} background with a {size} {colour} {shape} at the {pos}",
    "{size} {colour} {shape}, {pos}, {bg} background",
    "on {bg}, a {colour} {shape}, {size}, {pos}",
    "{pos}: a {size} {colour} {shape} on {bg}",
    "a {shape} that is {colour} and {size}, {pos}, on {bg}",
)
TEMPLATES_TWO = (
    "a {colour} {shape} {first} a {colour2} {shape2} on a {bg} background",
    "a {colour2} {shape2} {second} a {colour} {shape} on a {bg} background",
    "on {bg}, a {colour} {shape} {first} a {colour2} {shape2}",
    "{bg} background with a {colour2} {shape2} {second} a {colour} {shape}",
    "{colour} {shape} {first} {colour2} {shape2}, {bg} background",
)
FIRST_WORDS = {1: ("left of",), 2: ("above", "over")}
"""By relation: how the first object stands to the second."""
SECOND_WORDS = {1: ("right of",), 2: ("below", "under")}
_PHRASES = {
    "size": (("{size} ", ""), (" and {size}", ""), (", {size}", "")),
    "pos": ((" at the {pos}", ""), (", {pos}", ""), ("{pos}: ", "")),
    "colour": (
        ("{colour} and ", ""),
        ("that is {colour},", ","),
        ("that is {colour}", ""),
        ("{colour} ", ""),
    ),
    "bg": (
        (" on a {bg} background", ""),
        (", {bg} background", ""),
        (", on {bg}", ""),
        (" on {bg}", ""),
        ("{bg} background with ", ""),
        ("on {bg}, ", ""),
    ),
}
"""What a template loses with an attribute, in this order."""


def describe(
    scenes: Mapping[str, NDArray[np.int64]],
    index: int,
    rng: np.random.Generator | None = None,
    *,
    drop: float = 0.0,
    noise: float = 0.0,
) -> str:
    """The caption of scene `index`. Without `rng` the first template, complete. `drop` is the
    probability that an optional attribute (size, position, colour, background; the relation of
    two objects) is left out, `noise` that of a prefix or of one unknown word."""
    scene = {name: int(column[index]) for name, column in scenes.items()}
    if rng is None:
        return _fill(_first(scene), scene, FIRST_WORDS, SECOND_WORDS)
    template = _thinned(_pick(TEMPLATES_TWO if scene["rel"] else TEMPLATES_ONE, rng), rng, drop)
    first = {k: (_pick(words, rng),) for k, words in FIRST_WORDS.items()}
    second = {k: (_pick(words, rng),) for k, words in SECOND_WORDS.items()}
    if rng.random() < drop:
        first = second = dict.fromkeys(FIRST_WORDS, ("and",))
    text = _fill(template, scene, first, second)
    return _noisy(text, rng) if rng.random() < noise else text


def captions(
    scenes: Mapping[str, NDArray[np.int64]], rng: np.random.Generator | None = None
) -> list[str]:
    """One complete caption per scene."""
    return [describe(scenes, index, rng) for index in range(len(scenes["rel"]))]


def grammar_words() -> list[str]:
    """Every word that a caption without noise can hold, sorted."""
    tables = (PREFIXES, SHAPES, SIZES, POSITIONS, COLOUR_NAMES, BACKGROUND_NAMES, ("and",))
    relations = (*FIRST_WORDS.values(), *SECOND_WORDS.values())
    slots = dict.fromkeys(_SLOTS, "")
    texts = [t.format(**slots) for t in TEMPLATES_ONE + TEMPLATES_TWO]
    texts += [word for table in (*tables, *relations) for word in table]
    return sorted(set(" ".join(texts).replace(",", " ").replace(":", " ").split()))


_SLOTS = ("size", "colour", "shape", "pos", "bg", "colour2", "shape2", "first", "second")


def _first(scene: Mapping[str, int]) -> str:
    return (TEMPLATES_TWO if scene["rel"] else TEMPLATES_ONE)[0]


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _thinned(template: str, rng: np.random.Generator, drop: float) -> str:
    """The template without the attributes that the lot leaves out; two objects keep colours."""
    optional = ("bg",) if "{shape2}" in template else ("size", "pos", "colour", "bg")
    for name in optional:
        if rng.random() < drop:
            for phrase, substitute in _PHRASES[name]:
                template = template.replace(phrase, substitute)
    return template


def _fill(
    template: str,
    scene: Mapping[str, int],
    first: Mapping[int, Sequence[str]],
    second: Mapping[int, Sequence[str]],
) -> str:
    relation = scene["rel"]
    words = {
        "shape": SHAPES[scene["shape"]],
        "colour": COLOUR_NAMES[scene["colour"]],
        "size": SIZES[scene["size"]],
        "pos": POSITIONS[scene["pos"]],
        "bg": BACKGROUND_NAMES[scene["bg"]],
        "shape2": SHAPES[scene["shape2"]],
        "colour2": COLOUR_NAMES[scene["colour2"]],
        "first": first[relation][0] if relation else "",
        "second": second[relation][0] if relation else "",
    }
    text = template.format(**words).replace(" ,", ",")
    return " ".join(text.split())


def _noisy(text: str, rng: np.random.Generator) -> str:
    """With a prefix, or with one meaningless word of two to four letters anywhere."""
    if rng.random() < 0.5:
        return f"{_pick(PREFIXES, rng)} {text}"
    word = "".join(chr(ord("a") + c) for c in rng.integers(0, 26, rng.integers(2, 5)))
    parts = text.split(" ")
    parts.insert(int(rng.integers(len(parts) + 1)), word)
    return " ".join(parts)
