"""Prompts, cycled over the trajectories; options of the config group `prompts`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taqdit.errors import InputError, require
from taqdit.prompts import varied
from taqdit.prompts.reading import SEEDS, Rows, read_prompts
from taqdit.store import sha256_hex

__all__ = ["Prompts", "file", "paper_20", "shapes", "varied_1000"]

_SETS = Path(__file__).parent


@dataclass(frozen=True)
class Prompts:
    """P prompts in order, repeats kept; `seeds[p]` is a noise seed where the file gave one.

    Without `store_conditioning` what a model makes of the texts is encoded anew when it is needed.
    """

    texts: tuple[str, ...]
    seeds: tuple[int | None, ...]
    store_conditioning: bool = True

    @classmethod
    def kept(cls, record: Mapping[str, Any]) -> Prompts:
        """The prompts that a record or a stage's inputs hold. ValueError if they hold none."""
        texts, seeds = record.get("prompts"), record.get("prompt_seeds")
        if not (isinstance(texts, list) and texts and all(type(text) is str for text in texts)):
            raise ValueError("its prompts are no texts")
        if not isinstance(seeds, list) or len(seeds) != len(texts):
            raise ValueError("its prompt_seeds are not one for each prompt")
        if not all(seed is None or (type(seed) is int and 0 <= seed < SEEDS) for seed in seeds):
            raise ValueError(f"its prompt_seeds are not null or integers in [0, {SEEDS})")
        "".join(texts).encode()  # halves of characters are no text
        return cls(tuple(texts), tuple(seeds))

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, trajectory: int) -> str:
        """The prompt of a trajectory: the prompts are cycled."""
        return self.texts[trajectory % len(self)]

    def seed(self, trajectory: int, base: int) -> int:
        """The noise seed of a trajectory, in [0, 2^32).

        `base + trajectory`, or the prompt's own seed, one more each time the prompt comes round.
        """
        own = self.seeds[trajectory % len(self)]
        if own is None:
            return (base + trajectory) % SEEDS
        return (own + trajectory // len(self)) % SEEDS

    def origin(self, trajectory: int, base: int) -> dict[str, Any]:
        """What the shard of a trajectory says of its prompt and its noise."""
        digest = sha256_hex(self.text(trajectory).encode())
        return {"prompt_sha256": digest, "seed": self.seed(trajectory, base)}


def shapes(*, num: int | None = None, store_conditioning: bool = True) -> Prompts:
    """Sixteen captions of the embedded model: every shape, colour, size, position, background."""
    return _first(read_prompts(_SETS / "shapes.txt"), num, store_conditioning)


def paper_20(*, num: int | None = None, store_conditioning: bool = True) -> Prompts:
    """Twenty varied prompts within CLIP's 77 tokens, for real weights."""
    return _first(read_prompts(_SETS / "paper_20.txt"), num, store_conditioning)


def varied_1000(*, num: int | None = None, store_conditioning: bool = True) -> Prompts:
    """A thousand different prompts within CLIP's 77 tokens: ten families, twenty styles, balanced.

    The first ones are as varied as their number allows: 10 show every family, 20 every style.
    """
    return _first([(text, None) for text in varied.compose()], num, store_conditioning)


def file(
    *,
    path: str | None = None,
    num: int | None = None,
    store_conditioning: bool = True,
    allow_outside: bool = False,
) -> Prompts:
    """Prompts of a UTF-8 .txt (one a line, or `seed<TAB>prompt`) or .csv (column `prompt`).

    Blank lines are skipped, a repeated prompt counts twice, `num` keeps the first ones. A .csv
    may have a column `seed`. `path` is relative to the working directory; a file that does not lie
    in there, links followed, is read with `allow_outside` alone: its lines would stand in records
    and uploads. Raises InputError naming the line: not UTF-8, control or bidirectional characters,
    over 1 MB, 10,000 lines or 2,000 characters a prompt, no prompt at all.
    """
    require((bool(path), f"path={path or 'null'} must name a .txt or .csv file: set prompts.path"))
    place = Path(str(path))
    place = place.expanduser() if place.parts[:1] == ("~",) else place
    if not allow_outside:
        _refuse_outside(place)
    return _first(read_prompts(place), num, store_conditioning)


def _refuse_outside(path: Path) -> None:
    """Raise InputError unless the file lies in the working directory, links followed."""
    try:
        here, place = Path.cwd().resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, NUL
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"path={path} cannot be read: {reason}") from error
    if not place.is_relative_to(here):
        raise InputError(
            f"path={path} lies outside the working directory {here}, and prompts stand in every"
            " record and upload of a run; copy the file here, or set prompts.allow_outside=true"
        )


def _first(rows: Rows, num: int | None, store_conditioning: bool) -> Prompts:
    allowed = f"an integer in [1, {len(rows)}], the number of prompts, or null for all"
    whole = num is None or (isinstance(num, int) and not isinstance(num, bool))
    fits = whole and (num is None or 1 <= num <= len(rows))
    require((fits, f"num={num!r} must be {allowed}"))
    texts, seeds = zip(*rows[:num], strict=True)
    return Prompts(texts, seeds, store_conditioning)
