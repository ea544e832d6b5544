"""taqdit: time-aware quantization experiments for diffusion transformers on Apple MLX.

    import taqdit
    run = taqdit.launch(["experiment=dry_run"])
    points = run.calibration()
    points[0].latent, points[0].step, points[0].prompt
    run.statistics().overview().absmax
    taqdit.compare_selections(run.statistics(), ["paper_uniform", "interleaved"]).scores.loss

Importing the package is light; each name loads what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taqdit.activations.opened import Statistics, open_statistics
    from taqdit.calibration.calibration_set import CalibrationSet
    from taqdit.run import launch
    from taqdit.runs.api import Run, compare_selections, open_run

__version__ = "0.1.0"
__all__ = [
    "CalibrationSet",
    "Run",
    "Statistics",
    "__version__",
    "compare_selections",
    "launch",
    "open_run",
    "open_statistics",
]

_HOMES = {
    "CalibrationSet": "taqdit.calibration.calibration_set",
    "Run": "taqdit.runs.api",
    "Statistics": "taqdit.activations.opened",
    "compare_selections": "taqdit.runs.api",
    "launch": "taqdit.run",
    "open_run": "taqdit.runs.api",
    "open_statistics": "taqdit.activations.opened",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'taqdit' has no attribute {name!r}")
