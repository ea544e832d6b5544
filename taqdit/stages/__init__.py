"""The stages of a run: each reuses what the store holds and computes what is missing.

A stage's folder is named by the fingerprint of everything that can change its numbers. Work is
claimed before it is done, so that several processes can share one stage.
"""

from taqdit.stages.analysis import KeptAnalysis
from taqdit.stages.conditioning import encode_prompts
from taqdit.stages.context import Bench, StageReport
from taqdit.stages.sampling import sample_and_trace
from taqdit.stages.weights import weight_inputs, weight_table

__all__ = [
    "Bench",
    "KeptAnalysis",
    "StageReport",
    "encode_prompts",
    "sample_and_trace",
    "weight_inputs",
    "weight_table",
]
