"""The sites of a model and the module each is read at, from its structure alone.

Names are ours (`mm_07_img.post_gelu`), paths are those of DiffusionKit's MMDiT. A site is the
input of a linear: q, k and v share theirs, so `qkv_in` is read at q. Where a unified block runs
attention and MLP in parallel, its `fc1_in` is the same array as its `qkv_in`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

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

    A block that is not whole has only `qkv_in`.
    """
    if not (spec.blocks or spec.unified_blocks):
        return ()
    of_blocks = (path for block in blocks(spec) for path in _of_block(spec, block))
    embed, final = Site("embed.context_in", spec.token_width), Site("final.linear_in", spec.hidden)
    return (
        SitePath(embed, "context_embedder", _tokens(spec, embed)),
        *of_blocks,
        SitePath(final, "final_layer.linear", _tokens(spec, final)),
    )


class Block(NamedTuple):
    """A transformer block: its name, its path, and whether it is whole, with an MLP."""

    name: str
    path: str
    whole: bool = True


def blocks(spec: ModelSpec) -> Iterator[Block]:
    """Every block in the order of the data flow, image before text.

    The last text block is not whole unless unified blocks follow: what comes after its attention
    would never be used, and DiffusionKit leaves it out.
    """
    for i in range(spec.blocks):
        path, last = f"multimodal_transformer_blocks.{i}", i == spec.blocks - 1
        yield Block(f"mm_{i:02d}_img", f"{path}.image_transformer_block")
        whole = not last or spec.unified_blocks > 0
        yield Block(f"mm_{i:02d}_txt", f"{path}.text_transformer_block", whole)
    for i in range(spec.unified_blocks):
        yield Block(f"uni_{i:02d}", f"unified_transformer_blocks.{i}.transformer_block")


def _of_block(spec: ModelSpec, block: Block) -> Iterator[SitePath]:
    for place, linear in _LINEARS.items():
        if block.whole or place == "qkv_in":
            width = spec.hidden * (spec.mlp_ratio if place == "post_gelu" else 1)
            site = Site(f"{block.name}.{place}", width)
            yield SitePath(site, f"{block.path}.{linear}", _tokens(spec, site))


def _tokens(spec: ModelSpec, site: Site) -> int:
    """Tokens of the site's stream, per row of a batch."""
    height, width, _ = spec.latent_shape
    image, text = (height // _PATCH) * (width // _PATCH), spec.num_text_tokens
    return {"img": image, "txt": text, "joint": image + text}[site.stream]
