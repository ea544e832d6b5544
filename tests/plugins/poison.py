"""The embedded model, altered after it was loaded: `alter(model)` is what a test puts in its place.

Reached as `model._target_=poison.tiny` with TAQDIT_PLUGINS=poison, in the test's own process.
"""

from dataclasses import replace

from taqdit.models import options

__all__ = ["tiny"]


def alter(model):
    """Leaves it as it is."""


class Altered:
    """A source whose model is altered after it was loaded."""

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def load(self, spec):
        model = self._source.load(spec)
        alter(model)
        return model


def tiny(
    *, local_ckpt=None, low_memory=False, use_t5=False, w16=False, a16=False, latent_size=(8, 8)
):
    """The embedded model, altered."""
    spec = options.tiny(low_memory=low_memory, w16=w16, a16=a16, latent_size=latent_size)
    return replace(spec, source=Altered(spec.source))
