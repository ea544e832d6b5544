"""The plan's figures against what a run really writes, and the refusal of a full disk."""

import dataclasses
import shutil

import pytest
from conftest import ANALYTIC, ROOT, tree

import taqdit as package
from taqdit import config
from taqdit.activations import step_shards as activations
from taqdit.errors import StorageError
from taqdit.models.spec import ModelSpec
from taqdit.stages import preflight
from taqdit.stages.remaining import remaining
from taqdit.trajectories.shards import shard_name


def estimate(*overrides, free=10**12):
    return preflight.estimate(config.plan(config.compose_config(overrides)), free_bytes=free)


@pytest.mark.parametrize("mode", ["", "latents=selected", "latents=final", "latents_dtype=float16"])
def test_the_estimate_is_what_a_run_writes(tmp_path, monkeypatch, mode):
    """Data bytes agree within the headers of the files."""
    monkeypatch.chdir(tmp_path)
    overrides = [*ANALYTIC, *([f"sampler.{mode}"] if mode else [])]
    found = estimate(*overrides)
    run = package.launch(overrides)
    shards = list(tmp_path.glob("outputs/store/trajectories/*/*.safetensors"))
    written = sum(path.stat().st_size for path in shards)
    headers = 800 * len(shards)
    assert found.nbytes["trajectory"] <= written <= found.nbytes["trajectory"] + headers
    exported = run.folder / "calibration.npz"
    npz = exported.stat().st_size if exported.exists() else 0
    assert found.nbytes["export"] <= npz <= found.nbytes["export"] + 4000
    assert exported.exists() is (mode != "latents=final")
    pictures = sum(p.stat().st_size for p in tmp_path.glob("outputs/store/trajectories/*/*.png"))
    assert pictures <= found.nbytes["picture"]
    if exported.exists():
        assert found.points == run.summary["calibration"]["points"]


def test_conditioning_that_is_not_stored_takes_no_room():
    assert estimate().nbytes["conditioning"] > 0
    found = estimate("prompts.store_conditioning=false")
    assert found.nbytes["conditioning"] == 0
    assert "conditioning" not in preflight.describe(found)


def test_forwards_follow_sampler_and_batches():
    assert estimate("sampler.num_trajectories=17").forwards == 3 * 30
    assert estimate("sampler=heun").forwards == 2 * 59


def test_a_full_disk_is_refused(tmp_path):
    found = estimate()
    tight = dataclasses.replace(found, free_bytes=found.total_bytes)
    with pytest.raises(StorageError, match=r"free.*writes about"):
        preflight.refuse_full_disk(tight, needed=found.total_bytes, folder=tmp_path)
    preflight.refuse_full_disk(found, needed=found.total_bytes, folder=tmp_path)


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_500_000_000, "2.5 GB")]
)
def test_sizes_in_words(count, words):
    assert preflight.size(count) == words


@pytest.mark.parametrize(
    ("pages", "words"),
    [(10**7, ", of 41.0 GB of main memory"), (10**4, ": more than the main memory of 41.0 MB")],
)
def test_the_memory_is_held_against_what_there_is(monkeypatch, pages, words):
    there = {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(preflight.os, "sysconf", there.__getitem__)
    last = preflight.describe(estimate()).splitlines()[-1]
    assert last.startswith("memory    about ")
    assert last.endswith(f"for the process{words}")


def test_a_system_that_does_not_tell_its_memory_is_none_of_ours(monkeypatch):
    def refuse(_name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(preflight.os, "sysconf", refuse)
    assert preflight.describe(estimate()).endswith("for the process")


# --- what is stored already ------------------------------------------------------------------

LEFT = ("forwards_left", "replays_left", "bytes_left")


def plan_of(*overrides):
    """What `preflight=only` leaves in the summary."""
    return package.launch([*ANALYTIC, *overrides, "preflight=only"]).summary["preflight"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The outputs of a whole run of the analytic model; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tests" / "plugins"))
        patch.setenv("TAQDIT_PLUGINS", "analytic")
        package.launch([*ANALYTIC, f"output_dir={folder}"])
    return folder


@pytest.fixture
def store(outputs, tmp_path, monkeypatch):
    """A copy of its store."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(outputs / "store", tmp_path / "outputs" / "store")
    return tmp_path / "outputs" / "store"


def test_a_plan_says_what_is_stored_and_what_is_left(store, caplog):
    (folder,) = store.glob("trajectories/*")
    for name in (shard_name(4), "000004.png", "000000.png"):
        (folder / name).unlink()
    before = tree(store)
    with caplog.at_level("INFO"):
        found = plan_of()
    assert found["stored"] == {"conditioning": [7, 7], "trajectories": [5, 6], "pictures": [4, 6]}
    assert [found[key] for key in LEFT] == [
        6,  # the batch of the trajectory that is missing
        0,
        found["trajectory_bytes"] // 6 + found["picture_bytes"] // 3 + found["export_bytes"],
    ]
    words = "conditioning 7 of 7, trajectories 5 of 6, pictures 4 of 6 (by name, not yet verified)"
    assert f"stored    {words}\nleft      6 forwards to sample, about " in caplog.text
    assert tree(store) == before
    assert package.launch(ANALYTIC).summary["stages"][1]["made"] == 1
    assert [plan_of()[key] for key in LEFT] == [0, 0, found["export_bytes"]]


def test_a_plan_of_more_of_other_settings_or_anew(store, caplog):
    more = plan_of("sampler.num_trajectories=7")
    assert more["stored"]["trajectories"] == [6, 8]
    again = plan_of("refresh=[trajectories]")
    assert again["stored"]["trajectories"] == [0, 6]
    assert again["forwards_left"] == again["forwards"]
    with caplog.at_level("INFO"):
        other = plan_of("schedule.shift=2", "model.w16=true")
    assert "stored    nothing of it" in caplog.text
    assert other["bytes_left"] == other["total_bytes"]


def test_without_the_weights_a_plan_does_not_know_what_is_stored(store, caplog, monkeypatch):
    monkeypatch.setattr(ModelSpec, "weights_present", lambda _: False)
    with caplog.at_level("INFO"):
        found = plan_of()
    assert "stored    not known: the model's weights are not all on this machine" in caplog.text
    assert found["stored"] is None
    assert found["bytes_left"] == found["total_bytes"]


def test_large_weights_are_not_read_for_a_plan_alone(store, caplog, monkeypatch):
    monkeypatch.setattr(ModelSpec, "weight_bytes", lambda _: 10**8 + 1)
    with caplog.at_level("INFO"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelSpec, "weights", None)
        found = plan_of()
    words = "stored    not looked up: the weights would have to be read (100.0 MB)"
    assert words in caplog.text
    assert (found["stored"], found["unread"]) == (None, 10**8 + 1)
    assert found["bytes_left"] == found["total_bytes"]
    assert package.launch(ANALYTIC).summary["preflight"]["stored"]["trajectories"] == [6, 6]
    monkeypatch.setattr(ModelSpec, "weight_bytes", lambda _: 10**8)
    assert plan_of()["stored"]["trajectories"] == [6, 6]


def test_a_disk_is_full_when_what_is_left_does_not_fit(store, monkeypatch):
    """What is stored needs no room, pictures that take less than their bound among it."""
    free = preflight.RESERVE + plan_of()["export_bytes"]
    monkeypatch.setattr(preflight, "free_bytes", lambda _: free)
    assert package.launch(ANALYTIC).summary["status"] == "ok"
    (picture,) = store.glob("trajectories/*/000002.png")
    picture.unlink()
    with pytest.raises(StorageError, match="writes about"):
        package.launch(ANALYTIC)


TRACED = ("sampler.num_trajectories=8", "sampler.batch_size=2", "schedule.num_steps=4")


@pytest.mark.parametrize(
    ("latents", "batches", "names", "read", "replays", "files"),
    [
        ("all", 4, [], 0, 16, 12),
        ("all", 4, [activations.file_name(8, step) for step in range(4)], 8, 0, 0),
        ("all", 4, [activations.file_name(4, step) for step in range(4)], 4, 8, 12),
        ("all", 4, [activations.file_name(10, 0), activations.file_name(3, 1)], 0, 16, 12),
        ("all", 3, [activations.checkpoint_name(6, step) for step in range(4)], 6, 0, 8),
        ("all", 3, [activations.checkpoint_name(n, 1) for n in (2, 4, 6)], 1, 9, 10),
        ("all", 3, [activations.part_name(n, 2) for n in (0, 2, 9)], 1, 10, 12),
        ("final", 3, [activations.checkpoint_name(6, step) for step in range(3)], 4, 12, 9),
    ],
)
def test_statistics_go_on_from_what_is_read(
    tmp_path, latents, batches, names, read, replays, files
):
    """Each batch at each step is read once; a step may have two checkpoints and its file."""
    plan = config.plan(config.compose_config([*TRACED, f"sampler.latents={latents}"]))
    marks = dict.fromkeys(("trajectories", "statistics"), "0" * 64)
    listed = {"trajectories": map(shard_name, range(2 * batches)), "statistics": names}
    for stage, each in listed.items():
        folder = tmp_path / stage / ("0" * 12)
        folder.mkdir(parents=True)
        for name in each:
            (folder / name).touch()
    whole = preflight.estimate(plan, free_bytes=0)
    found = remaining(plan, whole, tmp_path, marks)
    assert found.stored["traced"] == (read, 8)
    assert (found.forwards_left, found.replays_left) == (4 * (4 - batches), replays)
    others = whole.nbytes["conditioning"] + whole.nbytes["picture"] + whole.nbytes["export"]
    others += whole.nbytes["analysis"] + whole.nbytes["trajectory"] * (4 - batches) // 4
    assert found.bytes_left == others + whole.nbytes["statistics"] * files // 4


def test_a_run_that_traces_nothing_needs_no_room_for_statistics():
    found = estimate("stages=[conditioning,trajectories]")
    assert (found.nbytes["statistics"], found.nbytes["analysis"]) == (0, 0)
    assert estimate().nbytes["statistics"] > 0
