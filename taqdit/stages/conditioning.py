"""Stage `conditioning`: the prompts' embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from taqdit.models.spec import ModelSpec
from taqdit.stages import out_of_memory as memory
from taqdit.stages.checks.check import Alike, Check, Problem, not_finite, told
from taqdit.stages.context import StageContext, once, seal
from taqdit.stages.fingerprints import conditioning_inputs
from taqdit.stages.plan import Plan
from taqdit.stages.stage_kind import Part, StageKind
from taqdit.store import Shard, Stage
from taqdit.trajectories import conditioning

CLAIM = "encoding"
FLOAT32, FLOAT16 = 4, 2  # bytes


def encode_prompts(
    context: StageContext,
) -> conditioning.Conditioning | conditioning.UnstoredConditioning:
    """Stage `conditioning`: one row per unique text that the run uses, and the negative.

    Where rows are not to be stored there is no stage, and they are encoded when needed.
    """
    plan = context.plan
    if not plan.prompts.store_conditioning:
        return _unstored(context)
    with context.stage(CONDITIONING) as (stage, report):
        missing = conditioning.missing_texts(stage, plan.texts)
        context.admit(stage, missing)
        if missing:
            report.made = _encode(context, stage, missing)
        report.reused = len({*plan.texts, conditioning.NEGATIVE}) - report.made
        seal(stage)
        return conditioning.Conditioning(stage)


def _unstored(context: StageContext) -> conditioning.UnstoredConditioning:
    def encode(text: str) -> Any:
        with memory.encoding(context.plan.model):
            return context.model.encode(text)

    def done() -> None:
        if context.plan.model.low_memory:
            context.model.release_text_encoders()

    return conditioning.UnstoredConditioning(context.plan.texts, encode, done)


def _encode(context: StageContext, stage: Stage, texts: list[str]) -> int:
    """Encode the texts; how many this process encoded.

    One process at a time, so that others wait without loading the text encoders.
    """
    missing = partial(conditioning.missing_texts, stage, texts)

    def read() -> int | None:
        return None if missing() else 0

    def encode() -> int:
        return sum(1 for _ in conditioning.encode(stage, missing(), context.model.encode))

    return once(stage, CLAIM, read, encode, write=lambda _: None)


class ConditioningCheck(Check):
    """Rows of one shape, named by their texts."""

    def __init__(self, stage: str, inputs: Mapping[str, Any], files: Sequence[str]) -> None:
        super().__init__(stage, inputs, files)
        self._shapes = Alike()

    def index(self, name: str, shard: Shard) -> str | None:
        """The digest of its text."""
        text = str(shard.metadata.get("text"))
        return conditioning.text_digest(text) if conditioning.shard_name(text) == name else None

    def shard(self, name: str, shard: Shard) -> Iterator[Problem]:
        """A row under another's name is no stray file."""
        if self.index(name, shard) is None:
            yield "place", "it holds the row of another text than its name says"
        else:
            yield from super().shard(name, shard)

    def contents(self, name: str, shard: Shard) -> Iterator[Problem]:
        """`tokens (n, 4096)` and `pooled (d,)`, not all the same."""
        shapes = {key: each.shape for key, each in shard.tensors.items()}
        if set(shapes) != {"tokens", "pooled"}:
            yield "shape", f"it holds {told(shapes)}, not tokens and pooled"
            return
        self._shapes.add(name, told(shapes))
        bad = list(not_finite(shard.tensors))
        yield from bad
        if not bad and any(np.ptp(each) == 0 for each in shard.tensors.values()):
            yield "dead", "an embedding has one value throughout"

    def close(self) -> Iterator[tuple[str | None, str, str]]:
        """Rows of another shape than most."""
        for name, found, usual in self._shapes.odd():
            yield name, "shape", f"it holds {found}, others {usual}"


def _parts(plan: Plan) -> tuple[Part, ...]:
    if not plan.prompts.store_conditioning:
        return (Part("conditioning", "conditioning", 0),)
    texts = {conditioning.NEGATIVE, *plan.texts}
    row = row_size(plan.model) * (FLOAT16 if plan.model.w16 else FLOAT32)
    files = frozenset(map(conditioning.shard_name, texts))
    return (Part("conditioning", "conditioning", (len(plan.texts) + 1) * row, files),)


def row_size(model: ModelSpec) -> int:
    """Numbers in the row of one text."""
    return model.num_text_tokens * model.token_width + model.pooled_width


CONDITIONING = StageKind(
    name="conditioning",
    unit="text",
    check=ConditioningCheck,
    inputs=conditioning_inputs,
    used=lambda plan: plan.prompts.store_conditioning,
    parts=_parts,
)
