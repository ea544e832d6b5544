"""The analysis of one run's statistics, with the options and the selection of its plan."""

from __future__ import annotations

from taqdit.activations.opened import layer_statistics, layers_of
from taqdit.activations.stored import Statistics
from taqdit.analysis.analyse import Analysis, analyse
from taqdit.analysis.profile import Profile
from taqdit.analysis.weights import WeightTable
from taqdit.models.linears import linear_paths
from taqdit.stages.fingerprints import target
from taqdit.stages.plan import Plan


def analyse_run(
    plan: Plan,
    statistics: Statistics,
    *,
    weights: WeightTable | None,
    known: Profile | None = None,
) -> Analysis:
    """Analyse statistics as the plan says; `known` is their profile, if there is one already.

    Those made elsewhere are not those of the plan's own selection and model.
    """
    elsewhere = plan.made_elsewhere
    read = {layer: site.name for site in statistics.sites for layer in layers_of(site)}
    linears = {} if elsewhere else dict.fromkeys(linear_paths(plan.model))
    name = target(plan, "timestep_selection").rpartition(".")[2]
    return analyse(
        statistics,
        statistics.overview(),
        plan.analysis,
        own=None if elsewhere else (name, plan.select),
        seed=plan.sampler.seed,
        readers={**linears, **read},
        entries=layer_statistics(statistics) if plan.analysis.rule == "seed" else {},
        weights=weights,
        known=known,
    )
