"""The door to DiffusionKit: whatever is used of it is imported from here.

DiffusionKit 0.5.2 imports argmaxtools (and through it torch and coremltools) for a logger, for a
print-out of the machine and for one division. Where argmaxtools is not installed, stand-ins of
those four names take its place; a complete installation keeps its own.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from types import ModuleType
from typing import Any

from taqdit import backend  # noqa: F401  (before mlx: it chooses the BLAS)
from taqdit.errors import ModelError

if importlib.util.find_spec("diffusionkit") is None:
    raise ModelError(
        "diffusionkit is not installed: run `uv sync`, or with plain pip"
        " `pip install --no-deps diffusionkit==0.5.2`"
    )


def _stand_in(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module
    return module


def _stand_in_for_argmaxtools() -> None:
    import diffusionkit

    utils = _stand_in("argmaxtools.utils", get_logger=logging.getLogger)
    mixins = {
        name: type(name, (), {}) for name in ("AppleSiliconContextMixin", "InferenceContextSpec")
    }
    test_utils = _stand_in("argmaxtools.test_utils", **mixins)
    _stand_in("argmaxtools", __path__=[], utils=utils, test_utils=test_utils)
    diffusionkit.utils = _stand_in("diffusionkit.utils", bytes2gigabytes=lambda size: size / 2**30)


if "argmaxtools" not in sys.modules and importlib.util.find_spec("argmaxtools") is None:
    _stand_in_for_argmaxtools()


class _OnlyErrors(logging.Filter):
    """transformers regrets on import that there is no torch; nothing here needs it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR


_transformers, _only_errors = logging.getLogger("transformers"), _OnlyErrors()
_transformers.addFilter(_only_errors)
try:
    import diffusionkit.mlx as dk
    from diffusionkit.mlx import model_io
    from diffusionkit.mlx.clip import CLIPTextModel
    from diffusionkit.mlx.config import CLIPTextModelConfig, MMDiTConfig, VAEDecoderConfig
    from diffusionkit.mlx.mmdit import MMDiT
    from diffusionkit.mlx.sampler import ModelSamplingDiscreteFlow
    from diffusionkit.mlx.t5 import SD3T5Encoder, TransformerEncoder
    from diffusionkit.mlx.tokenizer import Tokenizer
    from diffusionkit.mlx.vae import VAEDecoder
finally:
    _transformers.removeFilter(_only_errors)

__all__ = [
    "CLIPTextModel",
    "CLIPTextModelConfig",
    "MMDiT",
    "MMDiTConfig",
    "ModelSamplingDiscreteFlow",
    "SD3T5Encoder",
    "Tokenizer",
    "TransformerEncoder",
    "VAEDecoder",
    "VAEDecoderConfig",
    "dk",
    "model_io",
]
