"""Stage `conditioning`: the prompts' embeddings."""

from __future__ import annotations

from functools import partial
from typing import Any

from taqdit.models.spec import ModelSpec
from taqdit.stages import out_of_memory as memory
from taqdit.stages.checks.conditioning import ConditioningCheck
from taqdit.stages.context import StageContext, once, seal
from taqdit.stages.fingerprints import conditioning_inputs
from taqdit.stages.plan import Plan
from taqdit.stages.stage_kind import Part, StageKind
from taqdit.store import Stage
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
