"""The stages of a run: each reuses what the store holds and computes what is missing.

A stage's folder is named by the fingerprint of everything that can change its numbers. Work is
claimed before it is done, so that several processes can share one stage. Each declares itself as a
`StageKind` in its own file; `kinds.KINDS` lists them.
"""

from taqdit.stages.analysis import KeptAnalysis
from taqdit.stages.conditioning import encode_prompts
from taqdit.stages.context import StageContext, StageReport
from taqdit.stages.imported import trace_imported
from taqdit.stages.sampling import sample_and_trace
from taqdit.stages.stage_kind import Part, StageKind
from taqdit.stages.weights import weight_table

__all__ = [
    "KeptAnalysis",
    "Part",
    "StageContext",
    "StageKind",
    "StageReport",
    "encode_prompts",
    "sample_and_trace",
    "trace_imported",
    "weight_table",
]
