"""What a stage declares of itself, once, in its own file; all that treats stages alike reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from taqdit.stages.checks.check import Check
from taqdit.stages.plan import Plan


@dataclass(frozen=True)
class Part:
    """Files of one sort that a run needs of a stage, and the bytes that they will take.

    `key`: `<key>_bytes` in summary.json. `label` is what is counted, `words` says how large it is.
    Without `files` (their names) it is not counted. While they are made, `meanwhile` times as much
    may lie beside them.
    """

    key: str
    label: str
    nbytes: int
    files: frozenset[str] = frozenset()
    meanwhile: int = 0
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class StageKind:
    """One kind of stage. `made_from` names the stages that it reads, nearest ones suffice.

    A stage whose folder is named by the plan has `inputs`, all that can change its numbers (those
    of what it is made from among them), and the config `keys` that do; a run refers to it if it is
    `used`, by default if it or what is made from it is asked for. One that is named by data has
    none: no run refers to it, and it is kept as long as those data, which are told by `data`, of
    its inputs (stage -> fingerprint), or by the digests of the shards of the stage `digests_of`,
    which its inputs list under that name.

    `check` says what its shards must be; None: it leaves nothing in the store. `parts` are the
    files that a run needs, of no bytes or none at all where it does without.
    """

    name: str
    unit: str = "shard"
    made_from: tuple[str, ...] = ()
    check: type[Check] | None = None
    inputs: Callable[[Plan], dict[str, Any]] | None = None
    keys: tuple[str, ...] = ()
    used: Callable[[Plan], bool] | None = None
    parts: Callable[[Plan], tuple[Part, ...]] = lambda _: ()
    data: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    digests_of: str | None = None

    @property
    def stored(self) -> bool:
        """Whether it has folders in the store."""
        return self.check is not None

    def is_used(self, plan: Plan) -> bool:
        """Whether a run of this plan refers to a folder of this kind."""
        if self.inputs is None:
            return False
        return self.name in plan.needs if self.used is None else self.used(plan)
