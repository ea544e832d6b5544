"""A thousand prompts composed of parts (varied.toml), each part about equally often."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROUNDS = 100
_LONG = 20  # subjects and scenes of a family; styles
_PARTS = Path(__file__).with_suffix(".toml")


def compose() -> Iterator[str]:
    """Yield the thousand prompts, always the same ones in the same order.

    Prompt i is of family i mod 10 in round i // 10. The places of its other parts in their lists
    are linear in the round, so that no subject meets a scene twice, every list is used evenly, and
    the first prompts are about as varied as they can be: the first 20 show every style.
    """
    parts = tomllib.loads(_PARTS.read_text(encoding="utf-8"))
    for number in range(ROUNDS):
        for place, family in enumerate(parts["families"].values()):
            text = _prompt(parts, family, place, number)
            yield text[0].upper() + text[1:]


def _prompt(parts: dict[str, Any], family: dict[str, Any], place: int, number: int) -> str:
    """The prompt of a family in a round: what is to be seen, in which style, light and view."""
    block, within = divmod(number, _LONG)
    content = _content(parts, family, block, within)
    style = _cycled(parts["styles"], within + 2 * place)
    light = _cycled(family["lights"], 3 * within + 2 * block)
    view = _cycled(parts["views"], 7 * within + 4 * block + place)
    plain = style.partition(" ")[2]  # without its article
    forms = (
        f"{content}, {light}, {plain}",
        f"{style} of {content}, {light}",
        f"{content}, {view}, {plain}",
        f"{style} of {content}, {light}, {view}",
    )
    return _cycled(forms, within + block + place)


def _content(parts: dict[str, Any], family: dict[str, Any], block: int, within: int) -> str:
    """The subject in its scene, with the count, colours or relation that the family asks for."""
    colour = 3 * within + block
    return str(
        family.get("form", "{subject} {scene}").format(
            subject=_cycled(family["subjects"], within + 7 * block),
            scene=_cycled(family["scenes"], within + 3 * block),
            count=_cycled(parts["counts"], within + block),
            colour=_cycled(parts["colours"], colour),
            other=_cycled(parts["colours"], colour + 1 + within % 9),  # never the same one
            relation=_cycled(parts["relations"], within + block),
        )
    )


def _cycled(items: Any, number: int) -> str:
    return str(items[number % len(items)])
