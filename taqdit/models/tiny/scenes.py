"""What a picture shows: integer attributes, how they are drawn by lot, and what is held out.

A scene holds one object (shape, colour, size, position) or two (shape and colour of each, and
their relation) on a background. Of two objects, the first is always the left or the upper one.
Scenes travel in columns: a dict of one `(N,)` int64 array per attribute.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scenes = dict[str, NDArray[np.int64]]
Split = Literal["train", "tuple", "pair", "all"]

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
COLOURS = {
    "red": (0.88, 0.12, 0.12),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.97, 0.88, 0.15),
    "green": (0.13, 0.65, 0.22),
    "cyan": (0.10, 0.80, 0.85),
    "blue": (0.15, 0.30, 0.92),
    "purple": (0.55, 0.18, 0.72),
    "pink": (0.98, 0.50, 0.72),
}
BACKGROUNDS = {
    "black": (0.05, 0.05, 0.05),
    "white": (0.95, 0.95, 0.95),
    "gray": (0.50, 0.50, 0.50),
    "navy": (0.08, 0.10, 0.32),
    "brown": (0.38, 0.24, 0.13),
    "mint": (0.72, 0.92, 0.80),
}
SIZES = ("small", "large")
POSITIONS = (
    *("top left", "top", "top right"),
    *("left", "center", "right"),
    *("bottom left", "bottom", "bottom right"),
)  # index = 3 row + column
RELATIONS = ("single", "side by side", "stacked")
COLOUR_NAMES, BACKGROUND_NAMES = tuple(COLOURS), tuple(BACKGROUNDS)
ATTRIBUTES = {
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "size": len(SIZES),
    "pos": len(POSITIONS),
    "bg": len(BACKGROUNDS),
    "rel": len(RELATIONS),
    "shape2": len(SHAPES),
    "colour2": len(COLOURS),
}
HELD_OUT_SHARE = 0.1
_ONE_OBJECT_ONLY, _TWO_OBJECTS_ONLY = ("size", "pos"), ("shape2", "colour2")


def present(scenes: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.bool_]]:
    """For each attribute, which of the scenes have it: size and position belong to a single
    object, the second shape and colour to two."""
    two = scenes["rel"] > 0
    masks = {name: np.ones_like(two) for name in ATTRIBUTES}
    return (
        masks
        | {name: ~two for name in _ONE_OBJECT_ONLY}
        | {name: two for name in _TWO_OBJECTS_ONLY}
    )


def pair_is_held_out(shape: ArrayLike, colour: ArrayLike) -> NDArray[np.bool_]:
    """Eight of the 64 shape-colour pairs, one per shape and one per colour, are never trained."""
    held_out: NDArray[np.bool_] = np.asarray(colour) == (3 * np.asarray(shape) + 1) % 8
    return held_out


def tuple_is_held_out(scenes: Mapping[str, NDArray[np.int64]]) -> NDArray[np.bool_]:
    """A tenth of all attribute tuples, chosen by a well mixed hash of the attributes that the
    scene has, so that each value of each attribute loses about the same share."""
    key = np.zeros(len(scenes["rel"]), np.uint64)
    for name, mask in present(scenes).items():
        value = np.where(mask, scenes[name], 0).astype(np.uint64)
        key = key * np.uint64(ATTRIBUTES[name]) + value
    return _splitmix64(key) < np.uint64(HELD_OUT_SHARE * 2.0**64)


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of the splitmix64 generator: a bijection in which every input bit
    moves every output bit. Wraps modulo 2**64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample_scenes(
    n: int, rng: np.random.Generator, split: Split = "train", two_objects: float = 0.3
) -> Scenes:
    """`n` scenes of one split: `train` (nothing held out), `tuple` (held-out tuples of trained
    pairs), `pair` (the first object is a held-out pair), `all`. `two_objects` is the share of
    scenes with two objects before the split thins them; the two are never alike."""
    chunks, have = [], 0
    while have < n:
        drawn = _draw(max(64, 2 * n if split in ("train", "all") else 16 * n), rng, two_objects)
        fitting = take(drawn, _belongs(drawn, split))
        chunks.append(fitting)
        have += len(fitting["rel"])
    return {name: np.concatenate([c[name] for c in chunks])[:n] for name in ATTRIBUTES}


def take(scenes: Mapping[str, NDArray[np.int64]], index: NDArray[np.generic]) -> Scenes:
    """The scenes at `index` (integers or a mask)."""
    return {name: column[index] for name, column in scenes.items()}


def _draw(count: int, rng: np.random.Generator, two_objects: float) -> Scenes:
    drawn = {name: rng.integers(0, size, count) for name, size in ATTRIBUTES.items()}
    two = rng.random(count) < two_objects
    drawn["rel"] = np.where(two, rng.integers(1, 3, count), 0)
    return {name: np.where(mask, drawn[name], 0) for name, mask in present(drawn).items()}


def _belongs(scenes: Scenes, split: Split) -> NDArray[np.bool_]:
    two = scenes["rel"] > 0
    first = pair_is_held_out(scenes["shape"], scenes["colour"])
    trained = ~(first | (two & pair_is_held_out(scenes["shape2"], scenes["colour2"])))
    alike = (scenes["shape"] == scenes["shape2"]) & (scenes["colour"] == scenes["colour2"])
    if split == "train":
        chosen = trained & ~tuple_is_held_out(scenes)
    elif split == "tuple":
        chosen = trained & tuple_is_held_out(scenes)
    else:
        chosen = first if split == "pair" else np.ones_like(two)
    return chosen & ~(two & alike)
