"""The adaLN outputs of a whole sigma grid, and the weights they are made from.

DiffusionKit's own `cache_modulation_params` empties the adaLN weights and registers aliases of
them in the parameter tree; only a reload from disk repairs that, and an exception in between
leaves the model broken. Here the same operations run in the same order, but the weights are only
read, and the outputs sit on the blocks only while one forward is being built.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from taqdit.backend import mx, nn
from taqdit.errors import ModelError

_SLOT = "_modulation_params"  # where DiffusionKit's blocks look: {timestep: outputs}
_ADALN = "adaLN_modulation"


class Modulation:
    """Outputs of every adaLN for each timestep of a grid, for the rows of `pooled` (2N, d)."""

    def __init__(self, mmdit: nn.Module, pooled: mx.array, timesteps: mx.array) -> None:
        self._blocks = [block for _, block in mmdit.named_modules() if _ADALN in block]
        self._outputs: list[dict[float, mx.array]] = [{} for _ in self._blocks]
        text = mmdit.y_embedder(pooled)
        for timestep in timesteps:
            time = mmdit.t_embedder(mx.repeat(timestep[None], len(pooled), axis=0))
            self._add(timestep.item(), text[:, None, None, :] + time)

    def _add(self, timestep: Any, inputs: mx.array) -> None:
        outputs = [block.adaLN_modulation(inputs) for block in self._blocks]
        mx.eval(outputs)
        for table, output in zip(self._outputs, outputs, strict=True):
            table[timestep] = output

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While the context lasts, forwards of the transformer use these outputs."""
        try:
            for block, table in zip(self._blocks, self._outputs, strict=True):
                block[_SLOT] = table
            yield
        finally:
            for block in self._blocks:
                block.pop(_SLOT, None)


def adaln_linears(mmdit: nn.Module) -> dict[str, nn.Module]:
    """The linear of every adaLN, by its path."""
    return {name: m for name, m in mmdit.named_modules() if _ADALN in name and "weight" in m}


def adaln_parameters(mmdit: nn.Module) -> dict[str, mx.array]:
    """The arrays of every adaLN by parameter name, in a fixed order."""
    return {
        f"{path}.{name}": value
        for path, linear in sorted(adaln_linears(mmdit).items())
        for name, value in sorted(linear.parameters().items())
    }


class AdaLNWeights:
    """Drops the adaLN weights while they are not needed, and reads them back.

    `read` gives them anew from the weights file, by parameter name. Only `model.low_memory` uses
    this; without it the arrays are never touched.
    """

    def __init__(self, mmdit: nn.Module, read: Callable[[], Mapping[str, mx.array]]) -> None:
        self._mmdit, self._read = mmdit, read
        self._sums = self._checksums()

    def release(self) -> None:
        """Replace the weights by empty arrays. Raises ModelError if they were changed since."""
        if self._checksums() != self._sums:
            raise ModelError(
                "the adaLN weights differ from their file, so low_memory could not bring them"
                " back; set model.low_memory=false"
            )
        for linear in adaln_linears(self._mmdit).values():
            linear.update({name: mx.array([]) for name in linear.parameters()})
        mx.clear_cache()

    def restore(self) -> None:
        """Read the weights back if any is gone. Raises ModelError if the file has changed."""
        if all(value.size for value in adaln_parameters(self._mmdit).values()):
            return
        fresh = self._read()
        for path, linear in adaln_linears(self._mmdit).items():
            linear.update({name: fresh[f"{path}.{name}"] for name in linear.parameters()})
        if self._checksums() != self._sums:
            raise ModelError("the weights file has changed since it was loaded; start again")

    def _checksums(self) -> dict[str, int]:
        return {name: _crc(value) for name, value in adaln_parameters(self._mmdit).items()}


def _crc(array: mx.array) -> int:
    return zlib.crc32(memoryview(mx.contiguous(array).view(mx.uint8)))  # type: ignore[arg-type]
