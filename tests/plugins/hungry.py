"""The analytic model in a memory that holds a few trajectories: more rows, and a forward fails.

Reached as `model._target_=hungry.gaussian` with TAQDIT_PLUGINS=hungry.
"""

from contextlib import contextmanager
from dataclasses import replace

import analytic

__all__ = ["gaussian"]

ROWS = 2  # what the memory holds
FORWARD = 2  # the step at which it is found out
error = MemoryError()  # how a forward fails


class Hungry(analytic.Analytic):
    """A source and model that fails on a batch of more than ROWS rows."""

    def load(self, spec):
        return Hungry(None, 0.0, spec.latent_shape, spec)

    @contextmanager
    def denoiser(self, **given):
        with super().denoiser(**given) as denoise:

            def hungry(latent, step):
                if step == FORWARD and len(latent) > ROWS:
                    raise error
                return denoise(latent, step)

            yield hungry


def gaussian(
    *, local_ckpt=None, low_memory=False, use_t5=False, w16=False, a16=False, latent_size=(8, 8)
):
    """The analytic model that fails."""
    spec = analytic.gaussian(low_memory=low_memory, latent_size=latent_size)
    return replace(spec, source=Hungry())
