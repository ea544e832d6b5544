"""The package's rules by name, in the order of their definition, and which are compared."""

from __future__ import annotations

import inspect
from types import ModuleType

from taqdit.timestep_selection import data_driven, rules
from taqdit.timestep_selection.selection import Rule

ON_REQUEST = ("all", "random_per_trajectory")  # compared where they are named


def _defined(module: ModuleType) -> dict[str, Rule]:
    return {name: rule for name, rule in vars(module).items() if name in module.__all__}


def _complete(rule: Rule) -> bool:
    """Whether a rule needs no argument of its own."""
    own = list(inspect.signature(rule).parameters.values())[1:]
    return all(argument.default is not argument.empty for argument in own)


RULES = _defined(rules) | _defined(data_driven)
COMPARABLE = tuple(name for name, rule in RULES.items() if _complete(rule))
COMPARED = tuple(name for name in COMPARABLE if name not in ON_REQUEST)
