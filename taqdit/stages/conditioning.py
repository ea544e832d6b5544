"""Stage `conditioning`: the prompts' embeddings."""

from __future__ import annotations

from typing import Any

from taqdit.stages import out_of_memory as memory
from taqdit.stages.context import Bench, Waiting, seal
from taqdit.stages.plan import conditioning_inputs
from taqdit.store import Stage
from taqdit.trajectories import conditioning

CLAIM = "encoding"


def encode_prompts(
    bench: Bench,
) -> conditioning.Conditioning | conditioning.UnstoredConditioning:
    """Stage `conditioning`: one row per unique text that the run uses, and the negative.

    Where rows are not to be stored there is no stage, and they are encoded when needed.
    """
    plan = bench.plan
    if not plan.prompts.store_conditioning:
        return _unstored(bench)
    with bench.stage("conditioning", conditioning_inputs(plan)) as (stage, report):
        missing = conditioning.missing_texts(stage, plan.texts)
        bench.require("conditioning", missing)
        if missing:
            stage.admit(bench.backend, allow_change=plan.allow_backend_change)
            report.made = _encode(bench, stage, missing)
        report.reused = len({*plan.texts, conditioning.NEGATIVE}) - report.made
        seal(stage)
        return conditioning.Conditioning(stage)


def _unstored(bench: Bench) -> conditioning.UnstoredConditioning:
    def encode(text: str) -> Any:
        with memory.encoding(bench.plan.model):
            return bench.model.encode(text)

    def done() -> None:
        if bench.plan.model.low_memory:
            bench.model.release_text_encoders()

    return conditioning.UnstoredConditioning(bench.plan.texts, encode, done)


def _encode(bench: Bench, stage: Stage, missing: list[str]) -> int:
    """Encode what is missing; how many this process made.

    One process at a time, so that others wait without loading the text encoders.
    """
    made, waiting = 0, Waiting(stage, CLAIM)
    while missing:
        with stage.claim(CLAIM) as mine:
            missing = conditioning.missing_texts(stage, missing)
            if mine and missing:
                made += sum(1 for _ in conditioning.encode(stage, missing, bench.model.encode))
                missing = []
        if missing:
            waiting.pause()
    return made
