"""Tracking: the local record is complete whatever W&B does; W&B gets all of it when it works."""

import base64
import contextlib
import hashlib
import inspect
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import wandb_files
import wandb_stub
import yaml
from conftest import ANALYTIC, slow_unless
from ledger import shows
from PIL import Image

from taqdit import config
from taqdit.errors import ConfigError, StorageError
from taqdit.store.secrets import MASK
from taqdit.tracking import options as tracking
from taqdit.tracking.credentials import resolve_mode
from taqdit.tracking.groups import group_name, run_date, sweep_group
from taqdit.tracking.mirror import CHECKSUM_BYTES
from taqdit.tracking.plain import merge_bins
from taqdit.words import plain

ROOT = Path(__file__).resolve().parent.parent
KEY = wandb_stub.SECRET
SIGMAS = [1.0, 0.75, 0.5, 0.25, 0.0]
INFO = {"run_id": "r1", "name": "first", "group": "g", "job_type": "calibration"}


@pytest.fixture
def folder(tmp_path):
    """A run's folder with a picture and a data set in it."""
    made = tmp_path / "run"
    (made / "data").mkdir(parents=True)
    for name in ("a", "b"):
        (made / "data" / name).write_text(name)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(made / "grid.png")
    return made


def start(options, folder, **changes):
    about = {**INFO, "tags": ["model:tiny"], "config": {"steps": 4, "sampler": {"cfg": 2.0}}}
    return options.start(folder, **(about | changes))


def tell(tracker, folder):
    """One of everything."""
    for step, sigma in enumerate(SIGMAS):
        axis = {"step": step, "sigma": sigma, "timestep": 1000 * sigma}
        tracker.scalars({"loss/a": np.float32(step / 2)}, axis=axis)
    counted = np.arange(1000), np.linspace(0, 1, 1001)
    tracker.histograms({"act": counted}, axis={"step": 3}, along="step")
    tracker.curves("latent", x=np.array(SIGMAS), ys={"mean": np.arange(5.0)}, x_name="sigma")
    tracker.table("layers", ["layer", "bits"], [["mm_00", 4], ["mm_01", None]])
    tracker.image("grid", folder / "grid.png", "two shapes")
    tracker.artifact(
        "cal set", kind="calibration-set", path=folder / "data", metadata={"n": np.int64(4)}
    )
    tracker.uses("trajectories-abc", kind="trajectories", path=folder / "data" / "a")
    tracker.summary({"points": 20})


def events(folder):
    lines = (folder / "events.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def without_time(folder):
    return [{k: v for k, v in event.items() if k != "time"} for event in events(folder)]


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# --- one contract, two backends -------------------------------------------------------------


def local_view(folder):
    """What the contract asks of events.jsonl."""
    found = {event["kind"]: event for event in events(folder)}
    scalars = [e for e in events(folder) if e["kind"] == "scalars"]
    curves, image, artifact = found["curves"], found["image"], found["artifact"]
    return {
        "run": {k: found["run"][k] for k in ("run_id", "name", "group", "job_type", "tags")},
        "config": found["run"]["config"],
        "scalars": [{**e["axis"], **e["values"]} for e in scalars],
        "histogram": sum(found["histograms"]["values"]["act"]["counts"]),
        "range": [found["histograms"]["values"]["act"]["edges"][i] for i in (0, -1)],
        "curve": list(zip(curves["x"], curves["ys"]["mean"], strict=True)),
        "table": (found["table"]["columns"], found["table"]["rows"]),
        "image": ((folder / image["path"]).is_file(), image["caption"]),
        "artifact": (artifact["type"], artifact["metadata"], artifact["path"]),
        "uses": {found["uses"]["type"]: found["uses"]["name"]},
        "summary": found["summary"]["values"]["points"],
        "ok": found["finish"]["ok"],
    }


def wandb_view(folder):
    """The same, read back from the .wandb file."""
    found = wandb_files.read_run(folder)
    (files,) = folder.glob("wandb/offline-run-*/files")
    names = {"run_id": "run_id", "display_name": "name", "run_group": "group"}
    run = {names.get(k, k): v for k, v in found.run.items() if k not in ("project", "entity")}
    scalars = [{k: r[k] for k in r if k[0] != "_"} for r in found.history if "loss/a" in r]
    (hist,) = [row for row in found.history if "act._type" in row]
    chart, table = (
        json.loads((files / path).read_text("utf-8"))
        for name in ("latent_table", "layers")
        for path in found.column(f"{name}.path")
    )
    (art,) = [a for a in found.artifacts if a["type"] == "calibration-set"]
    picture = files / found.column("grid.path")[0]
    assert set(art["entries"].values()) == {(folder / "data" / n).as_uri() for n in "ab"}
    return {
        "run": run,
        "config": {k: v for k, v in found.config.items() if k in ("steps", "sampler")},
        "scalars": scalars,
        "histogram": sum(hist["act.values"]),
        "range": [hist["act.bins"][i] for i in (0, -1)],
        "curve": [(x, y) for x, _, y in chart["data"]],
        "table": (table["columns"], table["data"]),
        "image": (picture.is_file(), found.column("grid.caption")[0]),
        "artifact": (art["type"], art["metadata"], "data"),
        "uses": found.config["uses"],
        "summary": found.summary["points"],
        "ok": found.exit_code == 0,
    }


@pytest.mark.parametrize(
    ("options", "view"),
    [(tracking.local(), local_view), (tracking.wandb(mode="offline"), wandb_view)],
    ids=["local", "wandb"],
)
@pytest.mark.parametrize("ok", slow_unless([True], [True, False]))
def test_what_is_told_can_be_read_back(folder, options, view, ok):
    tracker = start(options, folder)
    tell(tracker, folder)
    tracker.finish(ok=ok)
    tracker.scalars({"late": 1.0}, axis={})
    axes = [{"step": i, "sigma": s, "timestep": 1000 * s} for i, s in enumerate(SIGMAS)]
    assert view(folder) == {
        "run": {**INFO, "tags": ["model:tiny"]},
        "config": {"steps": 4, "sampler": {"cfg": 2.0}},
        "scalars": [{**axis, "loss/a": i / 2} for i, axis in enumerate(axes)],
        "histogram": sum(range(1000)),
        "range": [0, 1],
        "curve": list(zip(SIGMAS, range(5), strict=True)),
        "table": (["layer", "bits"], [["mm_00", 4], ["mm_01", None]]),
        "image": (True, "two shapes"),
        "artifact": ("calibration-set", {"n": 4}, "data"),
        "uses": {"trajectories": "trajectories-abc"},
        "summary": 20,
        "ok": ok,
    }


# --- the local record -----------------------------------------------------------------------


def test_local_lines_come_in_order_and_end_with_finish(folder):
    tracker = start(tracking.local(), folder)
    tell(tracker, folder)
    tracker.finish(ok=True)
    tracker.finish(ok=False)
    kinds = ["histograms", "curves", "table", "image", "artifact", "uses", "summary"]
    assert [e["kind"] for e in events(folder)] == ["run", *["scalars"] * 5, *kinds, "finish"]
    assert str(folder.parent) not in (folder / "events.jsonl").read_text("utf-8")
    assert tracker.location == str(folder / "events.jsonl")


def test_each_line_is_on_disk_before_the_run_goes_on(folder):
    tracker = start(tracking.local(), folder)
    tracker.scalars({"a": float("nan"), "b": float("-inf")}, axis={"step": 0})
    assert events(folder)[-1]["values"] == {"a": "NaN", "b": "-Infinity"}


def test_none_writes_nothing(folder):
    before = sorted(folder.iterdir())
    tracker = start(tracking.none(), folder)
    tell(tracker, folder)
    tracker.finish(ok=True)
    assert sorted(folder.iterdir()) == before
    assert tracker.location == ""


def test_a_sink_that_raises_keeps_no_other_from_its_end():
    ended = []

    class Sink:
        def __init__(self, name):
            self.name, self.location = name, ""

        def finish(self, ok):
            ended.append((self.name, ok))
            if self.name == "full":
                raise StorageError("full")

    with pytest.raises(StorageError):
        tracking.Tracker(Sink("full"), Sink("other")).finish(ok=True)
    assert ended == [("full", True), ("other", True)]


def test_lengths_that_do_not_fit_are_refused(folder):
    tracker = start(tracking.local(), folder)
    with pytest.raises(ValueError, match="3 counts need one more edge, not 3"):
        tracker.histograms({"h": ([1, 2, 3], [0, 1, 2])}, axis={"timestep": 0})
    with pytest.raises(ValueError, match="c/y: 1 values for 2 of x"):
        tracker.curves("c", x=[1, 2], ys={"y": [1]}, x_name="x")
    with pytest.raises(ValueError, match="2 columns, but a row has 1"):
        tracker.table("t", ["a", "b"], [[1, 2], [3]])


def test_plain_values_are_those_json_knows():
    given = {"a": np.float32(0.5), 2: (np.int64(3), np.array([[1.0, np.inf]])), "p": Path("x/y")}
    assert plain(given) == {"a": 0.5, "2": [3, [[1.0, "Infinity"]]], "p": "x/y"}
    assert type(plain(np.float64(0.5))) is float
    assert plain([True, None, "t"]) == [True, None, "t"]


@pytest.mark.parametrize("bins", [1, 511, 512, 513, 1000, 5000])
def test_merged_bins_keep_the_total_and_the_range(bins):
    counts, edges = np.arange(bins), np.linspace(-1, 1, bins + 1)
    merged, where = merge_bins(counts, edges, most=512)
    assert len(merged) <= 512
    assert len(where) == len(merged) + 1
    assert sum(merged) == counts.sum()
    assert (where[0], where[-1]) == (-1, 1)
    assert set(where) <= set(edges)
    if bins <= 512:
        assert merged == counts.tolist()


def test_infinite_outer_edges_become_finite_for_wandb():
    assert merge_bins(np.array([1, 2]), np.array([-np.inf, 0.5, np.inf]), most=9)[1] == [0.5] * 3


# --- W&B in particular ----------------------------------------------------------------------


@pytest.mark.slow
def test_values_are_drawn_against_their_axis(folder):
    tracker = start(tracking.wandb(mode="offline"), folder)
    tell(tracker, folder)
    tracker.scalars({"speed": 3.0}, axis={"batch": 1})
    tracker.finish(ok=True)
    found = wandb_files.read_run(folder)
    drawn = {name: x for name, x in found.metrics.items() if x}
    assert drawn == {"loss/a": "sigma", "act": "step", "speed": "batch"}
    assert found.hidden == {"step", "sigma", "timestep", "batch"}
    chart = found.config["_wandb.visualize.latent"]
    assert chart["panel_config"]["stringSettings"]["xname"] == "sigma"


@pytest.mark.parametrize("beyond", slow_unless([1], [0, 1]))
def test_the_artifact_is_a_reference_and_large_ones_are_not_read(beyond, folder):
    with (folder / "a.bin").open("wb") as file:
        file.truncate(CHECKSUM_BYTES + beyond)
    tracker = start(tracking.wandb(mode="offline"), folder)
    tracker.artifact("set/1", kind="calibration-set", path=folder / "a.bin", metadata={})
    tracker.finish(ok=True)
    (artifact,) = wandb_files.read_run(folder).artifacts
    assert artifact["name"] == "set-1"
    assert artifact["entries"] == {"a.bin": (folder / "a.bin").as_uri()}
    content = base64.b64encode(hashlib.md5(bytes(CHECKSUM_BYTES)).digest()).decode()
    assert (artifact["digests"]["a.bin"] == content) == (beyond == 0)
    assert not list(folder.glob("wandb/**/a.bin"))


@pytest.mark.slow
def test_wandb_leaves_the_process_as_it_was(folder, capfd):
    before = sys.exit, sys.excepthook, dict(os.environ)
    tracker = start(tracking.wandb(mode="offline"), folder)
    tell(tracker, folder)
    tracker.finish(ok=True)
    assert (sys.exit, sys.excepthook, dict(os.environ)) == before
    assert capfd.readouterr() == ("", "")
    assert tracker.location.endswith("-r1")


def test_online_the_server_gets_everything(folder, monkeypatch, capfd, caplog):
    caplog.set_level(logging.INFO)
    with wandb_stub.Server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        tracker = start(tracking.auto(), folder)
        tell(tracker, folder)
        tracker.finish(ok=True)
        assert server.column("loss/a") == [0, 0.5, 1, 1.5, 2]
        assert server.config["sampler"]["value"] == {"cfg": 2.0}
        made = {a["artifactCollectionName"]: a for a in server.artifacts}
        assert made["cal-set"]["type"] == "calibration-set"
        assert json.loads(made["cal-set"]["metadata"]) == {"n": 4}
        assert server.exit_codes == [0]
        assert f"{server.url}/tester/taqdit/runs/r1" in tracker.location
        assert server.used == ["trajectories-abc"]
    assert warnings_of(caplog) == []
    assert capfd.readouterr() == ("", "")
    assert len(events(folder)) == 14


# --- online, offline or not at all ----------------------------------------------------------


CASES = {
    "nothing": ({}, {}, "offline"),
    "key": ({"WANDB_API_KEY": KEY}, {}, "online"),
    "identity": ({"WANDB_IDENTITY_TOKEN_FILE": "/x"}, {}, "online"),
    "mode wins over key": ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, {}, "offline"),
    "disabled": ({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, {}, "disabled"),
    "dryrun": ({"WANDB_API_KEY": KEY, "WANDB_MODE": "dryrun"}, {}, "offline"),
    "online without key": ({"WANDB_MODE": "online"}, {}, "offline"),
    "unknown mode": ({"WANDB_MODE": "onlin"}, {}, "offline"),
    "netrc": ({}, {".netrc": "machine api.wandb.ai login user password " + KEY}, "online"),
    "new host": ({}, {".netrc": f"machine api.forge.coreweave.com password {KEY}"}, "online"),
    "other netrc": ({}, {".netrc": "machine example.org login user password " + KEY}, "offline"),
    "broken netrc": ({}, {".netrc": "machine \x00 what is this"}, "offline"),
    "own server": (
        {"WANDB_BASE_URL": "https://wb.lab.org"},
        {".netrc": "machine wb.lab.org login user password " + KEY},
        "online",
    ),
    "key for another server": (
        {"WANDB_BASE_URL": "https://wb.lab.org"},
        {".netrc": "machine api.wandb.ai login user password " + KEY},
        "offline",
    ),
    "settings": ({}, {".config/wandb/settings": f"[default]\napi_key = {KEY}\n"}, "online"),
    "wandb offline": (
        {"WANDB_API_KEY": KEY},
        {".config/wandb/settings": "[default]\nmode = offline\n"},
        "offline",
    ),
    "broken settings": ({}, {".config/wandb/settings": "not an ini file"}, "offline"),
}


@pytest.mark.parametrize("case", CASES)
def test_auto_goes_online_only_when_told_to(case, tmp_path, monkeypatch):
    environment, files, expected = CASES[case]
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert resolve_mode("auto") == expected


def test_a_named_mode_wins_but_never_asks_for_a_key(monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve_mode("online") == "offline"  # no key: W&B would prompt
    assert "set WANDB_API_KEY or run `wandb login`" in caplog.text
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert resolve_mode("online") == "online"


def test_disabled_means_local(folder):
    tracker = start(tracking.wandb(mode="disabled"), folder)
    tracker.finish(ok=True)
    assert not (folder / "wandb").exists()
    assert len(events(folder)) == 2


# --- options --------------------------------------------------------------------------------


def test_all_range_errors_come_at_once():
    with pytest.raises(ConfigError) as caught:
        tracking.wandb(mode="maybe", project="a/b", init_timeout=0.0)
    assert [text.split("=")[0] for text in caught.value.args] == [
        "mode",
        "project",
        "init_timeout",
    ]


OPTIONS = sorted((ROOT / "conf" / "tracking").glob("*.yaml"))


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.stem)
def test_every_yaml_holds_its_function_with_its_defaults_commented(path):
    text = path.read_text("utf-8")
    node = dict(config.compose_config([f"tracking={path.stem}"]).tracking)
    assert node.pop("_target_") == f"taqdit.tracking.{path.stem}"
    option = getattr(tracking, path.stem)
    assert option(**node) == option()
    assert set(node) == set(inspect.signature(option).parameters)
    knobs = [
        line for line in text.splitlines() if not line.startswith(("#", "_target_", "defaults"))
    ]
    assert text.startswith("# ")
    assert all(" # " in line for line in knobs)


# --- groups of sweeps -----------------------------------------------------------------------

GRID = [
    "sampler.cfg_scale=1.5,4",
    "timestep_selection=midpoint,dense_middle",
    "schedule.num_steps=9",
]


def test_the_same_sweep_is_the_same_group():
    name = group_name(GRID)
    assert name.startswith("cfg_scale=1.5,4_timestep_selection=midpoint,dense")
    assert re.fullmatch(r"[\w.,=~-]{1,64}", name)
    aside = ["output_dir=/x", "tracking=wandb", "tracking.project=p", "hydra/launcher=joblib"]
    aside += ["refresh=[statistics]", "hydra.launcher.n_jobs=2", "plots.layers=null"]
    same = [GRID[::-1], [*GRID, *aside], ["++sampler.cfg_scale=1.5, 4", *GRID[1:]]]
    same += [["schedule.num_steps=7", *GRID]]  # the last one counts, as it does for Hydra
    assert {group_name(each) for each in same} == {name}


@pytest.mark.parametrize(
    "other",
    [
        GRID[:2],
        [*GRID[:2], "schedule.num_steps=8"],
        ["sampler.cfg_scale=4,1.5", *GRID[1:]],
        [*GRID, "~tracer"],
        [*GRID, "+extra=1"],
    ],
)
def test_another_sweep_is_another_group(other):
    assert group_name(other) != group_name(GRID)


def test_a_group_says_what_is_swept_first_and_keeps_secrets():
    assert group_name(["a.b=range(1,4)", "a=[1,2]", "z=1,2"]).startswith(
        "b=range-1,4-_z=1,2_a=-1,2"
    )
    assert group_name([]) is group_name(["output_dir=/x"]) is None
    said = group_name([f"+x={KEY},b", "+my.api_key=swordfish,b"])
    assert KEY[:8] not in said
    assert "swordfish" not in said


def job_folder(home, job="0", mode="MULTIRUN", overrides=GRID, params=None):
    """A job's folder as Hydra leaves it before the job starts."""
    sweep = home / "sweeps" / "2026-01-31" / "235959_0"
    (sweep / job / ".hydra").mkdir(parents=True)
    own = {"hydra": {"mode": mode}}
    (sweep / job / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(own))
    whole = {"overrides": {"task": overrides}, "sweeper": {"params": params}}
    (sweep / "multirun.yaml").write_text(yaml.safe_dump({"hydra": whole}))
    return sweep / job


def test_a_job_reads_its_group_from_hydras_record(tmp_path):
    job = job_folder(tmp_path / "a")
    assert sweep_group(job) == sweep_group(job_folder(tmp_path / "b", "cfg/1")) == group_name(GRID)
    params = {"sampler.cfg_scale": "7,8", "timestep_selection": ["midpoint", "dense_middle"]}
    preset = job_folder(tmp_path / "c", overrides=[GRID[0], GRID[2]], params=params)
    assert sweep_group(preset) == group_name(GRID)  # the command line wins over the preset
    assert run_date(job) == "2026-01-31"
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", run_date(tmp_path / "elsewhere"))


@pytest.mark.parametrize("text", ["", "{", "- 1", "hydra: 3", "hydra: {overrides: null}", "\x00"])
def test_no_readable_record_is_no_group(tmp_path, text):
    assert sweep_group(tmp_path) is None
    assert sweep_group(job_folder(tmp_path / "single", mode="RUN")) is None
    job = job_folder(tmp_path / "sweep")
    (job.parent / "multirun.yaml").write_text(text)
    assert sweep_group(job) is None
    (job / ".hydra" / "hydra.yaml").write_text(text)
    assert sweep_group(job) is None


@pytest.mark.slow
def test_a_sweep_again_lands_in_its_group(taqdit, tmp_path):
    small = (*ANALYTIC, "tracking=local", "plots=none", "analysis=none")
    sweep = ("-m", *small, "timestep_selection=midpoint,dense_middle")
    quick = "~hydra.callbacks.sweep"  # no comparison at the end
    for arguments in ((*sweep, quick), (*sweep, quick, "refresh=[]"), small):
        done = taqdit(*arguments)
        assert done.returncode == 0, done.stderr
    jobs = [events(p.parent)[0] for p in tmp_path.glob("outputs/sweeps/*/*/*/events.jsonl")]
    assert len(jobs) == 4
    assert {job["group"] for job in jobs} == {group_name(sweep[1:])}
    ((run,),) = ([events(p)[0]] for p in tmp_path.glob("outputs/runs/*/*"))
    assert run["group"] is None
    for each in (*jobs, run):
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", each["tags"][-1])
        assert "model:tiny" in each["tags"]


# --- secrets --------------------------------------------------------------------------------


def test_what_looks_like_a_secret_is_masked(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct horse battery")
    config = {
        "wandb_api_key": "abc",
        "apiKey": "abc",
        "apikey": "abc",
        "HF_TOKEN": "abc",
        "auth": {"password": 1234, "nested": {"secret": {"deep": ["abc"]}}},
        "note": f"my key is {KEY}, keep it",
        "hub": "hf_abcdefghijklmnopqrstuvwxyz",
        "url": "https://user:pw123@host/path",
        "argument": "--x=correct horse battery",
        # these are no secrets
        "num_tokens": 77,
        "token": 589,
        "monkey": "banana",
        "sha256": "ab" * 32,
        "file": f"/hub/models--a--b/snapshots/{'0a' * 20}/mmdit.safetensors",
        "empty_key": "",
        "keep": [1, None, True, "text"],
    }
    masked = tracking.mask_secrets(config)
    assert masked == {
        "wandb_api_key": MASK,
        "apiKey": MASK,
        "apikey": MASK,
        "HF_TOKEN": MASK,
        "auth": {"password": MASK, "nested": {"secret": {"deep": [MASK]}}},
        "note": f"my key is {MASK}, keep it",
        "hub": MASK,
        "url": f"https://{MASK}@host/path",
        "argument": f"--x={MASK}",
        "num_tokens": 77,
        "token": 589,
        "monkey": "banana",
        "sha256": "ab" * 32,
        "file": f"/hub/models--a--b/snapshots/{'0a' * 20}/mmdit.safetensors",
        "empty_key": "",
        "keep": [1, None, True, "text"],
    }
    assert config["apiKey"] == "abc"  # a copy


@shows("P18", "a key in settings, texts and the environment: in no file of a run", trials=1)
def test_the_key_is_in_no_file_of_a_run(folder, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(sys, "argv", ["taqdit", f"+note={KEY}"])
    config = {"a": KEY, "api_key": "plain-secret", "b": [f"x {KEY}"]}
    tracker = start(tracking.wandb(mode="offline"), folder, config=config)
    tracker.summary({"said": KEY})
    tracker.table("t", ["text"], [[f"key {KEY}"]])
    tracker.artifact("a", kind="k", path=folder / "grid.png", metadata={"token": "plain-secret"})
    tracker.finish(ok=True)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 4
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
        assert b"plain-secret" not in path.read_bytes(), path


# --- W&B fails ------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Puts a FakeWandb in wandb's place; what hangs is let go at the end."""
    installed = []

    def install(where="", how=""):
        folder = tmp_path / f"fake{len(installed)}"
        installed.append(wandb_stub.Fake(folder, where, how, patch=monkeypatch))
        return installed[-1]

    yield install
    for each in installed:
        each.release()


QUICK = {"init_timeout": 5.0, "call_timeout": 1.0, "finish_timeout": 5.0}


def complete(tmp_path, monkeypatch):
    """The local record of a run that W&B had no part in."""
    (folder := tmp_path / "reference").mkdir()
    tracker = start(tracking.local(), folder)
    tell(tracker, folder)
    tracker.finish(ok=True)
    first, *rest = without_time(folder)
    return [first | {"wandb": {"project": "taqdit", "entity": None}}, *rest]


def taken(folder):
    """What the mirrors of a folder have said that W&B has taken."""
    path = folder / "wandb" / "mirror.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


PLACES = ("init", "log", "log_artifact", "finish")
RAISE, HANG = ([(where, how) for where in PLACES] for how in ("raise", "hang"))


@pytest.mark.parametrize(("where", "how"), slow_unless([*RAISE, ("log", "hang")], RAISE + HANG))
@shows(
    "P15",
    "W&B raises or hangs in init, log, log_artifact, finish: the record is complete",
    trials=1,
)
def test_a_wandb_that_fails_harms_nothing(where, how, folder, fake, caplog, tmp_path, monkeypatch):
    wandb = fake(where, how)
    waits = QUICK | ({f"{where}_timeout": 1.0} if where in ("init", "finish") else {})
    tracker = start(tracking.wandb(mode="offline", **waits), folder)
    tell(tracker, folder)
    tracker.finish(ok=True)
    assert without_time(folder) == complete(tmp_path, monkeypatch)
    assert wandb.calls.count(where) == 1  # reached once, and never called again
    assert wandb.hangs == (how == "hang")
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"W&B: {where if where != 'log' else 'scalars'}".replace("log_", ""))
    assert f"from here on events.jsonl alone; finish it: taqdit sync {folder}" in warning
    assert KEY not in warning
    assert "\n" not in warning
    assert taken(folder) == []


def test_the_fake_is_fair(folder, fake, caplog):
    """Without a fault everything reaches it, so the tests above can fail."""
    wandb = fake()
    tracker = start(tracking.wandb(mode="offline", **QUICK), folder)
    tell(tracker, folder)
    tracker.finish(ok=True)
    assert warnings_of(caplog) == []
    assert wandb.calls == ["init", *["log"] * 9, "log_artifact", "finish"]
    assert wandb.summary == {"points": 20}
    assert wandb.options["id"] == "r1"
    assert taken(folder) == [{"run_id": "r1", "online": False, "events": len(events(folder))}]
    assert "wandb_stub.FakeWandb" not in str(sys.modules.get("wandb"))  # not in this process


def test_lineage_is_told_online_only(folder, fake, monkeypatch):
    for mode in ("offline", "online"):
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        wandb = fake()
        tracker = start(tracking.wandb(mode=mode, **QUICK), folder, run_id=mode)
        tracker.uses("set 1", kind="trajectories", path=folder / "data")
        tracker.finish(ok=True)
        assert wandb.calls[1:-1] == (["use set-1"] if mode == "online" else [])
        assert wandb.config == {"uses": {"trajectories": "set 1"}}


@pytest.mark.parametrize("how", ["exit", "crash"])
def test_a_wandb_that_exits_harms_nothing(folder, fake, caplog, how):
    fake("init", how)
    tracker = start(tracking.wandb(mode="offline", **QUICK), folder)
    tracker.finish(ok=True)
    (warning,) = warnings_of(caplog)
    assert {"exit": "init failed (SystemExit: 1)", "crash": "(exit code 3)"}[how] in warning


def test_a_wandb_that_is_not_installed_harms_nothing(folder, tmp_path, caplog, monkeypatch):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "wandb.py").write_text("raise ModuleNotFoundError('no wandb')")
    monkeypatch.syspath_prepend(str(tmp_path / "none"))
    tracker = start(tracking.wandb(mode="offline", **QUICK), folder)
    tracker.finish(ok=True)
    (warning,) = warnings_of(caplog)
    assert "init failed (ModuleNotFoundError: no wandb)" in warning


@pytest.mark.parametrize("fault", [OSError(12, "Cannot allocate memory")])
def test_a_process_that_cannot_be_started_harms_nothing(folder, caplog, monkeypatch, fault):
    def refuse(*_, **__):
        raise fault

    monkeypatch.setattr("taqdit.tracking.process.subprocess.Popen", refuse)
    tracker = start(tracking.wandb(mode="offline", **QUICK), folder)
    tracker.scalars({"a": 0.0}, axis={})
    tracker.finish(ok=True)
    (warning,) = warnings_of(caplog)
    assert "cannot be started ([Errno 12] Cannot allocate memory)" in warning
    assert len(events(folder)) == 3


def test_a_slow_wandb_loses_nothing(folder, fake, caplog):
    """Events wait in events.jsonl, however many; nothing is dropped."""
    wandb = fake("log", "hang")
    patient = {"init_timeout": 60.0, "call_timeout": 60.0, "finish_timeout": 60.0}
    tracker = start(tracking.wandb(mode="offline", **patient), folder)
    tracker.scalars({"a": 0.0}, axis={})
    wandb.wait()
    for i in range(1, 2000):
        tracker.scalars({"a": float(i)}, axis={})
    wandb.release()
    tracker.finish(ok=True)
    assert wandb.rows == [{"a": float(i)} for i in range(2000)]
    assert warnings_of(caplog) == []


@shows("P15", "W&B's own service process is killed in mid-run", trials=1)
def test_a_crash_of_the_service_harms_nothing(folder, caplog, tmp_path, monkeypatch):
    tracker = start(tracking.wandb(mode="offline", **QUICK | {"init_timeout": 60.0}), folder)
    while not tracker.location.endswith("-r1"):
        tracker.summary({"points": 0})
        time.sleep(0.05)
    child = tracker._sinks[1]._mirror._child.pid
    (service,) = processes("wandb-core", f"--pid {child}")
    os.kill(service, signal.SIGKILL)
    assert gone("wandb-core", f"--pid {child}")
    tell(tracker, folder)
    tracker.finish(ok=True)
    (warning,) = warnings_of(caplog)
    assert "from here on events.jsonl alone" in warning
    told = [
        event
        for event in without_time(folder)
        if event != {"kind": "summary", "values": {"points": 0}}
    ]
    assert told == complete(tmp_path, monkeypatch)
    assert gone("taqdit.tracking.mirror", str(folder))


@pytest.mark.slow
def test_a_killed_mirror_takes_the_service_with_it(folder):
    tracker = start(tracking.wandb(mode="offline"), folder)
    while not tracker.location.endswith("-r1"):
        tracker.summary({"points": 0})
        time.sleep(0.05)
    mirror = tracker._sinks[1]._mirror
    child = mirror._child.pid
    assert processes("wandb-core", f"--pid {child}")
    mirror.stop("enough")
    assert gone("wandb-core", f"--pid {child}")
    tracker.finish(ok=True)


def test_a_failure_is_told_while_the_run_goes_on(folder, fake, caplog):
    fake("init", "raise")
    tracker = start(tracking.wandb(mode="offline", **QUICK), folder)
    deadline = time.monotonic() + 60
    while not warnings_of(caplog) and time.monotonic() < deadline:
        tracker.scalars({"a": 0.0}, axis={})
        time.sleep(0.05)
    (warning,) = warnings_of(caplog)
    tracker.finish(ok=True)
    assert warnings_of(caplog) == [warning]


def test_two_mirrors_in_one_process_are_two_runs(folder, fake, tmp_path):
    (second := tmp_path / "second").mkdir()
    wandb = fake()
    trackers = [
        start(tracking.wandb(mode="offline", **QUICK), where, run_id=where.name)
        for where in (folder, second)
    ]
    for number, tracker in enumerate(trackers):
        tracker.scalars({"a": number}, axis={})
    for tracker in trackers:
        tracker.finish(ok=True)
    assert sorted(wandb.rows, key=lambda row: row["a"]) == [{"a": 0}, {"a": 1}]
    assert [each["run_id"] for where in (folder, second) for each in taken(where)] == [
        "run",
        "second",
    ]


@pytest.mark.slow
def test_one_failed_run_does_not_spoil_the_next(folder, fake, tmp_path):
    first = fake("log", "hang")
    tracker = start(tracking.wandb(mode="offline", **QUICK), folder)
    tracker.scalars({"a": 0.0}, axis={})
    tracker.finish(ok=True)
    assert first.hangs
    second = fake()
    tracker = start(tracking.wandb(mode="offline", **QUICK), folder, run_id="r2")
    tracker.scalars({"a": 1.0}, axis={})
    tracker.finish(ok=True)
    assert second.calls == ["init", "log", "finish"]
    assert second.rows == [{"a": 1.0}]  # not those of the other run in the folder's events.jsonl


def test_a_forked_process_leaves_the_mirror_to_its_parent(folder, fake):
    wandb = fake()
    tracker = start(tracking.wandb(mode="offline", **QUICK), folder)
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            del tracker
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    tracker.scalars({"a": 0.0}, axis={})
    if (child := os.fork()) == 0:  # one that outlives the run, and holds what it inherited
        time.sleep(60)
        os._exit(0)
    tracker.finish(ok=True)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert wandb.rows == [{"a": 0.0}]
    assert wandb.exit_codes == [0]


# --- whole processes ------------------------------------------------------------------------

RUN = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from taqdit import tracking
folder = Path(sys.argv[1])
options = tracking.auto(init_timeout=1.0, call_timeout=1.0, finish_timeout=1.0)
tracker = options.start(folder, run_id="r1", name="n", config={})
tracker.scalars({"a": 1.0}, axis={"step": 0})
"""


def python(code, folder, *arguments, path="", start_new_session=False, **environment):
    """Run code in a fresh interpreter that knows no key and may not report errors home unasked."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    env = {**kept, "HOME": str(folder), "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", **environment}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        start_new_session=start_new_session,
    )


SLEEPY = """
import atexit, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
def sleep(*_, **__): time.sleep(600)
def hook():
    pathlib.Path(folder, "hook").touch()
    sleep()
class Run:
    dir, url, summary = "x/files", "", {}
    log = define_metric = lambda *_, **__: None
    finish = lambda *_, **__: None
setup = Settings = lambda **_: None
def init(**_):
    atexit.register(hook)
    pathlib.Path(folder, "begun").touch()
    return Run()
"""
BEGUN = """
import time
while not (folder / "begun").exists():
    time.sleep(0.01)
"""
FAULTS = {
    "import": ("import time; time.sleep(600)", "tracker.finish(ok=True)", 1),
    "init": (SLEEPY + "init = sleep", "tracker.finish(ok=True)", 1),
    "log": (SLEEPY + "Run.log = sleep", "tracker.finish(ok=True)", 1),
    "finish": (SLEEPY + "Run.finish = sleep", "tracker.finish(ok=True)", 1),
    "exit hook": (SLEEPY, "tracker.finish(ok=True)", 0),
    "never finished": (SLEEPY + "Run.finish = sleep", BEGUN, 0),  # nobody is there to hear of it
}


def processes(*words):
    """Ids of the processes whose command line holds all the words."""
    lines = subprocess.check_output(["ps", "-eww", "-o", "pid=,args="], text=True).splitlines()
    found = [line.split(None, 1) for line in lines]
    return [int(pid) for pid, line in found if all(word in line for word in words)]


def gone(*words, patience=30):
    """Whether such processes are gone, or go soon."""
    deadline = time.monotonic() + patience
    while processes(*words):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("fault", slow_unless(["log"], FAULTS))
@shows("P15", "W&B sleeps in import, init, log, finish, its exit hook: the process ends", trials=1)
def test_the_process_ends_though_wandb_sleeps(fault, tmp_path):
    module, ending, warned = FAULTS[fault]
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(module)
    (tmp_path / "run").mkdir()
    code = RUN + ending + "\nprint('done'); sys.exit(7)"
    done = python(code, tmp_path / "run", path=tmp_path / "fake")
    assert done.returncode == 7
    assert done.stdout == "done\n"
    assert len(done.stderr.splitlines()) == warned, done.stderr
    kinds = [event["kind"] for event in events(tmp_path / "run")]
    assert kinds == ["run", "scalars", *["finish"] * ("finish(" in ending)]
    assert gone("taqdit.tracking.mirror", str(tmp_path))  # what hung was killed
    # wandb's own exit hook is run, for a while, unless wandb has failed before
    assert (tmp_path / "run" / "hook").exists() == (fault == "exit hook")


DEAD = """
import os, signal
tracker.scalars({"a": 2.0}, axis={"step": 1})
with (folder / "events.jsonl").open("a") as file:
    file.write('{"kind": "scal')
"""


@pytest.mark.parametrize("begun", [True, False])
@shows("P15", "the run is killed: its mirror takes what events.jsonl holds", trials=1)
def test_the_mirror_of_a_killed_run_ends_its_record(begun, tmp_path):
    fake = wandb_stub.Fake(tmp_path / "fake")
    (folder := tmp_path / "run").mkdir()
    wait = f"\nimport time\nwhile not Path({str(fake.folder / 'calls.jsonl')!r}).exists():"
    code = RUN.replace("=1.0", "=20.0") + DEAD + begun * (wait + " time.sleep(0.01)")
    done = python(code + "\nos.kill(os.getpid(), signal.SIGKILL)", folder, path=fake.folder)
    assert done.returncode == -signal.SIGKILL
    assert gone("taqdit.tracking.mirror", str(folder))
    assert fake.rows == [{"step": 0, "a": 1.0}, {"step": 1, "a": 2.0}]
    assert fake.exit_codes == [1]
    assert taken(folder) == [{"run_id": "r1", "online": False, "events": 3}]


def test_a_key_press_that_ends_the_run_does_not_reach_its_mirror(tmp_path):
    """Ctrl-C goes to all processes of the terminal's group."""
    fake = wandb_stub.Fake(tmp_path / "fake")
    (folder := tmp_path / "run").mkdir()
    code = RUN.replace("=1.0", "=20.0") + (
        # Short naps: a signal that another thread takes does not end a wait of the main one.
        "import os, signal, time\n"
        "try:\n    os.killpg(0, signal.SIGINT)\n    while True:\n        time.sleep(0.01)\n"
        "except KeyboardInterrupt:\n    tracker.finish(ok=False)\n"
    )
    done = python(code, folder, path=fake.folder, start_new_session=True)
    assert done.returncode == 0, done.stderr
    assert fake.rows == [{"step": 0, "a": 1.0}]
    assert fake.exit_codes == [1]


def test_the_key_is_in_no_command_line(tmp_path):
    fake = wandb_stub.Fake(tmp_path / "fake")
    (folder := tmp_path / "run").mkdir()
    code = RUN.replace("=1.0", "=20.0") + (
        "import subprocess\n"
        "print(subprocess.check_output(['ps', '-eww', '-o', 'args='], text=True))\n"
        "tracker.finish(ok=True)\n"
    )
    done = python(code, folder, path=fake.folder, WANDB_API_KEY=KEY)
    (line,) = [
        each for each in done.stdout.splitlines() if str(folder) in each and "mirror" in each
    ]
    assert KEY not in done.stdout
    assert "taqdit.tracking.mirror" in line
    assert fake.options["mode"] == "online"  # but it has the key


@shows("P18", "an online run: neither command line nor key is sent", trials=1)
@pytest.mark.slow
def test_the_command_line_and_the_key_stay_at_home(tmp_path):
    with wandb_stub.Server() as server:
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        code = RUN.replace("=1.0", "=60.0") + "tracker.finish(ok=True)"
        done = python(code, tmp_path, "+my.password=swordfish", **environment)
        sent = [server.config, server.history, *server.files.values()]
    assert (done.returncode, done.stderr) == (0, "")
    assert server.exit_codes == [0]
    assert "swordfish" not in str(sent)
    assert KEY not in str(sent)


@shows("P15", "a server that stops answering in mid-run", trials=1)
@pytest.mark.slow
def test_an_outage_in_mid_run_costs_the_patience_it_was_given(tmp_path):
    with wandb_stub.Server(stall=True) as server:
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        code = RUN.replace("init_timeout=1.0", "init_timeout=60.0") + "tracker.finish(ok=True)"
        done = python(code, tmp_path, **environment)
        assert "UpsertBucket" in server.operations  # it did go online
        assert server.exit_codes == []
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("W&B: finish did not end within 1 s; ")
    assert f"finish it: taqdit sync {tmp_path}" in warning
    assert [event["kind"] for event in events(tmp_path)] == ["run", "scalars", "finish"]


WATCH = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments[0]
        host = address[0] if isinstance(address, tuple) else str(address)
        if not host.startswith(("/", "127.", "localhost")):
            print("NETWORK", event, address, flush=True)
sys.addaudithook(watch)
"""


def test_auto_without_a_key_asks_nothing_and_touches_no_network(tmp_path):
    """Python's sockets are watched; wandb's own process would have to use the proxy."""
    import socket

    seen = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.settimeout(0.0)
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        proxies = {n: proxy for name in names for n in (name, name.lower())}
        code = WATCH + RUN + "tracker.finish(ok=True); print(tracker.location)"
        code = code.replace("1.0, call_timeout=1.0, finish_timeout=1.0", "60.0")
        code += "; print('LOADED', [name for name in sys.modules if 'wandb' in name])"
        done = python(code, tmp_path, NO_PROXY="", no_proxy="", **proxies)
        with contextlib.suppress(BlockingIOError):
            seen.append(listener.accept())
    assert done.returncode == 0
    assert seen == []
    assert done.stderr == ""
    assert "NETWORK" not in done.stdout
    assert "offline-run-" in done.stdout
    assert "LOADED []" in done.stdout  # the run itself never loads wandb
    assert wandb_files.read_run(tmp_path).column("a") == [1.0]


def test_options_are_light():
    code = (
        "import sys; from taqdit import tracking; tracking.auto(); tracking.wandb();"
        "print([m for m in ('wandb', 'matplotlib', 'mlx', 'pydantic') if m in sys.modules])"
    )
    assert python(code, ROOT).stdout == "[]\n"


LOCKED = """
import ctypes, pathlib
class Settings:
    def __init__(self, **_): pass
def setup(settings=None): pass
class errors:
    class CommError(Exception): pass
def init(**_):
    pathlib.Path(__file__).parent.with_name("locked").touch()
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex), lock(mutex)  # begins anew after each signal
"""


@pytest.mark.slow
def test_a_mirror_that_hangs_in_c_does_not_outlive_a_killed_run(tmp_path):
    """No Python handler of a signal runs there, and nobody is left to kill it."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(LOCKED)
    (folder := tmp_path / "run").mkdir()
    code = RUN + "import os, signal\n"
    code += f"while not Path({str(tmp_path / 'locked')!r}).exists(): pass\n"
    done = python(code + "os.kill(os.getpid(), signal.SIGKILL)", folder, path=tmp_path / "fake")
    assert done.returncode == -signal.SIGKILL
    assert gone("taqdit.tracking.mirror", str(folder))


def test_what_an_interpreter_says_while_it_starts_is_not_taken_for_the_mirrors(folder, tmp_path):
    fake = wandb_stub.Fake(tmp_path / "fake")
    lines = "print('hello')\nprint(3)\n"
    (fake.folder / "sitecustomize.py").write_text(lines)
    code = RUN.replace("=1.0", "=20.0") + "tracker.finish(ok=True)"
    done = python(code, folder, path=fake.folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert fake.rows == [{"step": 0, "a": 1.0}]
