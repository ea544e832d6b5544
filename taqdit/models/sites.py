"""The sites of a model and the module each is read at, from its structure alone.

Names are ours (`mm_07_img.post_gelu`), paths are those of DiffusionKit's MMDiT. A site is the
input of a linear: q, k and v share theirs, so `qkv_in` is read at q. Where a unified block runs
attention and MLP in parallel, its `fc1_in` is the same array as its `qkv_in`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taqdit.activations import Site

if TYPE_CHECKING:
    from taqdit.models.spec import ModelSpec

_PATCH = 2  # latent pixels per image token, along each side
# Place -> the linear inside a transformer block that reads it, in the order of the data flow.
_LINEARS = {
    "qkv_in": "attn.q_proj",
    "o_in": "attn.o_proj",
    "fc1_in": "mlp.fc1",
    "post_gelu": "mlp.fc2",
}


@dataclass(frozen=True)
class SitePath:
    """A site, the path of the linear whose input it is, and its tokens per row of a batch."""

    site: Site
    path: str
    tokens: int


def site_paths(spec: ModelSpec) -> tuple[SitePath, ...]:
    """Every site in the order of the data flow; empty where the structure is not known.

    The last text block has only `qkv_in` unless unified blocks follow: what comes after its
    attention would never be used, and DiffusionKit leaves it out.
    """
    if not (spec.blocks or spec.unified_blocks):
        return ()
    return (*_embed(spec), *_multimodal(spec), *_unified(spec), *_final(spec))


def _embed(spec: ModelSpec) -> Iterator[SitePath]:
    site = Site("embed.context_in", spec.token_width)
    yield SitePath(site, "context_embedder", spec.num_text_tokens)


def _multimodal(spec: ModelSpec) -> Iterator[SitePath]:
    for i in range(spec.blocks):
        path, last = f"multimodal_transformer_blocks.{i}", i == spec.blocks - 1
        image, text = f"{path}.image_transformer_block", f"{path}.text_transformer_block"
        used = ("qkv_in",) if last and not spec.unified_blocks else tuple(_LINEARS)
        yield from _block(spec, f"mm_{i:02d}_img", image, _image_tokens(spec), tuple(_LINEARS))
        yield from _block(spec, f"mm_{i:02d}_txt", text, spec.num_text_tokens, used)


def _unified(spec: ModelSpec) -> Iterator[SitePath]:
    tokens = spec.num_text_tokens + _image_tokens(spec)
    for i in range(spec.unified_blocks):
        path = f"unified_transformer_blocks.{i}.transformer_block"
        yield from _block(spec, f"uni_{i:02d}", path, tokens, tuple(_LINEARS))


def _final(spec: ModelSpec) -> Iterator[SitePath]:
    site = Site("final.linear_in", spec.hidden)
    yield SitePath(site, "final_layer.linear", _image_tokens(spec))


def _block(
    spec: ModelSpec, name: str, path: str, tokens: int, places: tuple[str, ...]
) -> Iterator[SitePath]:
    for place in places:
        width = spec.hidden * (spec.mlp_ratio if place == "post_gelu" else 1)
        yield SitePath(Site(f"{name}.{place}", width), f"{path}.{_LINEARS[place]}", tokens)


def _image_tokens(spec: ModelSpec) -> int:
    height, width, _ = spec.latent_shape
    return (height // _PATCH) * (width // _PATCH)
