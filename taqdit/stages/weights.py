"""Stage `weights`: what rounding costs the weights of every linear, once per set of weights."""

from __future__ import annotations

import logging
from typing import Any

from taqdit.analysis.weights import GRANULARITIES, WeightTable, analyse_weights
from taqdit.errors import CorruptError
from taqdit.models.linears import linear_paths, linears
from taqdit.quantizer import BITS
from taqdit.stages.context import Bench, Waiting, seal
from taqdit.stages.plan import Plan, target
from taqdit.store import Stage

log = logging.getLogger(__name__)
NAME = KIND = "weights"
SCHEMA = 1  # raise it when the same weights give other numbers
_FILE = "weights.safetensors"


def weight_inputs(plan: Plan) -> dict[str, Any]:
    """Everything that can change a number of the table."""
    return {
        "weights_schema": SCHEMA,
        "model": plan.model.name,
        "model_option": target(plan, "model"),
        "weights": plan.weights,
        "w16": plan.model.w16,
    }


def weight_table(bench: Bench) -> WeightTable:
    """Stage `weights`: the stored table, or a new one; only for that is the model loaded.

    Raises StorageError if it is missing and this run may not compute it, and what
    `analyse_weights` and `linears` raise.
    """
    with bench.stage(NAME, weight_inputs(bench.plan)) as (stage, report):
        layers = tuple(linear_paths(bench.plan.model))
        found = _stored(stage, layers)
        if found is None:
            bench.require(NAME, layers)
            stage.admit(bench.backend, allow_change=bench.plan.allow_backend_change)
        waiting = Waiting(stage, NAME)
        while found is None:
            with stage.claim(NAME) as mine:
                found = _stored(stage, layers)  # another process may have been faster
                if mine and found is None:
                    found = _compute(bench, stage, layers)
                    report.made = len(layers)
            if found is None:
                waiting.pause()
        report.reused = len(layers) - report.made
        seal(stage)
        return found


def _compute(bench: Bench, stage: Stage, layers: tuple[str, ...]) -> WeightTable:
    """Analyse the model's weights and publish the table."""
    spec = bench.plan.model
    log.info("rounding the weights of %d linears of %s", len(layers), spec.name)
    table = analyse_weights(linears(bench.model.mmdit, spec) if layers else ())
    metadata = {
        "layers": list(table.layers),
        "granularities": list(GRANULARITIES),
        "bits": list(BITS),
    }
    stage.write(_FILE, table.tensors(), kind=KIND, index=NAME, metadata=metadata)
    return table


def _stored(stage: Stage, layers: tuple[str, ...]) -> WeightTable | None:
    """The table of the store; None if it is not there. Moves a corrupt one aside."""
    if not stage.valid([_FILE], verify=lambda _: _read(stage, layers)):
        return None
    return _read(stage, layers)


def _read(stage: Stage, layers: tuple[str, ...]) -> WeightTable:
    shard = stage.read(_FILE, kind=KIND, index=NAME)
    try:
        if tuple(shard.metadata["layers"]) != layers:
            raise ValueError("it holds other layers")
        return WeightTable.of_tensors(layers, shard.tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{stage.path(_FILE)} is damaged: {error}") from error
