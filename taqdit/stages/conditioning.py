"""Stage `conditioning`: the prompts' embeddings."""

from __future__ import annotations

import time

from taqdit import conditioning
from taqdit.plan import conditioning_inputs
from taqdit.stages.bench import POLL_SECONDS, Bench, seal
from taqdit.store import Stage

CLAIM = "encoding"


def encode_prompts(bench: Bench) -> conditioning.Conditioning:
    """Stage `conditioning`: one row per unique text that the run uses, and the negative."""
    plan = bench.plan
    with bench.stage("conditioning", conditioning_inputs(plan)) as (stage, report):
        missing = conditioning.missing_texts(stage, plan.texts)
        bench.require("conditioning", missing)
        if missing:
            stage.admit(bench.backend, allow_change=plan.allow_backend_change)
            report.made = _encode(bench, stage, missing)
        report.reused = len({*plan.texts, conditioning.NEGATIVE}) - report.made
        seal(stage)
        return conditioning.Conditioning(stage)


def _encode(bench: Bench, stage: Stage, missing: list[str]) -> int:
    """Encode what is missing; how many this process made.

    One process at a time, so that others wait without loading the text encoders.
    """
    made = 0
    while missing:
        with stage.claim(CLAIM) as mine:
            missing = conditioning.missing_texts(stage, missing)
            if mine and missing:
                made += sum(1 for _ in conditioning.encode(stage, missing, bench.model.encode))
                missing = []
        if missing:
            time.sleep(POLL_SECONDS)
    return made
