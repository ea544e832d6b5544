"""The CLIP text encoders, torch twins of DiffusionKit's `CLIPTextModel`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taqdit.models.tiny.train.linear import Linear


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": _quick_gelu}


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_proj = Linear(width, width)
        self.key_proj = Linear(width, width)
        self.value_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        query, key, value = (
            project(x).view(rows, length, self.heads, -1).transpose(1, 2)
            for project in (self.query_proj, self.key_proj, self.value_proj)
        )
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(y.transpose(1, 2).reshape(rows, length, width))


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.linear1, self.linear2 = Linear(width, 4 * width), Linear(4 * width, width)
        self.activation = _ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layer_norm1(x))
        return x + self.linear2(self.activation(self.linear1(self.layer_norm2(x))))


class TextEncoder(nn.Module):
    """Ids `(N, 16)` to the last but one hidden state `(N, 16, width)` and the projected state
    of the first end token `(N, projection)`."""

    def __init__(
        self,
        vocab_size: int,
        num_layers: int,
        model_dims: int,
        num_heads: int,
        max_length: int,
        projection_dim: int,
        hidden_act: str,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, model_dims)
        self.position_embedding = nn.Embedding(max_length, model_dims)
        self.layers = nn.ModuleList(
            Layer(model_dims, num_heads, hidden_act) for _ in range(num_layers)
        )
        self.final_layer_norm = nn.LayerNorm(model_dims)
        self.text_projection = Linear(model_dims, projection_dim, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.2)
        nn.init.normal_(self.position_embedding.weight, std=0.1)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        end = self.token_embedding.num_embeddings - 1
        first_end = ((ids == end).cumsum(1) == 0).sum(1)
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        states = []
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        x = self.final_layer_norm(x)
        rows = torch.arange(len(x), device=x.device)
        return states[-2], self.text_projection(x[rows, first_end])
