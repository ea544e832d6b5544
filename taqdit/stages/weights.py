"""Stage `weights`: what rounding costs the weights of every linear, once per set of weights."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from taqdit.analysis.weights import GRANULARITIES, WeightTable, analyse_weights
from taqdit.errors import CorruptError
from taqdit.models.linears import linear_paths, linears
from taqdit.quantizer import BITS
from taqdit.stages.checks.check import TableCheck
from taqdit.stages.context import StageContext, once, seal, stored
from taqdit.stages.fingerprints import target
from taqdit.stages.plan import Plan
from taqdit.stages.stage_kind import StageKind
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


def weight_table(context: StageContext) -> WeightTable:
    """Stage `weights`: the stored table, or a new one; only for that is the model loaded.

    Raises StorageError if it is missing and this run may not compute it, and what
    `analyse_weights` and `linears` raise.
    """
    with context.stage(WEIGHTS) as (stage, report):
        spec = context.plan.model
        layers = tuple(linear_paths(spec))

        def compute() -> WeightTable:
            log.info("rounding the weights of %d linears of %s", len(layers), spec.name)
            report.made = len(layers)
            return analyse_weights(linears(context.model.mmdit, spec) if layers else ())

        read = partial(stored, stage, _FILE, partial(_read, stage, layers))
        table = read()
        if table is None:
            context.admit(stage, layers)
            table = once(stage, NAME, read, compute, partial(_write, stage))
        report.reused = len(layers) - report.made
        seal(stage)
        return table


def _write(stage: Stage, table: WeightTable) -> None:
    metadata = {
        "layers": list(table.layers),
        "granularities": list(GRANULARITIES),
        "bits": list(BITS),
    }
    stage.write(_FILE, table.tensors(), kind=KIND, index=NAME, metadata=metadata)


def _read(stage: Stage, layers: tuple[str, ...]) -> WeightTable:
    shard = stage.read(_FILE, kind=KIND, index=NAME)
    try:
        if tuple(shard.metadata["layers"]) != layers:
            raise ValueError("it holds other layers")
        return WeightTable.of_tensors(layers, shard.tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{stage.path(_FILE)} is damaged: {error}") from error


def _used(plan: Plan) -> bool:
    """With an analysis they are a part of it, and there is one only of statistics."""
    analysed = plan.analysis.enabled and plan.traces
    return NAME in plan.stages and ("analysis" not in plan.stages or analysed)


WEIGHTS = StageKind(name=NAME, unit="table", check=TableCheck, inputs=weight_inputs, used=_used)
