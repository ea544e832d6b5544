"""Which selections differ, and which do not, in words and as a table of pairs.

Two runs were analysed apart, so their losses cannot be paired by trajectories: the interval of a
difference is taken as if they were independent, the root of the sum of the squares of the half
widths. Selections on the same trajectories rise and fall together, so this interval is too wide
rather than too narrow: what it tells apart does differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from taqdit.analysis.scores import FITTED, ROUGH
from taqdit.analysis.verdict import loss_words, pair_words
from taqdit.quantizer import BITS
from taqdit.report.comparison.result import Selected
from taqdit.report.comparison.table import Group, Row
from taqdit.words import listed

DECIDING = 8  # bits
NAMED = 6  # selections in one line
FEW = 3  # pairs that get a line each
CRITERION = (
    "Runs are told apart without pairing: by more than the root of the sum of the squares of the"
    " half widths of their 95 % intervals. On the same trajectories this is cautious; each run's"
    " own report pairs the rules that it compared. Losses on different trajectories are each"
    f" against the best quantizer of its own. Where no width is named it is {DECIDING} bits."
)
MARKS = (
    f"{FITTED} the steps were chosen from the same statistics, which flatters the selection;"
    f" {ROUGH} trajectories that share a fold select different steps, and each is taken to see what"
    " all of its fold show there, which flatters it too."
)


@dataclass(frozen=True)
class Pair:
    """Two selections on one set of trajectories: how much more `one` loses than `other`, dB, and
    half of the interval of that (None: not known)."""

    group: str
    one: str
    other: str
    points: tuple[float, float]
    bits: int
    difference: float
    half_width: float | None

    @property
    def differ(self) -> bool:
        """Whether the difference is larger than its interval; False where that is not known."""
        return self.half_width is not None and abs(self.difference) > self.half_width

    @property
    def better(self) -> str:
        """The one that loses less."""
        return self.one if self.difference < 0 else self.other

    def __str__(self) -> str:
        one, other, at = self.one, self.other, ""
        if self.points[0] == self.points[1]:
            at = f" at k = {self.points[0]:g}"
        else:  # the budgets behind the names
            one, other = (f"{one} (k = {self.points[0]:g})", f"{other} (k = {self.points[1]:g})")
        half = math.nan if self.half_width is None else self.half_width
        return pair_words(one, other, self.difference, half, at)


def pairs(group: Group, bits: int = DECIDING) -> list[Pair]:
    """Every two selections of a group, in its order; of runs that are the same, the first."""
    width = BITS.index(bits)
    return [
        Pair(group.title, one, other, (a.points, b.points), bits, *_apart(a, b, width))
        for (one, a), (other, b) in combinations(_selections(group, width).items(), 2)
    ]


def words(group: Group, paired: Sequence[Pair]) -> list[str]:
    """The verdict on one group: every pair if there are few, else all against the best."""
    width = BITS.index(DECIDING)
    known = _selections(group, width)
    if not known:
        return ["no loss is known"]
    best, *equal = _lowest(known, width)
    if len(known) == 1:
        return [f"only {best}: {_loss(known[best], width)} at k = {known[best].points:g}"]
    lines = [
        f"lowest loss at {DECIDING} bits: {best}, {_loss(known[best], width)}"
        f" at k = {known[best].points:g}"
    ]
    if equal:
        lines[0] += f", and so {'does' if len(equal) == 1 else 'do'} {listed(equal, NAMED)}"
    if len({selection.points for selection in known.values()}) > 1:
        lines[0] += "; the budgets differ"
        lines += _at_the_usual_budget(known, best, width)
    if len(paired) <= FEW:
        return [*lines, *(str(pair) for pair in paired), *_other_widths(group)]
    with_best = {pair.other if pair.one == best else pair.one: pair for pair in paired
                 if best in (pair.one, pair.other)}  # fmt: skip
    order = sorted(with_best, key=lambda name: known[name].loss_db[width] or 0.0)
    alike = [name for name in order if not with_best[name].differ]
    worse = [name for name in order if with_best[name].differ]
    for text, members in (("do not differ from it beyond the interval", alike), ("worse", worse)):
        if members:
            lines.append(f"{text}: {_listed(known, members, width)}")
    apart = sum(pair.differ for pair in paired)
    lines.append(f"of all {len(paired)} pairs {apart} differ beyond their interval")
    return [*lines, *_other_widths(group)]


def _at_the_usual_budget(known: Mapping[str, Selected], best: str, width: int) -> list[str]:
    """The best of those that have the most common budget, where the best of all has more."""
    budgets = Counter(each.points for each in known.values())
    ((usual, number), *_) = budgets.most_common()
    if number == 1 or known[best].points <= usual:
        return []
    alike = {name: each for name, each in known.items() if each.points == usual}
    first, *_ = _lowest(alike, width)
    return [f"of those at k = {usual:g}: {first}, {_loss(alike[first], width)}"]


def _other_widths(group: Group) -> list[str]:
    """A line per other width: who loses least, and how many pairs are told apart."""
    lines = []
    for width, bits in enumerate(BITS):
        known = _selections(group, width)
        if bits == DECIDING or len(known) < 2:
            continue
        best = ", ".join(_lowest(known, width))
        loss = _loss(known[_lowest(known, width)[0]], width)
        found = pairs(group, bits)
        apart = sum(pair.differ for pair in found)
        lines.append(
            f"{bits} bits: lowest loss {best}, {loss}; {apart} of {len(found)} pairs differ"
        )
    return lines


def overall(sets: Sequence[Group]) -> list[str]:
    """The verdict on all groups together: who loses least how often; who is told apart where, at
    every width."""
    width = BITS.index(DECIDING)
    lowest = [_lowest(_selections(group, width), width) for group in sets]
    wins = Counter(name for names in lowest for name in names)
    if not wins:
        return ["no loss is known"]
    ties = "; a tie counts for each" if any(len(names) > 1 for names in lowest) else ""
    shown = [f"{name} in {number}" for name, number in wins.most_common()]
    lines = [
        f"lowest loss at {DECIDING} bits: {listed(shown, NAMED)} of {len(sets)} sets of"
        f" trajectories{ties}"
    ]
    for bits in BITS:
        found = [pair for group in sets for pair in pairs(group, bits)]
        lines += [f"{bits} bits: {text}" for text in _apart_where(found)]
    return lines


def _apart_where(found: Sequence[Pair]) -> list[str]:
    """A line for every two selections on several sets; of many, one line that counts them."""
    compared = list(dict.fromkeys((pair.one, pair.other) for pair in found))
    if len(compared) > FEW:
        apart = sum(pair.differ for pair in found)
        return [f"of all {len(found)} pairs {apart} differ beyond their interval"]
    return [
        _across([pair for pair in found if (pair.one, pair.other) == names]) for names in compared
    ]


def _across(found: Sequence[Pair]) -> str:
    """What the same two selections show on several sets."""
    one, other = found[0].one, found[0].other
    sets = f"{len(found)} set{'s' if len(found) > 1 else ''}"
    apart = [pair for pair in found if pair.differ]
    if not apart:
        return f"{one} and {other} do not differ beyond their interval in any of {sets}"
    text = f"{one} and {other} differ beyond their interval in {len(apart)} of {sets}"
    for name in (one, other):
        if better := [pair.group for pair in apart if pair.better == name]:
            text += f"; {name} is better at {listed(better, NAMED, ' and at ')}"
    return text


def _lowest(known: Mapping[str, Selected], width: int) -> list[str]:
    """Those that lose least: several only if they lose exactly the same; none of none."""
    losses = {name: each.loss_db[width] or 0.0 for name, each in known.items()}
    return [name for name, loss in losses.items() if loss == min(losses.values())]


def _selections(group: Group, width: int) -> dict[str, Selected]:
    """Name -> selection with a known loss; the first of those that have the same name."""
    found: dict[str, Selected] = {}
    for row in group.rows:
        if (own := row.run.own) is not None and own.loss_db[width] is not None:
            found.setdefault(_name(group, row), own)
    return found


def _name(group: Group, row: Row) -> str:
    """The selection; with the settings where the group's runs differ in these too."""
    alike = len({each.setting for each in group.rows}) == 1
    return row.selection if alike else row.name


def _apart(one: Selected, other: Selected, width: int) -> tuple[float, float | None]:
    """How much more `one` loses, dB, and half of the interval of that."""
    difference = (one.loss_db[width] or 0.0) - (other.loss_db[width] or 0.0)
    half, other_half = one.half_width_db[width], other.half_width_db[width]
    if half is None or other_half is None:
        return difference, None
    return difference, math.hypot(half, other_half)


def _loss(selection: Selected, width: int) -> str:
    loss, half = selection.loss_db[width] or 0.0, selection.half_width_db[width]
    half = math.nan if half is None else half
    return loss_words(loss, max(loss - half, 0), loss + half)


def _listed(known: dict[str, Selected], names: Sequence[str], width: int) -> str:
    equal = len({each.points for each in known.values()}) == 1
    texts = [
        f"{name} {known[name].loss_db[width]:.3f}"
        + ("" if equal else f" (k = {known[name].points:g})")
        for name in names
    ]
    return listed(texts, NAMED)
