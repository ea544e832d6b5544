"""A tracer that keeps a checkpoint after every batch, and a model that gives NaN.

Reached as `tracer._target_=eager.post_gelu` and `model._target_=eager.broken` with
TAQDIT_PLUGINS=eager.
"""

from dataclasses import replace

from taqdit import tracer
from taqdit.models import options as models

__all__ = ["broken", "post_gelu"]


def post_gelu(
    *, num_trajectories="all", folds=2, blocks=None, streams=None, sites=None, nonfinite="stop"
):
    """The package's own, with checkpoints that never wait."""
    from taqdit.stages import statistics

    statistics.CHECKPOINT_SECONDS = 0.0
    return tracer.post_gelu(
        num_trajectories=num_trajectories,
        folds=folds,
        blocks=blocks,
        streams=streams,
        nonfinite=nonfinite,
    )


class Broken:
    """A source whose model has a NaN where the text enters the second block's MLP."""

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def load(self, spec):
        from taqdit.backend import mx

        model = self._source.load(spec)
        linear = model.mmdit.multimodal_transformer_blocks[1].text_transformer_block.mlp.fc1
        linear.bias = mx.where(mx.arange(linear.bias.size) == 3, mx.nan, linear.bias)
        return model


def broken(
    *, local_ckpt=None, low_memory=False, use_t5=False, w16=False, a16=False, latent_size=(8, 8)
):
    """The embedded model with that NaN."""
    spec = models.tiny(local_ckpt=local_ckpt, low_memory=low_memory, latent_size=latent_size)
    return replace(spec, source=Broken(spec.source))
