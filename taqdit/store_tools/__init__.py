"""What a store holds and in which state: looked at, verified, repaired."""

from taqdit.store_tools.runs_found import RunFound, runs_of
from taqdit.store_tools.stage_folder import Replaced, Surveyed
from taqdit.store_tools.survey import Survey, find_store
from taqdit.store_tools.verification import Checked, Finding, verify

__all__ = [
    "Checked",
    "Finding",
    "Replaced",
    "RunFound",
    "Survey",
    "Surveyed",
    "find_store",
    "runs_of",
    "verify",
]
