"""A tracer that keeps a checkpoint after every batch; models with a NaN and with an outlier.

Reached as `tracer._target_=eager.post_gelu`, `model._target_=eager.broken` or `eager.giant` with
TAQDIT_PLUGINS=eager.
"""

from dataclasses import replace

from taqdit.models import options as models
from taqdit.tracer import options as tracer

__all__ = ["broken", "giant", "post_gelu"]

GIANT, CHANNEL = 412.0, 7


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


class Altered:
    """A source whose model is altered after it was loaded."""

    def __init__(self, source, alter):
        self._source, self._alter = source, alter

    def __getattr__(self, name):
        return getattr(self._source, name)

    def load(self, spec):
        model = self._source.load(spec)
        self._alter(model.mmdit.multimodal_transformer_blocks)
        return model


def broken(
    *, local_ckpt=None, low_memory=False, use_t5=False, w16=False, a16=False, latent_size=(8, 8)
):
    """The embedded model with a NaN where the text enters the second block's MLP."""

    def alter(blocks):
        from taqdit.backend import mx

        linear = blocks[1].text_transformer_block.mlp.fc1
        linear.bias = mx.where(mx.arange(linear.bias.size) == 3, mx.nan, linear.bias)

    return _altered(alter, latent_size)


def giant(
    *, local_ckpt=None, low_memory=False, use_t5=False, w16=False, a16=False, latent_size=(8, 8)
):
    """The embedded model with one channel at GIANT, on every second token, after the third text
    block's GELU; what follows does not use it."""

    def alter(blocks):
        from taqdit.backend import mx, nn

        class Planted(nn.GELU):
            def __call__(self, x):
                values = super().__call__(x)
                odd = (mx.arange(values.shape[1]) % 2 == 1)[:, None, None]
                return mx.where(odd & there, GIANT, values)

        mlp = blocks[2].text_transformer_block.mlp
        there = mx.arange(mlp.fc1.bias.size) == CHANNEL
        mlp.fc2.weight = mx.where(there[None], 0, mlp.fc2.weight)
        mlp.act_fn = Planted()

    return _altered(alter, latent_size)


def _altered(alter, latent_size):
    spec = models.tiny(latent_size=latent_size)
    return replace(spec, source=Altered(spec.source, alter))
