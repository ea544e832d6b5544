"""Draws scenes: anti-aliased shapes by signed distance, with random nuisance (place, radius,
rotation, tints, shading, a ramp over the background)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taqdit.models.tiny.scenes import BACKGROUNDS, COLOURS, SHAPES

Array = NDArray[np.float32]
IMAGE_SIZE = 64
_CENTRES = (20.0, 32.0, 44.0)  # of the 3 x 3 positions, in pixels
_SIDES = (17.0, 47.0)  # of the first and the second of two objects
_STAR_INNER = (0.44 * np.cos(np.pi / 5), 0.44 * np.sin(np.pi / 5))


def render(scenes: Mapping[str, NDArray[np.int64]], rng: np.random.Generator) -> Array:
    """Pictures `(N, 64, 64, 3)` float32 in [0, 1]; the same scene differs from draw to draw."""
    image = _background(scenes["bg"], rng)
    for which in range(2 if (scenes["rel"] > 0).any() else 1):
        thing = _place(scenes, which, rng)
        for index, name in enumerate(SHAPES):
            rows = np.flatnonzero((thing.shape == index) & thing.drawn)
            if len(rows):
                _paint(image, rows, thing, DISTANCES[name])
    return np.clip(image, 0, 1)


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Array:
    return rng.uniform(low, high, shape).astype(np.float32)


def _pixels() -> tuple[Array, Array]:
    centres = np.arange(IMAGE_SIZE, dtype=np.float32) + np.float32(0.5)
    yy, xx = np.meshgrid(centres, centres, indexing="ij")
    return xx, yy


def _background(bg: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """One tinted colour with a linear ramp in a random direction."""
    n, (xx, yy), half = len(bg), _pixels(), IMAGE_SIZE / 2
    colour = np.array(list(BACKGROUNDS.values()), np.float32)[bg]
    colour = colour + _uniform(rng, -0.03, 0.03, n, 1)
    angle = _uniform(rng, 0, 2 * np.pi, n, 1, 1)
    ramp = (np.cos(angle) * (xx - half) + np.sin(angle) * (yy - half)) / half
    ramp = ramp * _uniform(rng, 0, 0.07, n, 1, 1)
    return (colour[:, None, None, :] + ramp[..., None]).astype(np.float32)


@dataclass(frozen=True)
class _Thing:
    """One object per scene: columns of shape `(N,)`, the colour `(N, 3)`."""

    shape: NDArray[np.int64]
    drawn: NDArray[np.bool_]
    x: Array
    y: Array
    radius: Array
    colour: Array
    rotation: Array
    shade: Array


def _place(scenes: Mapping[str, NDArray[np.int64]], which: int, rng: np.random.Generator) -> _Thing:
    """The first (`which` 0) or second (1) object of each scene."""
    n, two, suffix = len(scenes["rel"]), scenes["rel"] > 0, "2" if which else ""
    grid, side = np.array(_CENTRES), _SIDES[which]
    x = np.where(two, np.where(scenes["rel"] == 1, side, 32.0), grid[scenes["pos"] % 3])
    y = np.where(two, np.where(scenes["rel"] == 2, side, 32.0), grid[scenes["pos"] // 3])
    small, large = _uniform(rng, 7.5, 9.5, n), _uniform(rng, 13.0, 16.0, n)
    radius = np.where(two, _uniform(rng, 9.5, 12.5, n), np.where(scenes["size"], large, small))
    colours = np.array(list(COLOURS.values()), np.float32)[scenes["colour" + suffix]]
    return _Thing(
        shape=scenes["shape" + suffix],
        drawn=two | (which == 0),
        x=(x + _uniform(rng, -2, 2, n)).astype(np.float32),
        y=(y + _uniform(rng, -2, 2, n)).astype(np.float32),
        radius=radius.astype(np.float32),
        colour=colours + _uniform(rng, -0.05, 0.05, n, 3),
        rotation=_uniform(rng, -0.25, 0.25, n),
        shade=_uniform(rng, -0.06, 0.06, n),
    )


def _paint(image: Array, rows: NDArray[np.int64], thing: _Thing, distance: "Distance") -> None:
    """Blends one shape into `rows` of `image`, in place; one pixel of soft edge."""

    def column(values: Array) -> Array:
        return values[rows][:, None, None]

    xx, yy = _pixels()
    radius = column(thing.radius)
    dx, dy = (xx - column(thing.x)) / radius, (column(thing.y) - yy) / radius
    cos, sin = np.cos(column(thing.rotation)), np.sin(column(thing.rotation))
    gap = distance(cos * dx + sin * dy, cos * dy - sin * dx)
    cover = np.clip(0.5 - gap * radius, 0, 1)[..., None]
    body = thing.colour[rows][:, None, None, :] * (1 + (column(thing.shade) * dy)[..., None])
    image[rows] = image[rows] * (1 - cover) + body * cover


Distance = Callable[[Array, Array], Array]
"""Approximate signed distance of a shape of unit radius, negative inside; y points up."""


def _circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - np.float32(0.95)


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - np.float32(0.72)) - np.float32(0.25)


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.80)


def _diamond(x: Array, y: Array) -> Array:
    reach = np.abs(x) * np.float32(1 / 0.66) + np.abs(y) * np.float32(1 / 1.05)
    return ((reach - 1) * 0.56).astype(np.float32)


def _cross(x: Array, y: Array) -> Array:
    ax, ay = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(ax - 0.95, ay - 0.30), np.maximum(ax - 0.30, ay - 0.95))


def _triangle(x: Array, y: Array) -> Array:
    low = y + 0.12
    return np.maximum(-low - 0.62, 0.866 * np.abs(x) + 0.5 * low - 0.56)


def _star(x: Array, y: Array) -> Array:
    """Folds the plane into one of ten half sectors, where the edge is a straight line."""
    sector = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, y) + sector / 2) % sector - sector / 2)
    rho = np.hypot(x, y)
    inner_x, inner_y = _STAR_INNER
    normal_x, normal_y = inner_y, 1.08 - inner_x
    along = (rho * np.cos(angle) - 1.08) * normal_x + rho * np.sin(angle) * normal_y
    return (along / np.hypot(normal_x, normal_y)).astype(np.float32)


def _heart(x: Array, y: Array) -> Array:
    ax, up, half = np.abs(x), y + 0.08, 0.37
    reach = np.float32(half * np.sqrt(2))
    body = (ax + np.abs(up)) / np.float32(np.sqrt(2)) - reach
    return np.minimum(body, np.hypot(ax - half, up - half) - reach)


DISTANCES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "diamond": _diamond,
    "heart": _heart,
}
