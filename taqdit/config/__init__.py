"""The configuration: schemas, composition, `build`, `check`, and the plan they end in."""

from taqdit.config import schema  # registers the schemas
from taqdit.config.building import OPTION_MODULES, build, resolve
from taqdit.config.checking import (
    GROUPS,
    Checked,
    Problem,
    build_group,
    check,
    raise_problems,
)
from taqdit.config.compose import (
    choices,
    compose_config,
    config_folder,
    from_mapping,
    hydra_complains,
    one_line,
    without_hydra,
)
from taqdit.config.foreign import refuse_code
from taqdit.config.launchers import gave_up, launcher_problems
from taqdit.config.planning import plan
from taqdit.config.sweeps import Callback, SweepJob, sweep_jobs

__all__ = [
    "GROUPS",
    "OPTION_MODULES",
    "Callback",
    "Checked",
    "Problem",
    "SweepJob",
    "build",
    "build_group",
    "check",
    "choices",
    "compose_config",
    "config_folder",
    "from_mapping",
    "gave_up",
    "hydra_complains",
    "launcher_problems",
    "one_line",
    "plan",
    "raise_problems",
    "refuse_code",
    "resolve",
    "schema",
    "sweep_jobs",
    "without_hydra",
]
