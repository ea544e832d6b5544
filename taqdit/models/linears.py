"""The linears of a model and their weights, under names of ours (`mm_07_img.q_proj`).

Unlike the sites, these are all of them: adaLN, the embedders and the patch projection too. The
latter is a convolution without overlap, so it is a linear of its flattened kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.errors import ModelError
from taqdit.models.sites import blocks

if TYPE_CHECKING:
    from taqdit.backend import mx, nn
    from taqdit.models.spec import ModelSpec

_EMBED = {
    "context": "context_embedder",
    "x": "x_embedder.proj",
    "y_0": "y_embedder.mlp.layers.0",
    "y_2": "y_embedder.mlp.layers.2",
    "t_0": "t_embedder.mlp.layers.0",
    "t_2": "t_embedder.mlp.layers.2",
}
_ADALN = {"adaln": "adaLN_modulation.layers.1"}
_QKV = {f"{x}_proj": f"attn.{x}_proj" for x in "qkv"}
_BLOCK = {**_QKV, "o_proj": "attn.o_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_FINAL = {"linear": "linear"}


def linear_paths(spec: ModelSpec) -> dict[str, str]:
    """Layer -> path in DiffusionKit's MMDiT, of every linear; empty if the structure is unknown.

    In the order of the data flow: embedders, blocks (image before text), final layer; within one,
    `q_proj k_proj v_proj o_proj fc1 fc2`, then `adaln`, which no other linear of it feeds. A block
    that is not whole (see `blocks`) has no `o_proj`, `fc1` and `fc2`.
    """
    if not (spec.blocks or spec.unified_blocks):
        return {}
    paths = _under("embed", "", _EMBED)
    for block in blocks(spec):
        present = (_BLOCK if block.whole else _QKV) | _ADALN
        paths |= _under(block.name, f"{block.path}.", present)
    return paths | _under("final", "final_layer.", _FINAL | _ADALN)


def linears(mmdit: nn.Module, spec: ModelSpec) -> Iterator[tuple[str, np.ndarray]]:
    """Each layer with its weight (out, in), float32, one at a time, in the order of `linear_paths`.

    A quantized linear is read back; a kernel (out, height, width, channels) is flattened. Raises
    ModelError where the transformer has no such linear, or its weight is away.
    """
    modules = dict(mmdit.named_modules())
    for layer, path in linear_paths(spec).items():
        yield layer, _weight(modules, path, layer)


def _under(name: str, path: str, linears: Mapping[str, str]) -> dict[str, str]:
    """Names and paths of the linears of one block."""
    return {f"{name}.{linear}": f"{path}{inner}" for linear, inner in linears.items()}


def _weight(modules: Mapping[str, Any], path: str, layer: str) -> np.ndarray:
    from taqdit.backend import mx

    module = modules.get(path)
    if module is None or "weight" not in module:
        raise ModelError(f"layer {layer} at {path}: the transformer has no such linear")
    weight = np.array(_read_back(module).astype(mx.float32))
    if weight.ndim < 2:
        raise ModelError(f"layer {layer} at {path}: its weight {weight.shape} is away or none")
    return weight.reshape(len(weight), -1)


def _read_back(module: Any) -> mx.array:
    """The weight as numbers: that of a quantized linear from its codes."""
    from taqdit.backend import mx, nn

    if not isinstance(module, nn.QuantizedLinear):
        return module.weight
    return mx.dequantize(
        module.weight,
        module.scales,
        module.get("biases"),
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
    )
