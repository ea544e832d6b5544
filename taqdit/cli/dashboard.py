"""`taqdit dashboard push [--entity E] [--project P] [overrides]`: a W&B workspace for the runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taqdit import config
from taqdit.config.parser import Arguments
from taqdit.errors import ConfigError
from taqdit.plots.drawing import Of
from taqdit.plots.options import fits
from taqdit.stages.plan import Plan
from taqdit.tracking.dashboard import Contents, push

ABOUT = """usage: taqdit dashboard push [--entity E] [--project P] [--name N] [--new] [overrides]

Build a W&B workspace for tracked runs: scores of the selections, sweeps, ranges over the
timesteps, histograms, images, with the runs grouped by selection and by sweep. The overrides
(model=..., tracer=..., plots=...) are those of the runs, without the keys that a sweep varies: they
say which layers and figures there are (figures of single layers where plots.layers names them).
Needs the extra 'dashboards' and a key (WANDB_API_KEY or `wandb login`).
See taqdit dashboard push --help."""


def dashboard(arguments: Sequence[str]) -> int:
    """Push a dashboard and say its address; without a word, say what there is."""
    what, *rest = arguments or ("",)
    if what == "push":
        return _push(rest)
    if what in ("", "-h", "--help"):
        print(ABOUT)
        return 0 if what else ConfigError.exit_code
    raise ConfigError(f"taqdit dashboard: {what!r} is unknown; there is: taqdit dashboard push")


def _push(arguments: Sequence[str]) -> int:
    parser = Arguments("dashboard push", "Build a W&B workspace for tracked runs.")
    parser.add_argument("--entity", help="W&B user or team (default: tracking.entity, else yours)")
    parser.add_argument("--project", help="W&B project (default: tracking.project)")
    parser.add_argument("--name", help="of the view (default: taqdit <model>)")
    parser.add_argument(
        "--new", action="store_true", help="make another view instead of replacing this name's"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="those of the runs that it shows"
    )
    given = parser.parse_args(list(arguments))
    composed = config.compose_config(given.overrides, with_hydra=True)
    plan = config.plan(config.without_hydra(composed))
    address = push(
        contents_of(plan),
        project=given.project or plan.tracking.project,
        entity=given.entity or plan.tracking.entity,
        name=given.name or f"taqdit {config.choices(composed.hydra)['model']}",
        new=given.new,
    )
    print(f"dashboard     {address}")
    return 0


def contents_of(plan: Plan) -> Contents:
    """What runs of this plan track."""
    traced = "statistics" in plan.stages
    analysed = traced and plan.analysis.enabled and "analysis" in plan.stages
    return Contents(
        sites=tuple(each.site.name for each in plan.traced) if traced else (),
        rules=tuple(plan.analysis.rules) if analysed else (),
        figures=tuple(_figures(plan)) if "figures" in plan.stages else (),
    )


def _figures(plan: Plan) -> Iterator[str]:
    """The names of the figures; those of single layers where the plan names the layers."""
    single = [kind.name for kind in plan.plots.kinds(Of.LAYER)]
    for name in plan.plots.drawn:
        if name in single:
            layers = [
                each.site.label
                for each in plan.traced
                if any(fits(each.site, pattern) for pattern in plan.plots.layers or ())
            ]
            yield from (f"{name}_{label}" for label in layers)
        elif name != "image_grid" or plan.sampler.images:
            yield name
