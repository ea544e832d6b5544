"""What a store holds and in which state: looked at, verified, repaired."""

from taqdit.survey.place import find_store
from taqdit.survey.repairing import Repaired, repair
from taqdit.survey.runs import RunFound, runs_of
from taqdit.survey.stages import KINDS, Replaced, Surveyed
from taqdit.survey.survey import Survey
from taqdit.survey.verifying import Checked, Finding, verify

__all__ = [
    "KINDS",
    "Checked",
    "Finding",
    "Repaired",
    "Replaced",
    "RunFound",
    "Survey",
    "Surveyed",
    "find_store",
    "repair",
    "runs_of",
    "verify",
]
