"""Stage `conditioning`: the prompts' embeddings."""

from __future__ import annotations

from taqdit import conditioning
from taqdit.plan import conditioning_inputs
from taqdit.stages.bench import Bench, seal


def encode_prompts(bench: Bench) -> conditioning.Conditioning:
    """Stage `conditioning`: one row per unique text that the run uses, and the negative."""
    plan = bench.plan
    with bench.stage("conditioning", conditioning_inputs(plan)) as (stage, report):
        missing = conditioning.missing_texts(stage, plan.texts)
        bench.require("conditioning", missing)
        report.reused = len({*plan.texts, conditioning.NEGATIVE}) - len(missing)
        if missing:
            stage.admit(bench.backend, allow_change=plan.allow_backend_change)
            encode = bench.model.encode
            report.made = sum(1 for _ in conditioning.encode(stage, missing, encode))
        seal(stage)
        return conditioning.Conditioning(stage)
