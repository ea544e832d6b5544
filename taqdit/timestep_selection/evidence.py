"""What traced statistics say about a trajectory's steps: data-driven rules choose from it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from taqdit.errors import require

R = TypeVar("R", bound=Callable[..., Any])


def from_evidence(rule: R) -> R:
    """Declare that a rule chooses from the evidence of the steps it is shown."""
    rule.needs_evidence = True  # type: ignore[attr-defined]
    return rule


def needs_evidence(rule: Callable[..., Any]) -> bool:
    """Whether a rule, its own arguments bound or not, is declared `from_evidence`."""
    return getattr(getattr(rule, "func", rule), "needs_evidence", False)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What statistics say about the n steps of a trajectory; as data-driven rules are shown it.

    distances (n, n): symmetric, >= 0, zero diagonal: the mean over the sites of the Wasserstein-1
    distance of two steps' values, in the site's standard deviations. weights (n,): of the steps,
    > 0, sum 1 (dt, or equal). errors: bits -> (S, n, C) >= 0: mean squared error of a value of a
    site at a step when it is quantized with candidate range c, divided by the site's least
    weighted error, min_c sum_i w_i E(i, c): 1 is the best static quantizer. Read-only float64.
    Raises ConfigError if one is malformed.
    """

    distances: np.ndarray
    weights: np.ndarray
    errors: Mapping[int, np.ndarray]
    _choices: dict[Hashable, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        n = self.weights.size
        require(
            (
                self.weights.ndim == 1 and n > 0,
                f"weights of shape {self.weights.shape} must be (n,)",
            ),
            (
                self.distances.shape == (n, n),
                f"distances of shape {self.distances.shape} must be ({n}, {n})",
            ),
            *(
                (
                    each.ndim == 3 and each.size > 0 and each.shape[1] == n,
                    f"errors[{bits}] of shape {each.shape} must be (sites, {n}, ranges)",
                )
                for bits, each in self.errors.items()
            ),
        )
        require(*self._value_checks())
        for array in (self.distances, self.weights, *self.errors.values()):
            array.flags.writeable = False

    def _value_checks(self) -> Iterable[tuple[bool, str]]:
        arrays = {"distances": self.distances, "weights": self.weights}
        arrays |= {f"errors[{bits}]": each for bits, each in self.errors.items()}
        for name, each in arrays.items():
            good = each.dtype == np.float64 and bool(np.isfinite(each).all() and (each >= 0).all())
            yield good, f"{name} must be float64, finite and >= 0"
        total = float(self.weights.sum())
        yield bool((self.weights > 0).all()), "weights must be > 0"
        yield abs(total - 1) <= 1e-6, f"weights sum to {total:.6g} and must sum to 1"
        yield not self.distances.diagonal().any(), "distances must be 0 on the diagonal"
        even = np.allclose(self.distances, self.distances.T, rtol=1e-9, atol=1e-12)
        yield even, "distances must be symmetric"

    @property
    def num_steps(self) -> int:
        """n."""
        return self.weights.size

    @classmethod
    def blank(cls, num_steps: int, widths: Iterable[int]) -> Evidence:
        """A stand-in, at some bit widths, that tells no step from another: to try a rule's
        arguments with before anything is traced."""
        flat = np.zeros((1, num_steps, 1))
        weights = np.full(num_steps, 1 / num_steps)
        return cls(np.zeros((num_steps, num_steps)), weights, dict.fromkeys(widths, flat))

    def errors_at(self, bits: int) -> np.ndarray:
        """errors[bits] (S, n, C). ConfigError for a width that was not measured."""
        widths = ", ".join(map(str, self.errors))
        require((bits in self.errors, f"bits={bits} must be one of {widths}"))
        return self.errors[bits]

    def once(self, key: Hashable, choose: Callable[[], Iterable[int]]) -> tuple[int, ...]:
        """The steps that `choose` gives, kept under `key`: trajectories share what is chosen.

        The key names the rule and every argument that the choice depends on.
        """
        if key not in self._choices:
            self._choices[key] = tuple(choose())
        return self._choices[key]

    @property
    def choices(self) -> dict[Hashable, tuple[int, ...]]:
        """What `once` has been asked for so far: steps by key."""
        return dict(self._choices)

    def recall(self, choices: Mapping[Hashable, tuple[int, ...]]) -> None:
        """Take over choices that were made from this very evidence."""
        self._choices.update(choices)
