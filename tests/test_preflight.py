"""The plan's figures against what a run really writes, and the refusal of a full disk."""

import dataclasses

import pytest
from conftest import ANALYTIC

import taqdit as package
from taqdit import config, preflight
from taqdit.errors import StorageError


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
    assert found.trajectory_bytes <= written <= found.trajectory_bytes + headers
    exported = run.folder / "calibration.npz"
    npz = exported.stat().st_size if exported.exists() else 0
    assert found.export_bytes <= npz <= found.export_bytes + 4000
    assert exported.exists() is (mode != "latents=final")
    pictures = sum(p.stat().st_size for p in tmp_path.glob("outputs/store/trajectories/*/*.png"))
    assert pictures <= found.picture_bytes
    if exported.exists():
        assert found.points == run.summary["calibration"]["points"]


def test_conditioning_that_is_not_stored_takes_no_room():
    assert estimate().conditioning_bytes > 0
    found = estimate("prompts.store_conditioning=false")
    assert found.conditioning_bytes == 0
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
