"""Mistakes of a user: one clear line each, the right exit code, nothing under a final name."""

import json
import re

import numpy as np
import pytest
from conftest import ANALYTIC, slow_unless
from ledger import shows

import taqdit as package

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
    ("no stage", ["stages=[]"], 2, ["stages=[]", "conditioning"]),
    ("stages null", ["stages=null"], 2, ["stages=None"]),
    ("a group without an option", ["prompts=null"], 2, ["group"]),
    ("refresh of a view", ["refresh=[calibration]"], 2, ["refresh=", "always made anew"]),
    ("refresh beyond stages", ["stages=[calibration]", "refresh=[trajectories]"], 2, ["refresh"]),
    ("a key that is none", ["+sampelr.cfg_scale=4"], 2, ["sampelr", "no key"]),
    ("bound where it is called", ["+prompts._partial_=true"], 2, ["prompts._partial_"]),
    (
        "another group's option",
        ["tracking=none", "tracking._target_=taqdit.tracer.none"],
        2,
        ["tracking."],
    ),
    ("no output folder", ["output_dir="], 2, ["output_dir"]),
    ("missing calibration file", ["inputs.calibration=no.npz"], 3, ["no.npz"]),
    ("a word that is no verb", ["chek"], 2, ["chek", "check"]),
]


QUICK = (
    "unknown option",
    "steps 0",
    "foreign code",
    "missing prompt file",
    "a word that is no verb",
)


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    slow_unless([case[1:] for case in CASES if case[0] in QUICK], [case[1:] for case in CASES]),
    ids=[case[0] for case in CASES],
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


BINARY = (b"\x00\xff\xfe junk \x80", "UTF-8")


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
    slow_unless([BINARY], [(b"", "holds no prompt"), BINARY]),
    ids=["nothing", "binary"],
)
def test_prompt_files(taqdit, tmp_path, content, words):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    done = taqdit("prompts=file", f"prompts.path={path}")
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()) == 1
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == [path]


@shows(
    "P8", "the command whose model gives NaN, nothing traced: exit 6, one line names it", trials=1
)
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


@pytest.mark.slow
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


@shows("P3", "too little room for what is asked: exit 4 before the first forward", trials=1)
def test_a_full_disk_is_refused_before_the_first_forward(taqdit, tmp_path):
    """The environment makes the disk look small (tests/plugins/sitecustomize.py)."""
    done = taqdit(*ANALYTIC, TAQDIT_TEST_FREE_BYTES="1000000")
    assert done.returncode == 4
    assert "1.0 MB free" in done.stderr
    assert not (tmp_path / "outputs" / "store").exists()


@shows("P3", "a whole run that finds no room for a shard: exit 4, then it goes on", trials=1)
def test_a_disk_that_fills_up_keeps_what_is_published(taqdit, tmp_path):
    """No room for the third trajectory: exit 4, no partial file; with room, it goes on.

    The other one of its batch is written at the same time, and may be there.
    """
    done = taqdit(*ANALYTIC, TAQDIT_TEST_FULL_AT="000002.safetensors")
    assert done.returncode == 4
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    (stage,) = tmp_path.glob("outputs/store/trajectories/*")
    assert not list(stage.glob(".*"))
    there = {path.name for path in stage.glob("*.safetensors")}
    assert {"000000.safetensors", "000001.safetensors"} <= there
    assert "000002.safetensors" not in there
    done = taqdit(*ANALYTIC)
    assert done.returncode == 0
    assert f"{6 - len(there)} made, {len(there)} reused" in done.stdout


@shows("P4", "a whole run that finds a shard with a wrong bit: named, it alone is redone", trials=1)
def test_a_corrupt_shard_is_named_moved_aside_and_redone(tmp_path, capsys, caplog):
    asked = [*ANALYTIC, f"output_dir={tmp_path}"]
    package.launch(asked)
    (shard,) = tmp_path.glob("store/trajectories/*/000003.safetensors")
    good = shard.read_bytes()
    bad = bytearray(good)
    bad[-5] ^= 1
    shard.write_bytes(bytes(bad))
    capsys.readouterr()
    package.launch(asked)
    told = capsys.readouterr().out
    assert "000003.safetensors" in caplog.text
    assert "moved aside" in told
    assert shard.read_bytes() == good
    assert shard.with_name("000003.safetensors.bad-1").exists()
    assert "1 made, 5 reused" in told


@pytest.mark.slow
def test_a_change_of_folder_by_hydra_is_refused(taqdit, tmp_path):
    done = taqdit(*ANALYTIC, "hydra.job.chdir=true")
    assert done.returncode == 2
    assert "hydra.job.chdir" in done.stderr
    assert not list(tmp_path.glob("**/store"))


@pytest.mark.slow
def test_a_run_without_room_for_its_figures_still_leaves_a_summary(taqdit, tmp_path):
    """The figures find no room: exit 4, and the summary says so."""
    settings = [s for s in ANALYTIC if s != "plots=none"]
    done = taqdit(*settings, TAQDIT_TEST_FULL_AT="latent_curves.png")
    assert done.returncode == 4
    (summary,) = tmp_path.glob("outputs/runs/*/*/summary.json")
    found = json.loads(summary.read_text())
    assert found["status"] == "failed"
    assert "No space left" in found["error"]


def test_an_output_folder_that_cannot_be(taqdit, tmp_path):
    (tmp_path / "file").write_text("")
    done = taqdit(*ANALYTIC, f"output_dir={tmp_path / 'file' / 'x'}")
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
