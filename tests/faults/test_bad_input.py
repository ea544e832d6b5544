"""Mistakes of a user: one clear line each, the right exit code, nothing under a final name."""

import json
import re

import numpy as np
import pytest
from conftest import ANALYTIC

CASES = [
    ("unknown option", ["sampler=eulr"], 2, ["eulr", "euler", "heun"]),
    ("unknown key", ["sampler.stepz=3"], 2, ["stepz"]),
    ("unknown group", ["samplr=euler"], 2, ["samplr"]),
    ("wrong type", ["schedule.num_steps=abc"], 2, ["abc", "num_steps"]),
    ("wrong type in an untyped group", ["timestep_selection.count=abc"], 2, ["abc", "integer"]),
    ("steps 0", ["schedule.num_steps=0"], 2, ["schedule.num_steps=0", "[1, 1000]"]),
    ("batch 0", ["sampler.batch_size=0"], 2, ["sampler.batch_size=0"]),
    ("cfg 0", ["sampler.cfg_scale=0"], 2, ["sampler.cfg_scale=0", "without guidance"]),
    ("count > steps", ["timestep_selection.count=31"], 2, ["count=31", "30"]),
    ("odd latent size", ["model.latent_size=[7,8]"], 2, ["model.latent_size=[7, 8]", "even"]),
    ("foreign code", ["model._target_=os.system"], 2, ["_target_='os.system'"]),
    ("code behind an import", ["model._target_=taqdit.store.os.replace"], 2, ["_target_="]),
    ("missing prompt file", ["prompts=file", "prompts.path=no.txt"], 3, ["no.txt"]),
    ("a word that is no verb", ["chek"], 2, ["chek", "check"]),
]


@pytest.mark.parametrize(
    ("overrides", "code", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_one_clear_line(taqdit, tmp_path, overrides, code, words):
    done = taqdit(*overrides)
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("taqdit: ")
    for word in words:
        assert word in lines[0]
    assert not list(tmp_path.iterdir())


def test_five_range_errors_at_once(taqdit):
    done = taqdit(
        "check",
        "sampler.batch_size=0",
        "sampler.cfg_scale=-1",
        "sampler.num_trajectories=0",
        "schedule.shift=0",
        "preflight=maybe",
    )
    assert done.returncode == 2
    keys = re.findall(r"taqdit: ([\w.]+)=", done.stderr)
    assert set(keys) == {
        "sampler.batch_size",
        "sampler.cfg_scale",
        "sampler.num_trajectories",
        "schedule.shift",
        "preflight",
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", ["empty"]), (b"\x00\xff\xfe junk \x80", ["UTF-8"])],
    ids=["empty", "binary junk"],
)
def test_prompt_files(taqdit, tmp_path, content, words):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    done = taqdit("prompts=file", f"prompts.path={path}")
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()) == 1
    for word in words:
        assert word.lower() in done.stderr.lower()
    assert list(tmp_path.iterdir()) == [path]


def test_nan_names_step_trajectory_and_prompt(taqdit, tmp_path):
    done = taqdit(*ANALYTIC, "model._target_=analytic.poisoned")
    assert done.returncode == 6
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("taqdit: ")]
    assert "before step 4 of trajectory 1 " in line
    assert "prompt '" in line
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("outputs/store/trajectories/*/*.safetensors"))
    (summary,) = tmp_path.glob("outputs/runs/*/*/summary.json")
    found = json.loads(summary.read_text())
    assert (found["status"], found["error"] in line) == ("failed", True)
    assert "Traceback" in (summary.parent / "taqdit.log").read_text()


def test_a_foreign_npz_with_a_pickle_in_it(taqdit, tmp_path):
    path = tmp_path / "foreign.npz"
    arrays = {
        "xs": np.zeros((4, 4, 4, 16), np.float32),
        "ts": np.zeros(4, np.float16),
        "prompt_indices": np.zeros(4, np.int32),
        "cs": np.zeros((1, 2, 4, 4096), np.float16),
        "cs_pooled": np.zeros((1, 2, 6), np.float16),
        "prompts": np.array(["a cat"], dtype=object),
        "cfg_scale": np.float32(1.5),
    }
    np.savez(path, **arrays)
    done = taqdit(*ANALYTIC, f"inputs.calibration={path}")
    assert done.returncode == 3
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("taqdit: ")]
    assert "pickle" in line
    assert "prompts" in line


def test_a_full_disk_is_refused_before_the_first_forward(taqdit, tmp_path):
    done = taqdit(*ANALYTIC, "schedule.num_steps=1000", "sampler.num_trajectories=1048576")
    assert done.returncode == 4
    assert "free" in done.stderr
    assert not (tmp_path / "outputs" / "store").exists()


def test_a_corrupt_shard_is_named_moved_aside_and_redone(taqdit, tmp_path):
    assert taqdit(*ANALYTIC).returncode == 0
    (shard,) = tmp_path.glob("outputs/store/trajectories/*/000003.safetensors")
    good = shard.read_bytes()
    bad = bytearray(good)
    bad[-5] ^= 1
    shard.write_bytes(bytes(bad))
    done = taqdit(*ANALYTIC)
    assert done.returncode == 0, done.stderr
    assert "000003.safetensors" in done.stderr
    assert "moved aside" in done.stdout
    assert shard.read_bytes() == good
    assert shard.with_name("000003.safetensors.bad-1").exists()
    assert "1 made, 5 reused" in done.stdout
