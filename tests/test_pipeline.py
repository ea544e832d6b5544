"""Whole runs: the embedded model end to end, reuse, extension, two processes, and from Python."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ANALYTIC, command, slow_unless, tree
from wandb_files import read_run

import taqdit as package
from taqdit.errors import ConfigError, InputError, StorageError
from taqdit.plots.drawing import Of
from taqdit.plots.options import paper
from taqdit.store import read_shard

TINY = (
    "schedule.num_steps=4",
    "sampler.num_trajectories=2",
    "sampler.batch_size=2",
    "timestep_selection.count=2",
)


def one(folder, pattern):
    (found,) = folder.glob(pattern)
    return found


def summary_of(done, folder):
    assert done.returncode == 0, done.stderr
    paths = sorted(folder.glob("outputs/runs/*/*/summary.json"))
    return json.loads(paths[-1].read_text())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Summary and working folder of the default command in small, on the embedded model."""
    folder = tmp_path_factory.mktemp("small")
    line, env = command(*TINY)
    env |= {"HOME": str(folder), "WANDB_DIR": str(folder)}
    done = subprocess.run(
        line, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    return summary_of(done, folder), folder


@pytest.mark.slow
def test_the_default_command_in_small(small):
    """Summary, sealed store, pictures, figures, npz."""
    summary, folder = small
    run = one(folder, "outputs/runs/*/*")
    assert summary["status"] == "ok"
    assert [(s["name"], s["made"], s["reused"]) for s in summary["stages"]] == [
        ("conditioning", 3, 0),
        ("trajectories", 2, 0),
        ("statistics", 4, 0),
        ("weights", 89, 0),
    ]
    folder = folder / "outputs" / "store" / summary["stages"][1]["folder"]
    names = sorted(path.name for path in folder.iterdir())
    shards = ["000000.png", "000000.safetensors", "000001.png", "000001.safetensors"]
    assert names == [*shards, "SEALED.json", "stage.json"]
    shard = read_shard(folder / "000001.safetensors", kind="trajectory")
    assert shard.tensors["latents"].shape == (5, 8, 8, 16)
    assert shard.metadata["seed"] == 1
    with np.load(run / "calibration.npz", allow_pickle=False) as npz:
        assert npz["xs"].shape == (4, 8, 8, 16)
        assert npz["prompts"].dtype.kind == "U"
    for name in summary["figures"]:
        assert (run / name).stat().st_size > 0
    single = ["histogram", "ridgeline", "channel_ranges", "channel_time"]
    made = {name.split("/")[1] for name in summary["figures"] if name.endswith("png")}
    latents = {"latent_curves.png", "selection_strip.png", "image_grid.png"}
    whole = [kind.name for of in (Of.ANALYSIS, Of.ACTIVATIONS) for kind in paper().kinds(of)]
    assert len(whole) == 15
    assert latents | {f"{name}.png" for name in whole} < made
    assert len(made) == len(latents) + len(whole) + len(single)
    (label,) = {n.removeprefix("histogram_") for n in made if n.startswith("histogram_")}
    assert {f"{kind}_{label}" for kind in single} < made  # of the worst layer
    for kind in ("svg", "csv"):
        assert {f"figures/{name[:-4]}.{kind}" for name in made} <= set(summary["figures"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 2 + len(made) - 1  # the grid's pictures one by one
    assert "mm_00_img.post_gelu" in page
    assert "mm_00_img.post_gelu" in summary["layers"]
    rows = (run / "layers.csv").read_text().splitlines()
    assert len(rows) == 1 + summary["statistics"]["sites"] == 48


@pytest.mark.slow
def test_the_wandb_file_holds_the_curves(small):
    """Offline by default; the rows in it are the latents' statistics, and the local log agrees."""
    summary, folder = small
    stage = folder / "outputs" / "store" / summary["stages"][1]["folder"]
    shards = [read_shard(stage / f"00000{i}.safetensors").tensors for i in range(2)]
    latents = np.stack([shard["latents"] for shard in shards]).astype(np.float64)
    found = read_run(one(folder, "outputs/runs/*/*"))
    curve = [row for row in found.history if "latent/std" in row]
    assert [row["step"] for row in curve] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([r["sigma"] for r in curve], shards[0]["sigmas"], rtol=1e-6)
    for key, expected in (
        ("latent/mean", latents.mean(axis=(0, 2, 3, 4))),
        ("latent/std", latents.std(axis=(0, 2, 3, 4))),
        ("latent/min", latents.min(axis=(0, 2, 3, 4))),
        ("latent/max", latents.max(axis=(0, 2, 3, 4))),
    ):
        np.testing.assert_allclose([row[key] for row in curve], expected, rtol=1e-5, atol=1e-7)
    assert found.exit_code == 0
    kinds = [each["type"] for each in found.artifacts if each["type"] != "run_table"]
    assert kinds == ["activation-statistics", "calibration-set"]
    assert found.config["sampler"]["cfg_scale"] == 2.0


def test_a_second_run_reuses_everything(taqdit, tmp_path):
    first = summary_of(taqdit(*ANALYTIC), tmp_path)
    before = tree(tmp_path / "outputs" / "store")
    second = summary_of(taqdit(*ANALYTIC), tmp_path)
    assert [s["made"] for s in first["stages"]] == [7, 6]
    assert [(s["made"], s["reused"]) for s in second["stages"]] == [(0, 7), (0, 6)]
    assert tree(tmp_path / "outputs" / "store") == before
    assert first["run_id"] != second["run_id"]


def test_more_trajectories_extend_the_stage(launched, tmp_path):
    """From 8 to 16: the first 8 stay; the result is what 16 at once would have given."""
    eight, sixteen = (f"sampler.num_trajectories={n}" for n in (8, 16))
    launched(eight)
    extended = launched(sixteen)
    assert [(s["made"], s["reused"]) for s in extended["stages"]] == [(8, 9), (8, 8)]
    launched(sixteen, f"output_dir={tmp_path / 'elsewhere'}")
    assert tree(tmp_path / "outputs" / "store") == tree(tmp_path / "elsewhere" / "store")


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Runs in this process, in a private folder; the summary."""
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: package.launch([*ANALYTIC, *overrides]).summary


def test_batches_are_whole(launched):
    """3 trajectories at batch 2 store 4: a latent's bits depend on the rows of its forward."""
    summary = launched("sampler.num_trajectories=3")
    assert summary["stages"][1]["made"] == 4
    assert summary["calibration"]["points"] == 9


def test_pictures_asked_for_later_need_no_sampling(launched, tmp_path):
    launched("sampler.images=false")
    assert not list(tmp_path.glob("outputs/store/trajectories/*/*.png"))
    later = launched()
    assert (later["stages"][1]["made"], later["stages"][1]["reused"]) == (0, 6)
    assert len(list(tmp_path.glob("outputs/store/trajectories/*/*.png"))) == 6


def test_another_selection_is_a_view(launched):
    launched()
    other = launched("timestep_selection=midpoint")
    assert [s["made"] for s in other["stages"]] == [0, 0]


def test_refresh_moves_the_old_stage_aside(launched, tmp_path):
    launched()
    (old,) = tmp_path.glob("outputs/store/trajectories/*")
    before = tree(old)
    refreshed = launched("refresh=[trajectories]")
    assert [s["made"] for s in refreshed["stages"]] == [0, 6]
    assert tree(old.with_name(f"{old.name}.replaced-1")) == tree(old) == before


@pytest.mark.slow
def test_two_processes_share_a_stage(tmp_path):
    """The same command twice at once: each shard is made once, the bytes are those of one."""
    settings = (*ANALYTIC, "model._target_=analytic.slow", "sampler.num_trajectories=8")
    line, env = command(*settings)
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    both = [subprocess.Popen(line, cwd=together, env=env) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    package.launch([*settings, f"output_dir={alone}"])
    assert tree(together / "outputs" / "store") == tree(alone / "store")
    made = [json.loads(p.read_text()) for p in together.glob("outputs/runs/*/*/summary.json")]
    assert sum(summary["stages"][1]["made"] for summary in made) == 8


@pytest.mark.slow
def test_a_stage_is_not_continued_on_another_backend(taqdit, tmp_path):
    summary_of(taqdit(*ANALYTIC, "sampler.num_trajectories=4"), tmp_path)
    path = one(tmp_path, "outputs/store/trajectories/*/stage.json")
    from taqdit.store.digest import stamp

    document = json.loads(path.read_text())
    document["backends"][0]["mlx"] = "0.0.1"
    document.pop("sha256", None)
    path.write_text(json.dumps(stamp(document)))
    reused = taqdit(*ANALYTIC, "sampler.num_trajectories=4")
    assert "0.0.1" in summary_of(reused, tmp_path)["stages"][1]["note"]
    assert "made on (" in reused.stderr
    refused = taqdit(*ANALYTIC)
    assert refused.returncode == 4
    assert "allow_backend_change=true" in refused.stderr
    assert taqdit(*ANALYTIC, "allow_backend_change=true").returncode == 0
    assert len(json.loads(path.read_text())["backends"]) == 2


def test_a_stage_that_may_not_be_computed_is_asked_for(launched):
    with pytest.raises(StorageError, match="add conditioning to stages"):
        launched("stages=[calibration]")


def test_preflight_only_writes_nothing_into_the_store(taqdit, tmp_path):
    done = taqdit("experiment=paper", "preflight=only")
    assert done.returncode == 0, done.stderr
    assert "6,400 calibration points of 256 trajectories" in done.stderr
    latents = 256 * 101 * 32 * 32 * 16 * 4
    pictures = 256 * 256 * 256 * 3
    rows = 21 * (589 * 4096 + 2048) * 2
    npz = 6400 * (32 * 32 * 16 * 4 + 2 + 4) + 20 * 2 * (589 * 4096 + 2048) * 2
    channels = 4096 + 1536 + (24 * (3 * 1536 + 6144)) + (23 * (3 * 1536 + 6144) + 1536)
    histograms = 191 * (42 * (2 + 8 * 16 * 4) + 8 * 8)
    statistics = 100 * (36 * channels + histograms)
    total = latents + pictures + rows + npz + 3 * statistics + 191 * 100 * 10_000
    assert f"({total:,} bytes)" in done.stderr
    assert "3,200 of 16 rows" in done.stderr
    assert not (tmp_path / "outputs" / "store").exists()


@pytest.mark.slow
def test_the_dry_run_exports_forty_points(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["tracking=none", "plots=none", "sampler.images=false", "tracer=none"]
    run = package.launch(["experiment=dry_run", *quick])
    with np.load(run.folder / "calibration.npz", allow_pickle=False) as npz:
        shapes = {key: (npz[key].shape, npz[key].dtype.str) for key in npz}
    assert shapes == {
        "xs": ((40, 8, 8, 16), "<f4"),
        "ts": ((40,), "<f2"),
        "prompt_indices": ((40,), "<i4"),
        "cs": ((8, 2, 32, 4096), "<f2"),
        "cs_pooled": ((8, 2, 160), "<f2"),
        "prompts": ((8,), shapes["prompts"][1]),
        "cfg_scale": ((), "<f4"),
    }
    assert shapes["prompts"][1].startswith("<U")
    assert run.summary["calibration"]["steps"] == [0, 4, 9, 14, 19]


@pytest.mark.slow
def test_the_paper_recipe_without_weights_says_how_to_get_them(taqdit, tmp_path):
    done = taqdit("experiment=paper", HF_HUB_CACHE=str(tmp_path / "hub"))
    assert done.returncode == 7
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("taqdit: ")]
    assert "argmaxinc/mlx-stable-diffusion-3-medium" in line
    assert "login" in line


def test_a_sweep_reuses_and_reports_its_jobs(taqdit, tmp_path):
    done = taqdit("-m", *ANALYTIC, "timestep_selection=paper_uniform,midpoint")
    assert done.returncode == 0, done.stderr
    paths = sorted(tmp_path.glob("outputs/sweeps/*/*/*/summary.json"))
    made = [json.loads(path.read_text())["stages"][1]["made"] for path in paths]
    assert made == [6, 0]


@pytest.mark.slow
def test_a_failing_job_does_not_stop_the_others(taqdit, tmp_path):
    targets = "model._target_=analytic.poisoned,analytic.gaussian"
    done = taqdit("-m", *ANALYTIC, targets)
    assert done.returncode == 6
    assert "NaN" in done.stderr
    states = [json.loads(p.read_text()) for p in tmp_path.glob("outputs/sweeps/*/*/*/summary.json")]
    assert {state["status"] for state in states} == {"ok", "failed"}


def test_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = package.launch([*ANALYTIC, "tracking=local"])
    assert run.summary["status"] == "ok"
    again = package.open_run(run.folder)
    points = again.calibration()
    assert isinstance(points, package.CalibrationSet)
    assert len(points) == 18
    trajectories = again.trajectories()
    point = points[7]
    expected = trajectories.latents(point.trajectory)[point.step]
    np.testing.assert_array_equal(point.latent, expected)
    assert again.picture(0).shape == (32, 32, 3)
    with np.load(run.folder / "calibration.npz", allow_pickle=False) as npz:
        order = np.random.default_rng(0).permutation(len(points))
        np.testing.assert_array_equal(npz["xs"][0], points[int(order[0])].latent)
    with pytest.raises(ConfigError):
        package.launch(["sampler.batch_size=0"])
    with pytest.raises(InputError, match="no finished run"):
        package.open_run(tmp_path / "nowhere")


@pytest.mark.slow
def test_an_npz_made_elsewhere_is_the_calibration_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = package.launch([*TINY, "tracking=none", "plots=none", "sampler.images=false"])
    path = first.folder / "calibration.npz"
    other = package.launch([*TINY, "tracking=none", "tracer=none", f"inputs.calibration={path}"])
    assert other.summary["calibration"]["points"] == 4
    assert other.summary["calibration"]["imported"] == str(path)
    assert other.summary["stages"] == []
    found = other.calibration()
    np.testing.assert_array_equal(found[0].latent, np.load(path, allow_pickle=False)["xs"][0])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="not the calibration file"):
        other.calibration()


def test_outputs_can_be_moved_as_a_whole(launched, tmp_path):
    launched()
    (tmp_path / "outputs").rename(tmp_path / "moved")
    run = package.open_run(one(tmp_path, "moved/runs/*/*"))
    assert run.trajectories().latents(5).shape == (7, 4, 4, 16)


def test_an_extent_beyond_what_is_stored_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package.launch(ANALYTIC)
    package.launch([*ANALYTIC, "sampler.num_trajectories=10", "stages=[conditioning]"])
    with pytest.raises(StorageError, match="trajectories lacks 2 units"):
        package.launch([*ANALYTIC, "sampler.num_trajectories=10", "stages=[calibration]"])


def test_stages_can_be_run_one_by_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = package.launch([*ANALYTIC, "stages=[conditioning]"])
    assert [s["name"] for s in first.summary["stages"]] == ["conditioning"]
    second = package.launch([*ANALYTIC, "stages=[trajectories]"])
    assert [s["made"] for s in second.summary["stages"]] == [0, 6]
    assert "calibration" not in second.summary
    third = package.launch([*ANALYTIC, "stages=[calibration]"])
    assert third.summary["calibration"]["points"] == 18


@pytest.mark.parametrize("suffix", ["safetensors", "png"])
def test_a_file_of_another_trajectory_under_this_name_is_redone(launched, tmp_path, caplog, suffix):
    launched()
    (stage,) = tmp_path.glob("outputs/store/trajectories/*")
    good = tree(stage)
    (stage / f"000000.{suffix}").write_bytes((stage / f"000001.{suffix}").read_bytes())
    assert launched()["stages"][1]["moved_aside"][0][0] == f"000000.{suffix}"
    assert "belongs to" in caplog.text
    (stage / f"000000.{suffix}.bad-1").unlink()
    assert tree(stage) == good


def test_a_shard_of_another_stage_is_redone(launched, tmp_path):
    launched()
    (mine,) = tmp_path.glob("outputs/store/trajectories/*")
    launched("sampler.cfg_scale=5")
    (other,) = set(tmp_path.glob("outputs/store/trajectories/*")) - {mine}
    (mine / "000002.safetensors").write_bytes((other / "000002.safetensors").read_bytes())
    assert launched()["stages"][1]["made"] == 1


def test_a_run_keeps_its_prompts_when_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "p.txt"
    path.write_text("a cat\na dog\n")
    run = package.launch([*ANALYTIC, "prompts=file", f"prompts.path={path}"])
    path.write_text("a hen\n")
    points = package.open_run(run.folder).calibration()
    assert {point.prompt for point in points} == {"a cat", "a dog"}
    path.unlink()
    assert len(package.open_run(run.folder).trajectories()) == 6


def test_a_run_can_be_used_after_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = package.launch(ANALYTIC)
    points = run.calibration()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert points[17].latent.shape == (4, 4, 16)
    assert run.picture(0).shape == (32, 32, 3)


def test_preflight_only_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = package.launch([*ANALYTIC, "preflight=only"])
    assert run.summary["status"] == "preflight"
    assert run.summary["preflight"]["points"] == 18
    assert not (tmp_path / "outputs" / "store").exists()


def test_a_refresh_of_a_stage_in_use_is_refused(tmp_path, monkeypatch):
    from taqdit.store import Stage

    monkeypatch.chdir(tmp_path)
    package.launch(ANALYTIC)
    (folder,) = (tmp_path / "outputs" / "store" / "trajectories").iterdir()
    record = json.loads((folder / "stage.json").read_text())
    stage = Stage.find(tmp_path / "outputs" / "store", "trajectories", record["fingerprint"])
    with stage.claim("batch-000000") as mine:
        assert mine
        with pytest.raises(StorageError, match="in use"):
            package.launch([*ANALYTIC, "refresh=[trajectories]"])
    assert folder.exists()


LIGHT = """
import sys
from taqdit.cli import dispatch
sys.argv = ["taqdit", *{arguments!r}]
try:
    dispatch(sys.argv[1:])
except BaseException as error:
    print(type(error).__name__)
heavy = {{"diffusionkit", "transformers", "wandb", "matplotlib", "torch", "scipy"}}
heavy &= set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""


@pytest.mark.parametrize(
    "arguments",
    slow_unless([["check"]], [["--help"], ["check"], ["sampler.batch_size=0"], ["no_verb"]]),
)
def test_help_check_and_errors_import_nothing_heavy(tmp_path, arguments):
    script = LIGHT.format(arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
