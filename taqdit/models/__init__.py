"""The denoisers behind one small interface; the only package that imports diffusionkit.

`options` holds the options of the config group `model`; each returns a `ModelSpec`, which knows
sizes, files and memory without loading anything. `ModelSpec.load()` gives the `Model` itself.
"""

from taqdit.models.spec import Model, ModelSpec

__all__ = ["Model", "ModelSpec"]
