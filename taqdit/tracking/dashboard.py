"""A W&B workspace as code: which panels show the runs, and its upload.

The only file that imports wandb_workspaces, which the extra `dashboards` installs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from taqdit.errors import ConfigError, InputError, StorageError
from taqdit.quantizer import BITS
from taqdit.store.secrets import mask_text
from taqdit.tracking.credentials import key_configured
from taqdit.tracking.mirror import describe, metric_name
from taqdit.words import spaced

PATIENCE = 20  # seconds that W&B may take to answer
LINES, HISTOGRAMS, RUNS = 8, 12, 20  # of one panel; panels; runs in one panel
SELECTION = "timestep_selection._target_"  # the key of a run's configuration that names its rule
SETTINGS = ("sampler.cfg_scale", "schedule.num_steps")  # what losses are drawn against
CHARTS = ("median_range", "absmax")  # whole curves of every site
COMPARED = (  # figures of a sweep's own run
    *("comparison_losses", "comparison_loss_cfg_scale", "comparison_loss_num_steps"),
    *("comparison_ranges", "comparison_pictures"),
)


@dataclass(frozen=True)
class Contents:
    """What runs of one configuration log: the traced `sites`, the compared `rules` (empty: no
    analysis), the `figures`."""

    sites: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()


def require_ready() -> None:
    """Raises ConfigError if the library is not installed or no key is configured."""
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "wandb-workspaces is not installed; install taqdit with its extra 'dashboards'"
        ) from error
    if not key_configured():
        raise ConfigError("W&B: no key configured; set WANDB_API_KEY or run `wandb login`")


def push(
    contents: Contents, *, project: str, entity: str | None, name: str, new: bool = False
) -> str:
    """Save the workspace in a project of W&B and say its address. The view of this name is
    replaced if there is one, unless a `new` one is asked for; other views are left alone.

    Raises ConfigError if something has to be set up first, InputError if W&B knows no such
    project, StorageError if it cannot be reached or refuses.
    """
    require_ready()
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        api = wandb.Api(timeout=PATIENCE)
        entity = entity or api.default_entity
        made = workspace(contents, project=project, entity=entity or "", name=name)
        known = _views(api, project, entity)
        if known is not None:
            if not new and name in known:
                made._internal_id, made._internal_name = known[name]
            made.save()
            return str(made.url)
    except Exception as error:  # whatever of W&B's many kinds
        raise StorageError(
            f"W&B did not take the dashboard ({mask_text(describe(error))})"
        ) from error
    raise InputError(
        f"W&B has no project {entity}/{project} that your key may see; track a run in it first,"
        " or name another one with --entity and --project"
    )


def workspace(contents: Contents, *, project: str, entity: str, name: str) -> Any:
    """The workspace; nothing is uploaded."""
    import wandb_workspaces.workspaces as ws

    sections = [
        _section("Selection", list(_selection(contents)), open=True),
        _section("Sweeps", list(_sweeps(contents))),
        _section("Ranges", list(_ranges(contents)), x="timestep", open=True),
        _section("Histograms", list(_histograms(contents)), x="timestep"),
        _section("Images", list(_images(contents))),
    ]
    pinned = ["selection/points", *(_loss(bits) for bits in BITS)]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[section for section in sections if section.panels],
        settings=ws.WorkspaceSettings(max_runs=RUNS),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config(SELECTION), ws.Metric("Group")],
            pinned_columns=[f"summary:{name}" for name in pinned] if contents.rules else [],
        ),
    )


def _section(name: str, panels: list[Any], *, x: str | None = None, open: bool = False) -> Any:
    """Two panels beside each other; rows enough for all of them, up to four."""
    import wandb_workspaces.workspaces as ws

    return ws.Section(
        name=name,
        panels=panels,
        is_open=open,
        layout_settings=ws.SectionLayoutSettings(columns=2, rows=min(4, -(-len(panels) // 2) or 1)),
        panel_settings=ws.SectionPanelSettings(x_axis=x or "Step"),
    )


def _loss(bits: int) -> str:
    return f"selection/loss_{bits}bit_db"


def _selection(contents: Contents) -> Iterator[Any]:
    """What selections lose: of each run's own, against its settings, and of all compared rules."""
    import wandb_workspaces.reports.v2 as wr

    if not contents.rules:
        return
    widest = max(BITS)
    for bits in BITS:
        yield wr.BarPlot(title=f"Loss at {bits} bits, dB", metrics=[_loss(bits)])
    yield wr.ScatterPlot(
        title=f"Loss at {widest} bits against the number of points",
        x=wr.SummaryMetric("selection/points"),
        y=wr.SummaryMetric(_loss(widest)),
    )
    for key in SETTINGS:
        yield wr.ScatterPlot(
            title=f"Loss at {widest} bits against {key}",
            x=wr.Config(key),
            y=wr.SummaryMetric(_loss(widest)),
        )
    for bits in BITS:
        yield wr.BarPlot(
            title=f"Loss of every compared rule at {bits} bits, dB",
            metrics=[f"scores/{rule}/loss_{bits}bit_db" for rule in contents.rules],
        )
    for key in ("range_coverage", "clipped"):
        yield wr.BarPlot(title=key.replace("_", " ").capitalize(), metrics=[f"selection/{key}"])
    yield wr.WeavePanelSummaryTable(table_name="analysis/selections")


def _sweeps(contents: Contents) -> Iterator[Any]:
    """What the sweeps' own runs hold: their tables and figures."""
    import wandb_workspaces.reports.v2 as wr

    if not contents.rules:
        return
    yield wr.WeavePanelSummaryTable(table_name="comparison/verdict")
    yield wr.WeavePanelSummaryTable(table_name="comparison/runs")
    for name in COMPARED:
        yield _pictures(name)


def _ranges(contents: Contents) -> Iterator[Any]:
    """The largest magnitude against the timestep, a panel per kind of site; whole curves of all
    sites of a run; the latents."""
    import wandb_workspaces.reports.v2 as wr

    for kind, sites in _kinds(contents.sites).items():
        yield wr.LinePlot(
            title=f"Largest magnitude: {kind}",
            x="timestep",
            y=[metric_name(f"absmax/{site}") for site in spaced(sites, LINES)],
        )
    for chart in CHARTS if contents.sites else ():
        yield wr.CustomChart(
            query={"summaryTable": {"tableKey": f"activations/{chart}_table"}},
            chart_name="wandb/lineseries/v0",
            chart_fields={"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"},
            chart_strings={"title": f"activations/{chart}", "xname": "timestep"},
        )
    if contents.figures:
        latent = [f"latent/{key}" for key in ("mean", "std", "min", "max")]
        yield wr.LinePlot(title="Latents", x="timestep", y=latent)


def _histograms(contents: Contents) -> Iterator[Any]:
    """How values are distributed over the timesteps: W&B draws one histogram in a panel."""
    import wandb_workspaces.reports.v2 as wr

    for site in spaced(list(contents.sites), HISTOGRAMS):
        yield wr.LinePlot(title=site, x="timestep", y=[metric_name(f"histogram/{site}")])


def _images(contents: Contents) -> Iterator[Any]:
    """A panel per figure: the same one of every run side by side."""
    for name in contents.figures:
        yield _pictures(name)


def _pictures(figure: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.MediaBrowser(
        title=figure.replace("_", " "), num_columns=2, media_keys=[f"figures/{figure}"]
    )


def _kinds(sites: Sequence[str]) -> dict[str, list[str]]:
    """Sites that differ in their block's number alone: mm_img.post_gelu: mm_00_img.post_gelu .."""
    found: dict[str, list[str]] = {}
    for site in sites:
        found.setdefault(re.sub(r"_\d+", "", site), []).append(site)
    return found


def _views(api: Any, project: str, entity: str | None) -> dict[str, tuple[str, str]] | None:
    """Shown name -> (id, internal name) of the project's views; None if there is no project."""
    from wandb_workspaces._graphql import execute_graphql

    query = """query ProjectViews($entity: String, $project: String) {
      project(name: $project, entityName: $entity) {
        allViews(viewType: "project-view") { edges { node { id name displayName } } }
      }
    }"""
    found = execute_graphql(api, query, {"entity": entity, "project": project}).get("project")
    if found is None:
        return None
    nodes = [edge["node"] for edge in (found.get("allViews") or {}).get("edges", [])]
    return {node["displayName"]: (node["id"], node["name"]) for node in nodes}
