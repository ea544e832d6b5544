"""Linear maps whose products run in bfloat16 while training: on CPUs with such instructions that
is four times faster. Weights, sums and everything else stay float32, evaluation wholly so."""

from typing import Any

import torch
from torch import Tensor, nn


class _HalfProduct(torch.autograd.Function):
    """`x @ weight.T` with bfloat16 factors, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        halves = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(*halves)
        return (halves[0] @ halves[1].t()).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        half = gradient.bfloat16()
        to_weight = half.flatten(0, -2).t() @ x.flatten(0, -2)
        return (half @ weight).float(), to_weight.float()


class Linear(nn.Linear):
    """`nn.Linear`, but see the module. `half_products` switches it, for all of them."""

    half_products = False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and Linear.half_products):
            return super().forward(x)
        product = _HalfProduct.apply(x, self.weight)
        return product if self.bias is None else product + self.bias
