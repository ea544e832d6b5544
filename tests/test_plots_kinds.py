"""What figures there are: one declaration each, in one file, and all that reads it."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import test_plots_analysis as analysed
import test_plots_layers as layered
import test_plots_overview as traced
from conftest import ANALYTIC

import taqdit as package
from taqdit import config, plots
from taqdit.errors import ConfigError
from taqdit.plots import run_figures, style
from taqdit.plots.drawing import FigureKind, Of, Sampled, Traced, TracedLayer, figure_kinds

ORDER = {
    Of.TRAJECTORIES: ["image_grid", "latent_curves", "selection_strip"],
    Of.ANALYSIS: [
        *("selection_scores", "score_versus_k", "drift_heatmap"),
        *("bits_per_layer", "error_versus_bits"),
    ],
    Of.ACTIVATIONS: [
        *(f"range_vs_timestep_{name}" for name in ("all", "image", "text")),
        *("range_vs_sigma", "absmax_heatmap", "heatmap_mean", "heatmap_std"),
        *("negative_fraction_heatmap", "kurtosis_heatmap", "outliers"),
    ],
    Of.LAYER: ["histogram", "ridgeline", "channel_ranges", "channel_time"],
}
SELECTION = ["latent_curves", "selection_strip", "selection_scores", "range_vs_sigma", "histogram"]


def trajectories(count=3, steps=5):
    """As many as the figures read: pictures, prompts, sigmas."""
    picture = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)

    class Set(SimpleNamespace):
        def __len__(self):
            return count

    prompts = SimpleNamespace(text=lambda index: f"prompt {index}")
    sigmas = np.linspace(1, 0, steps + 1)
    return Set(sigmas=sigmas, prompts=prompts, picture=lambda _: picture)


def sampled(**changes):
    made = trajectories()
    columns = {name: 1 - made.sigmas for name in ("mean", "std", "low", "high")}
    chosen = [[0, 2], [0, 3], [1, 2]]
    fields = {"chosen": chosen, "latents": SimpleNamespace(**columns), "images": True} | changes
    return Sampled(made, **fields)


def analysis():
    """An analysis of three sites and two linears, one of each with suggested bits."""
    layers = [
        analysed.layer("mm_00_img.fc2", 4, 6, site="mm_00_img.post_gelu"),
        analysed.layer("mm_01_img.fc2", None, None, site=None),
    ]
    sites = [f"mm_0{block}_img.post_gelu" for block in range(3)]
    curves, count = analysed.CURVES["few counts"]()
    scores = analysed.scored(np.linspace(0.3, 0.1, 6))
    scores.oracle = analysed.noises(3)
    weights = SimpleNamespace(
        layers=("mm_00_img.fc2", "mm_01_img.fc2"), sqnr=np.full((2, 4, 3), [40.0, 30.0, 20.0])
    )
    return SimpleNamespace(
        comparison=SimpleNamespace(scores=scores, curves=curves, count=count, num_steps=30),
        drift=analysed.DRIFTS["one_site"](),
        bits=analysed.widths(layers),
        outliers=SimpleNamespace(sites=[SimpleNamespace(name=name) for name in sites]),
        weights=weights,
    )


def subject(of):
    return {
        Of.TRAJECTORIES: sampled,
        Of.ANALYSIS: analysis,
        Of.ACTIVATIONS: lambda: Traced(traced.MADE("tiny"), [0, 4, 9]),
        Of.LAYER: lambda: TracedLayer(layered.NORMAL.site, lambda: layered.NORMAL, [0, 3]),
    }[of]()


def test_names_and_their_order_in_the_report():
    kinds = figure_kinds()
    assert {of: [kind.name for kind in kinds.values() if kind.of is of] for of in Of} == ORDER
    assert list(kinds) == [name for names in ORDER.values() for name in names]
    assert [name for name, kind in kinds.items() if not kind.shared] == SELECTION
    minimal = [name for name, kind in kinds.items() if kind.minimal]
    assert minimal == ["image_grid", "latent_curves", "selection_scores", "range_vs_timestep_all"]


@pytest.mark.parametrize("name", figure_kinds())
def test_every_figure_is_drawn_of_its_subject_and_has_numbers_and_a_caption(name):
    kind = figure_kinds()[name]
    of = subject(kind.of)
    assert kind.possible(of)
    drawing = kind.drawing(of)
    site = of.site if kind.of is Of.LAYER else None
    assert drawing.name == (f"{name}_{site.label}" if site else name)
    assert drawing.title.endswith(f" {site.name}" if site else "")
    assert len(drawing.title) > 20
    assert drawing.heading == kind.of.value
    files = style.rendered(*drawing.draw(), formats=("svg",))
    assert b"<svg" in files["svg"]
    assert files["csv"].count(b"\n") > 1


def test_what_there_is_nothing_of_is_not_drawn():
    def names(drawings):
        return [drawing.name for drawing in drawings]

    options = plots.paper()
    whole = sampled()
    few = run_figures.latent_figures(options, whole.trajectories, None, whole.chosen, images=False)
    assert names(few) == ["selection_strip"]
    empty = analysis()
    empty.drift, empty.bits = SimpleNamespace(distance=np.zeros((3, 0))), analysed.widths([])
    empty.weights = None
    assert names(run_figures.analysis_figures(empty, options)) == [
        *("selection_scores", "score_versus_k", "error_versus_bits"),
    ]
    table = traced.synthetic([f"mm_0{block}_img.o_in" for block in range(2)], 4)
    table = traced.changed(table, kurtosis=np.full((2, 4), np.nan))
    kinds = plots.paper(figures=ORDER[Of.ACTIVATIONS])
    drawn = names(run_figures.activation_figures(table, None, kinds, selected=[]))
    left_out = {"range_vs_timestep_text", "kurtosis_heatmap"}
    assert drawn == [name for name in ORDER[Of.ACTIVATIONS] if name not in left_out]


def test_a_layer_is_read_once_for_all_its_figures_and_not_before():
    reads = []

    def layer(number):
        reads.append(number)
        return layered.NORMAL

    options = plots.paper(figures=ORDER[Of.LAYER], layers=["mm_01_img"])
    table = traced.synthetic(["mm_00_img.post_gelu", "mm_01_img.post_gelu"], 30)
    drawings = list(run_figures.activation_figures(table, layer, options, selected=[0]))
    assert reads == []
    for drawing in drawings:
        drawing.draw()
    assert reads == [1]
    with pytest.raises(ConfigError, match=r"plots.layers: 'mm_09' matches none"):
        list(run_figures.activation_figures(
            table, layer, plots.paper(figures=["histogram"], layers=["mm_09"]), selected=[]
        ))  # fmt: skip


def test_figures_that_are_named_are_drawn_in_the_order_of_the_report():
    options = plots.paper(figures=["outliers", "image_grid", "heatmap_mean"])
    assert [kind.name for kind in options.kinds(Of.ACTIVATIONS)] == ["heatmap_mean", "outliers"]
    assert plots.minimal(figures=["outliers"]).drawn == ("outliers",)
    assert plots.none(figures=["outliers"]).drawn == ()


def test_a_figure_that_there_is_not_is_refused_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        plots.paper(figures=["outlier", "zzz"])
    near, far = caught.value.args
    assert near == "figures: 'outlier' is no figure; did you mean 'outliers'?"
    assert far.startswith("figures: 'zzz' is no figure; there are: image_grid, latent_curves, ")
    (problem,) = config.check(config.compose_config(["plots.figures=[heatmap_meen]"])).problems
    assert problem.text.startswith("plots.figures: 'heatmap_meen' is no figure; did you mean ")
    assert problem.exit_code == ConfigError.exit_code


TOY = """
from taqdit.plots.drawing import FigureKind, Of
from taqdit.plots.style import new_figure, style

drawn = []


def toy(sigmas):
    drawn.append(1)
    with style():
        figure = new_figure(2, 2)
        figure.subplots().plot(sigmas)
    return figure


def toy_table(sigmas):
    return {"sigma": sigmas}


FIGURES = (FigureKind(Of.TRAJECTORIES, "A figure of <one> file", toy, toy_table,
                      lambda sampled: (sampled.trajectories.sigmas,), shared=True),)
"""


@pytest.fixture
def dropped(tmp_path, monkeypatch):
    """A file that was dropped into the package; gives the module."""
    folder = tmp_path / "dropped"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY)
    monkeypatch.setattr(plots, "__path__", [*plots.__path__, str(folder)])
    yield lambda: sys.modules["taqdit.plots.toy"]
    sys.modules.pop("taqdit.plots.toy", None)
    plots.__dict__.pop("toy", None)


def launched(folder, figures):
    asked = ("plots=paper", f"plots.figures={figures}", f"output_dir={folder}")
    return package.launch([*ANALYTIC, *asked])


def test_a_new_figure_is_one_file(dropped, tmp_path):
    outputs = tmp_path / "outputs"
    assert list(figure_kinds())[:4] == [*ORDER[Of.TRAJECTORIES], "toy"]
    assert "toy" in plots.paper().drawn
    with pytest.raises(ConfigError, match=r"plots.figures: 'tou' .*did you mean 'toy'\?"):
        launched(outputs, "[tou]")
    run = launched(outputs, "[toy,selection_strip]")
    names = ("selection_strip", "toy")
    kinds = ("png", "svg", "csv")
    assert run.summary["figures"] == [f"figures/{name}.{kind}" for name in names for kind in kinds]
    rows = (run.folder / "figures" / "toy.csv").read_text().splitlines()
    assert rows[:2] == ["sigma", "1.0"]
    assert len(rows) == 1 + 7
    page = (run.folder / "report.html").read_text("utf-8")
    assert "A figure of &lt;one&gt; file" in page
    assert len(list(outputs.glob("store/figures/*/toy.safetensors"))) == 1
    again = launched(outputs, "[toy]")
    assert dropped().drawn == [1]  # read back from the store
    assert again.summary["figures"] == [f"figures/toy.{kind}" for kind in kinds]
    for kind in kinds:
        first, second = (each.folder / "figures" / f"toy.{kind}" for each in (run, again))
        assert first.read_bytes() == second.read_bytes()


def test_two_figures_of_one_name_are_refused(dropped):
    assert "toy" in figure_kinds()
    module = dropped()
    module.FIGURES = (*module.FIGURES, FigureKind(Of.ANALYSIS, "", module.toy, module.toy_table))
    with pytest.raises(ValueError, match="two figures share a name"):
        figure_kinds()
