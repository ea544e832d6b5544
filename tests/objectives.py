"""What the searches of `taqdit.timestep_selection.search` make the least of, for any selection."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from taqdit.timestep_selection.search import _Sites


def medoid_cost(distances: np.ndarray, weights: np.ndarray, chosen: Sequence[int]) -> float:
    """sum_i w_i d(i, medoid of i) of the best contiguous segments around the `chosen` steps.

    Each chosen step, in any order, is the medoid of the one segment it lies in. `medoids` makes
    the least of it; any selection can be compared by it.
    """
    loads = distances * weights[:, None]
    steps = sorted(set(chosen))
    first, last = steps[0], steps[-1]
    ends = loads[:first, first].sum() + loads[last + 1 :, last].sum()
    return float(ends) + sum(_between(loads, left, right) for left, right in pairwise(steps))


def _between(loads: np.ndarray, left: int, right: int) -> float:
    """Least cost, over every border, of the steps between two neighbouring medoids."""
    to_left = np.append(0, np.cumsum(loads[left + 1 : right, left]))
    to_right = np.append(0, np.cumsum(loads[left + 1 : right, right][::-1]))[::-1]
    return float((to_left + to_right).min())


def static_error(errors: np.ndarray, weights: np.ndarray, chosen: Sequence[int]) -> float:
    """Error over all steps of static quantizers calibrated on the `chosen` ones; mean of the sites.

    `test_static_error_is_its_definition` holds it against loops.
    """
    return _Sites.of(errors, weights).error(chosen)
