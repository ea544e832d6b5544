"""Which steps of a trajectory become calibration points: rules, and what they choose from.

A rule is a public function of rules.py or data_driven.py and has its file in
conf/timestep_selection; nothing else lists it. One of your own, in a module that TAQDIT_PLUGINS
names:

    from taqdit.timestep_selection import Selection

    __all__ = ["ends"]

    def ends(trajectory, *, count=None):
        return Selection.of([0, trajectory.num_steps - 1])

It reads what traced statistics say off `trajectory.known("ends")` if it is declared by
`@from_evidence`.
"""

from taqdit.timestep_selection import data_driven, rules
from taqdit.timestep_selection.data_driven import *  # noqa: F403
from taqdit.timestep_selection.evidence import from_evidence as from_evidence
from taqdit.timestep_selection.rules import *  # noqa: F403
from taqdit.timestep_selection.selection import Selection as Selection
from taqdit.timestep_selection.steps import TrajectorySteps as TrajectorySteps

__all__ = [*rules.__all__, *data_driven.__all__]  # the options; the rest is for rules of one's own
