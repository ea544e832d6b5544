"""The denoiser, torch twin of DiffusionKit's MMDiT, and the whole text-to-image model.

The twin computes the same function with less work: `encode_text` of DiffusionKit appends as many
all-zero rows (the absent T5) as there are text tokens. Those rows stay alike through all layers,
so one of them with an attention bias of log(count) is exactly equivalent. Likewise only the inputs
of the context embedder that are ever non-zero are kept; the export pads the rest with zeros.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taqdit.models.tiny.train.linear import Linear
from taqdit.models.tiny.train.text import TextEncoder


class _Projections(nn.Module):
    """The linears around the joint attention of one stream."""

    def __init__(self, width: int, *, last: bool) -> None:
        super().__init__()
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width, bias=False)
        self.v_proj = Linear(width, width)
        if not last:
            self.o_proj = Linear(width, width)


class _FeedForward(nn.Module):
    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, ratio * width)
        self.fc2 = Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Stream(nn.Module):
    """One stream (image or text) of a block. The last text stream only feeds the attention."""

    def __init__(self, width: int, ratio: int, eps: float, *, last: bool) -> None:
        super().__init__()
        self.width, self.eps, self.last = width, eps, last
        self.attn = _Projections(width, last=last)
        if not last:
            self.mlp = _FeedForward(width, ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, (2 if last else 6) * width))

    def before(self, x: Tensor, c: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Query, key and value of the modulated stream, and the modulation."""
        modulation = self.adaLN_modulation(c)[:, None].chunk(2 if self.last else 6, -1)
        y = self._modulated(x, modulation[0], modulation[1])
        return [p(y) for p in (self.attn.q_proj, self.attn.k_proj, self.attn.v_proj)], modulation

    def after(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """The stream after attention and feed-forward, each gated."""
        _, _, gate_attention, shift, scale, gate = modulation
        x = x + gate_attention * self.attn.o_proj(attended)
        return x + gate * self.mlp(self._modulated(x, shift, scale))

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), eps=self.eps) * (1 + scale) + shift


class Block(nn.Module):
    """Joint attention of an image and a text stream."""

    def __init__(self, width: int, heads: int, ratio: int, eps: float, *, last: bool) -> None:
        super().__init__()
        self.heads = heads
        self.image_transformer_block = Stream(width, ratio, eps, last=False)
        self.text_transformer_block = Stream(width, ratio, eps, last=last)

    def forward(self, img: Tensor, txt: Tensor, c: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        image, text = self.image_transformer_block, self.text_transformer_block
        from_image, modulation_image = image.before(img, c)
        from_text, modulation_text = text.before(txt, c)
        query, key, value = (
            self._split(torch.cat(pair, 1)) for pair in zip(from_image, from_text, strict=True)
        )
        y = F.scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).flatten(2)
        tokens = img.shape[1]
        img = image.after(img, y[:, :tokens], modulation_image)
        return img, txt if text.last else text.after(txt, y[:, tokens:], modulation_text)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class _Embedder(nn.Module):
    """A vector to the model's width, through two linears."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(width_in, width), nn.SiLU(), Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class _Final(nn.Module):
    def __init__(self, width: int, out: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.linear = Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, -1)
        x = F.layer_norm(x, (self.width,), eps=self.eps) * (1 + scale) + shift
        return self.linear(x)


class MMDiT(nn.Module):
    """Latents `(N, 16, h, w)`, text rows `(N, 16, text_width)`, pooled `(N, pooled_width)` and
    timesteps `(N,)` (1000 sigma) to velocities `(N, 16, h, w)`."""

    def __init__(self, sizes: dict[str, Any], text_width: int) -> None:
        super().__init__()
        width, depth = sizes["hidden_size_override"], sizes["depth_multimodal"]
        self.patch, self.channels = sizes["patch_size"], sizes["vae_latent_dim"]
        self.side = sizes["max_latent_resolution"]
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(self.channels, width, self.patch, self.patch)
        self.x_pos_embedder = nn.Module()
        self.x_pos_embedder.pos_embed = nn.Embedding(self.side**2, width)
        self.y_embedder = _Embedder(sizes["pooled_text_embed_dim"], width)
        self.t_embedder = _Embedder(sizes["frequency_embed_dim"], width)
        self.context_embedder = Linear(text_width, width)
        heads, ratio, eps = sizes["num_heads"], sizes["mlp_ratio"], sizes["layer_norm_eps"]
        self.multimodal_transformer_blocks = nn.ModuleList(
            Block(width, heads, ratio, eps, last=i == depth - 1) for i in range(depth)
        )
        self.final_layer = _Final(width, self.patch**2 * self.channels, eps)
        half = sizes["frequency_embed_dim"] // 2
        frequencies = torch.exp(-math.log(sizes["max_period"]) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier everywhere; blocks start as the identity and the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.x_pos_embedder.pos_embed.weight, std=0.1)
        for name, module in self.named_modules():
            if name.endswith(("adaLN_modulation.1", "final_layer.linear")):
                nn.init.zeros_(module.weight)

    def forward(self, latent: Tensor, text: Tensor, pooled: Tensor, timestep: Tensor) -> Tensor:
        img = self.x_embedder.proj(latent)
        grid = img.shape[2:]
        img = img.flatten(2).transpose(1, 2) + self._positions(*grid)
        txt, bias = self._text_rows(text, img.shape[1])
        angle = timestep[:, None] * self.frequencies
        waves = torch.cat([angle.cos(), angle.sin()], -1)
        c = self.y_embedder(pooled) + self.t_embedder(waves)
        for block in self.multimodal_transformer_blocks:
            img, txt = block(img, txt, c, bias)
        return self._unpatch(self.final_layer(img, c), *grid)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The learnt positions of the centred window, `(1, rows * columns, width)`."""
        top, left = (self.side - rows) // 2, (self.side - columns) // 2
        table = self.x_pos_embedder.pos_embed.weight.view(self.side, self.side, -1)
        return table[top : top + rows, left : left + columns].flatten(0, 1)[None]

    def _text_rows(self, text: Tensor, image_tokens: int) -> tuple[Tensor, Tensor]:
        """The embedded text with one row that stands for all zero rows, and the attention bias
        that makes it count as many."""
        count = text.shape[1]
        zero_row = self.context_embedder.bias.expand(len(text), 1, -1)
        rows = torch.cat([self.context_embedder(text), zero_row], 1)
        bias = torch.zeros(image_tokens + count + 1, device=text.device)
        bias[-1] = math.log(count)
        return rows, bias[None, None, None]

    def _unpatch(self, x: Tensor, rows: int, columns: int) -> Tensor:
        n, side = len(x), self.patch
        x = x.view(n, rows, columns, side, side, self.channels).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(n, self.channels, rows * side, columns * side)


class TextToImage(nn.Module):
    """Both text encoders and the denoiser: all that learns from the flow objective."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        vocabulary = config["vocab_size"]
        self.clip_l = TextEncoder(vocabulary, **config["clip_l"])
        self.clip_g = TextEncoder(vocabulary, **config["clip_g"])
        text_width = config["clip_l"]["model_dims"] + config["clip_g"]["model_dims"]
        self.mmdit = MMDiT(config["mmdit"], text_width)

    def encode(self, ids_l: Tensor, ids_g: Tensor) -> tuple[Tensor, Tensor]:
        """Text rows `(N, 16, 160)` and pooled `(N, 160)`, channels of both encoders joined."""
        (rows_l, pooled_l), (rows_g, pooled_g) = self.clip_l(ids_l), self.clip_g(ids_g)
        return torch.cat([rows_l, rows_g], -1), torch.cat([pooled_l, pooled_g], -1)

    def forward(self, latent: Tensor, sigma: Tensor, ids_l: Tensor, ids_g: Tensor) -> Tensor:
        return self.mmdit(latent, *self.encode(ids_l, ids_g), 1000 * sigma)
