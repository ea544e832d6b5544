"""Whole runs that trace: reuse, extent, imported statistics, damage, NaN."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import tree
from open_files import few_open_files

import taqdit as package
from taqdit.errors import ConfigError, InputError, NumericError, StorageError
from taqdit.report import figures

SMALL = (
    "schedule.num_steps=3",
    "sampler.num_trajectories=4",
    "sampler.batch_size=2",
    "sampler.images=false",
    "timestep_selection.count=2",
    "calibration.export=false",
    "tracer=post_gelu",
    "tracking=none",
    "analysis=none",
    "plots=none",
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The folder of a finished run, its statistics exported."""
    folder = tmp_path_factory.mktemp("traced")
    return package.launch([*SMALL, f"output_dir={folder}", "statistics.npz=true"])


def again(outputs, *overrides):
    """Another run over the same store."""
    return package.launch([*SMALL, f"output_dir={outputs.config['output_dir']}", *overrides])


def made(run):
    return {stage["name"]: stage["made"] for stage in run.summary["stages"]}


def test_what_a_traced_run_leaves(outputs):
    assert made(outputs) == {"conditioning": 5, "trajectories": 4, "statistics": 3}
    statistics = outputs.statistics()
    assert isinstance(statistics, package.Statistics)
    assert (len(statistics.sites), statistics.num_steps, statistics.extent) == (11, 3, 4)
    assert statistics.overview().absmax.shape == (11, 3)
    layers = json.loads((outputs.folder / "layer_statistics.json").read_text())
    assert set(layers["mm_00_img.fc2"]) == {
        "min",
        "max",
        "mean",
        "std",
        "percentiles",
        "num_samples",
    }
    metadata = json.loads((outputs.folder / "collection_metadata.json").read_text())
    assert metadata["config"]["sampler"]["seed"] == 0
    assert (outputs.folder / "report.html").stat().st_size > 10_000


def test_another_selection_runs_no_model(outputs, caplog):
    caplog.set_level("INFO", logger="taqdit")
    run = again(outputs, "timestep_selection=explicit", "timestep_selection.steps=[0,1]")
    assert set(made(run).values()) == {0}
    assert "loading tiny" not in caplog.text
    same, other = outputs.statistics(), run.statistics()
    assert same.fingerprint == other.fingerprint


@pytest.mark.slow
def test_a_run_may_have_more_steps_than_a_mac_allows_open_files_at_first(tmp_path):
    steps = ("schedule.num_steps=40", "stages=[conditioning,trajectories,statistics]")
    few = (*steps, "sampler.num_trajectories=2", "model.latent_size=[2,2]", "tracer.blocks=[mm_00]")
    with few_open_files():
        run = package.launch([*SMALL, *few, f"output_dir={tmp_path}"])
    assert made(run)["statistics"] == 40


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_fewer_trajectories_can_be_traced_in_whole_batches(outputs, wanted):
    run = again(outputs, f"tracer.num_trajectories={wanted}")
    assert run.statistics().extent == 2 * -(-wanted // 2)
    assert run.statistics().step(1).tokens[0] == 16 * 2 * run.statistics().extent


def test_a_damaged_step_is_named_moved_aside_and_replayed_alone(outputs):
    folder = outputs.statistics().folder
    path = folder / "trajectories_0000004_step_0001.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    run = again(outputs)
    assert made(run) == {"conditioning": 0, "trajectories": 0, "statistics": 1}
    assert run.summary["stages"][2]["moved_aside"][0][0] == path.name
    assert path.read_bytes() == good


def test_the_shard_of_another_step_is_not_taken(outputs):
    folder = outputs.statistics().folder
    path = folder / "trajectories_0000004_step_0002.safetensors"
    good = path.read_bytes()
    path.write_bytes((folder / "trajectories_0000004_step_0000.safetensors").read_bytes())
    assert made(again(outputs))["statistics"] == 1
    assert path.read_bytes() == good


def test_statistics_that_may_not_be_made_are_asked_for(outputs):
    with pytest.raises(StorageError, match="add statistics to stages"):
        again(outputs, "tracer.folds=3", "stages=[figures]")
    run = again(outputs, "tracer.folds=3", "stages=[calibration]")
    assert "statistics" not in made(run)
    with pytest.raises(InputError, match="has no stage statistics in"):
        run.statistics()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_statistics_made_elsewhere_are_drawn_without_a_model(outputs, tmp_path, caplog, kind):
    caplog.set_level("INFO", logger="taqdit")
    path = outputs.statistics().folder
    if kind == "npz":
        path = outputs.folder / "activation_statistics.npz"
    run = package.launch(
        [*SMALL, "plots=paper", f"output_dir={tmp_path}", f"inputs.statistics={path}"]
    )
    assert run.summary["stages"] == []
    assert "loading tiny" not in caplog.text
    assert not (tmp_path / "store").exists()
    assert "figures/absmax_heatmap.png" in run.summary["figures"]
    assert any("channel_ranges_mm_0" in name for name in run.summary["figures"])
    found, original = run.statistics().overview(), outputs.statistics().overview()
    np.testing.assert_array_equal(found.high, original.high)
    np.testing.assert_allclose(found.median_range, original.median_range, rtol=1e-6)


def test_inputs_that_are_not_there_are_input_errors(tmp_path):
    with pytest.raises(InputError, match=r"inputs.statistics=.*none"):
        package.launch([*SMALL, f"inputs.statistics={tmp_path / 'none'}"])
    with pytest.raises(InputError, match=r"it has no stage\.json"):
        package.launch([*SMALL, f"output_dir={tmp_path}", f"inputs.statistics={tmp_path}"])


@pytest.mark.slow
def test_figures_are_drawn_once(outputs, monkeypatch):
    first = again(outputs, "plots=minimal")
    drawn = []
    real = figures.rendered
    monkeypatch.setattr(figures, "rendered", lambda *a, **k: drawn.append(1) or real(*a, **k))
    second = again(outputs, "plots=minimal")
    assert not drawn
    assert second.summary["figures"] == first.summary["figures"]
    assert tree(second.folder / "figures") == tree(first.folder / "figures")
    other = again(outputs, "plots=minimal", "timestep_selection.count=3")
    assert len(drawn) == 1  # the latents' curves mark the selection; the ranges do not
    path = stored(outputs, "latent_curves")[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert again(outputs, "plots=minimal", "timestep_selection.count=3").summary["status"] == "ok"
    assert again(outputs, "plots=minimal").summary["status"] == "ok"
    assert len(drawn) == 2  # the damaged one
    assert path.with_name("latent_curves.safetensors.bad-1").exists()
    again(outputs, "plots=minimal", "refresh=[figures]")
    assert len(drawn) == 4
    assert tree(other.folder / "figures") != tree(first.folder / "figures")


def stored(outputs, name):
    """The stored files of a figure, one per set of inputs."""
    folder = Path(outputs.config["output_dir"]) / "store" / "figures"
    return sorted(folder.glob(f"*/{name}.safetensors"))


def test_layers_that_were_not_traced_are_named(outputs):
    with pytest.raises(ConfigError, match=r"plots.layers: 'mm_99_img' matches none"):
        again(outputs, "plots=paper", "plots.layers=[mm_99_img]")


def test_a_nan_stops_the_run_and_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TAQDIT_PLUGINS", "eager")
    with pytest.raises(NumericError) as caught:
        package.launch([*SMALL, f"output_dir={tmp_path}", "model._target_=eager.broken"])
    text = str(caught.value)
    assert "mm_01_txt.post_gelu holds NaN or Inf at step 0 of trajectory 0" in text
    assert repr(package_prompt(0)) in text
    assert caught.value.exit_code == 6
    assert not list(tmp_path.glob("store/trajectories/*/*.safetensors"))
    assert not list(tmp_path.glob("store/statistics/*/*.safetensors"))


@pytest.mark.slow
def test_a_planted_outlier_is_found(tmp_path, monkeypatch):
    """In the 99.99th percentile, the channel chart's numbers, the ratios and the table."""
    monkeypatch.setenv("TAQDIT_PLUGINS", "eager")
    run = package.launch(
        [
            *SMALL,
            f"output_dir={tmp_path}",
            "model._target_=eager.giant",
            "plots=paper",
            "plots.layers=[mm_02_txt]",
        ]
    )
    table = run.statistics().overview()
    (site,) = table.where(block="mm_02", stream="txt")
    assert (table.absmax[site] == 412).all()
    assert (abs(table.p9999[site] - 412) < 412 / 16).all()
    assert (table.channel_ratio[site] > 30).all()
    assert (table.large_share[site] == 0.5).all()  # a channel, not a few tokens
    assert table.absmax.argmax() // table.absmax.shape[1] == site
    rows = (run.folder / "layers.csv").read_text().splitlines()
    absmax = [float(row.split(",")[rows[0].split(",").index("AbsMax")]) for row in rows[1:]]
    assert rows[1 + absmax.index(max(absmax))].startswith("mm_02_txt.post_gelu,")
    chart = np.genfromtxt(
        run.folder / "figures" / "channel_ranges_mm_02_txt.csv", delimiter=",", names=True
    )
    assert chart["range"].argmax() == 7
    assert "412" in (run.folder / "report.html").read_text(encoding="utf-8")


def package_prompt(index):
    from taqdit.prompts.options import shapes

    return shapes().texts[index]
