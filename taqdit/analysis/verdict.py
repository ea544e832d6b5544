"""The analysis in ten lines: which selection at which budget, which layers, how many bits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from taqdit.analysis.analyse import Analysis
from taqdit.analysis.bit_summary import summary_lines
from taqdit.analysis.drift import Drift, phase_names
from taqdit.analysis.estimates import known_mean
from taqdit.analysis.scores import FITTED, ROUGH, Scores
from taqdit.analysis.selections import DECIDING, DT, SelectionComparison
from taqdit.quantizer import BITS
from taqdit.words import listed

ENOUGH = 0.1  # dB: a loss that hardly matters
NAMED = 4  # selections in one line
WORST = 3  # sites
_WIDTH = BITS.index(DECIDING)


def verdict(analysis: Analysis) -> dict[str, list[str]]:
    """Topic -> its lines, at most ten in all."""
    comparison, scores = analysis.comparison, analysis.comparison.scores
    lines = {
        "selections": [_heading(comparison), _ranked(comparison), _question(scores)],
        "this run": [_own(scores)],
        "enough": [_enough(comparison)],
        "worst sites": [_worst(analysis)],
        "phases": [_phases(analysis.drift)],
        "bits": summary_lines(analysis.bits),
    }
    said = {topic: [text for text in texts if text] for topic, texts in lines.items()}
    return {topic: texts for topic, texts in said.items() if texts}


def difference(scores: Scores, one: int, other: int) -> str:
    """Whether two selections differ, in words, with the interval of the difference."""
    names = scores.rules[one], scores.rules[other]
    return pair_words(*names, *scores.losses.difference(one, other, DECIDING))


def pair_words(one: str, other: str, apart: float, half: float, at: str = "") -> str:
    """`a is better than b at k = 8 by 0.200 dB +- 0.050`: `one` loses `apart` dB more than `other`,
    with `half` an interval (not finite: not known); `at` says where."""
    by = f"{abs(apart):.3f} dB"
    if not np.isfinite(half):
        return f"{one} and {other}: {by} apart, too few folds of trajectories for an interval"
    by += f" +- {half:.3f}"
    if abs(apart) <= half:
        return f"{one} and {other} do not differ beyond their interval{at}: {by}"
    better, worse = (one, other) if apart < 0 else (other, one)
    return f"{better} is better than {worse}{at} by {by}"


def loss_words(loss: float, low: float, high: float) -> str:
    """`loses 0.020 dB [0.010, 0.030]`; without the interval where it is not known (not finite)."""
    interval = f" [{low:.3f}, {high:.3f}]" if np.isfinite(high) else ""
    return f"loses {loss:.3f} dB{interval}"


def _heading(comparison: SelectionComparison) -> str:
    weights = "by dt" if comparison.weighting == DT else "equally"
    text = (
        f"{comparison.count} of {comparison.num_steps} steps, {DECIDING}-bit static quantizers,"
        f" judged on all steps weighted {weights}; loss = dB below the best one"
    )
    scores = comparison.scores
    text += f"; {FITTED} steps chosen from these statistics" if scores.fitted.any() else ""
    return text + (f"; {ROUGH} trajectories share folds" if not scores.exact.all() else "")


def _ranked(comparison: SelectionComparison) -> str:
    """The best, which are told apart from it and which are not, which have other budgets."""
    scores, (best, *others) = comparison.scores, comparison.ranking
    texts = [f"best: {scores.label(best)} {_loss(scores, best)}"]
    if not np.isfinite(scores.loss_high[best, _WIDTH]):
        texts += [f"then {_names(scores, others)}"] if others else []
    else:
        alike = [place for place in others if not scores.losses.differ(place, best, DECIDING)]
        worse = [place for place in others if place not in alike]
        texts += [f"not told apart: {_names(scores, alike)}"] if alike else []
        texts += [f"worse: {_names(scores, worse)}"] if worse else []
    unequal = set(range(comparison.compared)) - {best, *others}
    texts += [f"other budgets: {_names(scores, sorted(unequal))}"] if unequal else []
    return "; ".join(texts)


def _question(scores: Scores) -> str:
    """The usual question, asked at equal budgets only."""
    pair = [scores.rules.index(name) for name in _ASKED if name in scores.rules]
    if len(pair) < len(_ASKED) or len(set(scores.counts[pair])) > 1:
        return ""
    return difference(scores, *pair)


_ASKED = ("paper_uniform", "dense_middle")


def _own(scores: Scores) -> str:
    if (own := scores.own) is None:
        return ""
    coverage, clipped = (known_mean(x)[own] for x in (scores.range_coverage, scores.clipped))
    return (
        f"{scores.label(own)}, {scores.counts[own]:g} points per trajectory, {_loss(scores, own)};"
        f" holds {100 * coverage:.1f} % of the range, {clipped:.1e} of the values lie outside"
    )


def _enough(comparison: SelectionComparison) -> str:
    """The least budget with which any rule, and the most usual one, loses at most ENOUGH; rules
    that were chosen from the same statistics do not count."""
    curves = [curve for curve in comparison.curves if not curve.fitted]
    needs = [(curve.enough(ENOUGH), curve.rule) for curve in curves]
    reached = [(count, rule) for count, rule in needs if count is not None]
    if not reached:
        return f"no compared rule loses less than {ENOUGH:g} dB at any budget"
    count, rule = min(reached, key=lambda pair: pair[0])
    text = f"{count:g} steps per trajectory of {rule} lose at most {ENOUGH:g} dB"
    if rule == _ASKED[0]:
        return text
    usual = [count for count, rule in needs if rule == _ASKED[0]]
    if not usual:
        return text
    if usual[0] is None:
        return f"{text}; {_ASKED[0]} loses more at any budget"
    return f"{text}; {_ASKED[0]} needs {usual[0]:g}"


def _worst(analysis: Analysis) -> str:
    """The sites that a static quantizer serves worst, and what is special about them."""
    scores, outliers = analysis.comparison.scores, analysis.outliers
    sqnr = scores.oracle[:, _WIDTH]
    known = np.flatnonzero(np.isfinite(sqnr))
    texts = []
    for site in known[np.argsort(sqnr[known], kind="stable")][:WORST]:
        kind, ratio = outliers.kind[site], outliers.channel_ratio[site]
        why = f"{kind} outliers" if kind != "none" else f"top channel {ratio:.1f}x the median"
        texts.append(f"{scores.sites[site].name} {sqnr[site]:.1f} dB ({why})")
    if not texts:
        return ""
    gain = float(scores.dynamic_gain[_WIDTH])
    return ", ".join(texts) + f"; a range per step would win {gain:.2f} dB on average"


def _phases(drift: Drift) -> str:
    """Where phases of all sites together begin, and which site drifts most."""
    borders = (0, *drift.phases, len(drift.sigmas))
    named = zip(phase_names(drift.phases), pairwise(borders), strict=True)
    spans = [f"{name} {first}-{end - 1}" for name, (first, end) in named]
    total = np.nan_to_num(drift.distance).sum(axis=1)
    text = f"{', '.join(spans)} (steps)"
    if not total.any():
        return text
    return f"{text}; {drift.sites[int(total.argmax())].name} drifts most"


def _loss(scores: Scores, place: int) -> str:
    at = place, _WIDTH
    return loss_words(scores.loss[at], scores.loss_low[at], scores.loss_high[at])


def _names(scores: Scores, places: Sequence[int]) -> str:
    shown = [f"{scores.label(place)} {scores.loss[place, _WIDTH]:.3f}" for place in places]
    return listed(shown, NAMED)
