"""The embedded model, which writes down every call of it: text encoded, forward, picture decoded.

Reached as `model._target_=counted.tiny` with TAQDIT_PLUGINS=counted. Each call appends a line of
JSON to the file that TAQDIT_TEST_CALLS names, at once, so that a killed process has told of it:
`{"call": "forward", "job": <the run's folder>, "rows": 8, "timestep": 1000.0}`.
"""

import json
import os
from dataclasses import replace

from hydra.core.hydra_config import HydraConfig
from hydra.plugins.sweeper import Sweeper

from taqdit.models import options

__all__ = ["tiny"]

# taqdit has composed and checked every job of a sweep by now. Hydra would compose them all once
# more to see whether they can be, for seconds of each of the sweeps that are killed and run again.
Sweeper.validate_batch_is_legal = lambda self, batch: None


def tell(call, **about):
    """Append a line; of this size it is written whole."""
    line = json.dumps({"call": call, "job": HydraConfig.get().runtime.output_dir, **about}) + "\n"
    file = os.open(os.environ["TAQDIT_TEST_CALLS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


class Counted:
    """A source whose model tells of its calls, and of being loaded."""

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def load(self, spec):
        tell("load")
        model = self._source.load(spec)
        tell_of_forwards(model.mmdit)
        model.encode = telling("encode", model.encode)
        model.decode = telling("decode", model.decode)
        return model


def telling(call, method):
    def told(argument):
        tell(call, rows=1 if isinstance(argument, str) else len(argument))
        return method(argument)

    return told


def tell_of_forwards(mmdit):
    """The transformer itself: whoever calls it is counted."""
    kind = type(mmdit)

    class Telling(kind):
        def __call__(self, latent_image_embeddings, token_level_text_embeddings, timestep):
            tell("forward", rows=len(timestep), timestep=timestep[0].item())
            return super().__call__(latent_image_embeddings, token_level_text_embeddings, timestep)

    mmdit.__class__ = Telling


def tiny(
    *, local_ckpt=None, low_memory=False, use_t5=False, w16=False, a16=False, latent_size=(8, 8)
):
    """The embedded model, counted."""
    spec = options.tiny(low_memory=low_memory, w16=w16, a16=a16, latent_size=latent_size)
    return replace(spec, source=Counted(spec.source))
