"""Activation statistics in the tracker: one row a step, charts, references, and what W&B gets."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wandb_files
import wandb_stub
from conftest import slow_unless
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from taqdit.tracking import options as tracking
from taqdit.tracking.plain import merge_bins

ROOT = Path(__file__).resolve().parent.parent
KEY = wandb_stub.SECRET
SITES = ("mm_00_img.post_gelu", "mm_01_txt.qkv_in")
STEPS = 3
EDGES = np.array([-1.0, -1 / 3, 0.1, 2.0, 16.0])
PRINT = "ab" * 32  # a fingerprint
INPUTS = [
    {
        "name": "trajectories-abc",
        "type": "trajectories",
        "path": "store/t/abc",
        "fingerprint": PRINT,
    }
]


@pytest.fixture
def folder(tmp_path):
    """A run's folder, with statistics and a figure."""
    made = tmp_path / "run"
    for name in ("statistics", "trajectories"):
        (made / name).mkdir(parents=True)
        (made / name / "0.safetensors").write_text(name)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(made / "heatmap.png")
    return made


def start(options, folder, **config):
    return options.start(folder, run_id="r1", name="first", config={"num_steps": STEPS, **config})


def offline(**waits):
    return tracking.wandb(mode="offline", **waits)


def axis(step):
    return {"step": step, "sigma": 1 - step / 4, "timestep": 1000 - 250.0 * step}


def counts(step, place):
    return np.array([step, 10 * place, 3, 4])


def tell(tracker, folder):
    """What a run tells of its activations."""
    tracker.uses("trajectories-abc", kind="trajectories", path=folder / "trajectories")
    for step in range(STEPS):
        tracker.histograms(
            {f"values/{site}": (counts(step, i), EDGES) for i, site in enumerate(SITES)},
            axis=axis(step),
            scalars={f"absmax/{site}": step + i for i, site in enumerate(SITES)},
        )
    x = [axis(step)["timestep"] for step in range(STEPS)]
    ys = {site: np.arange(3.0) + i for i, site in enumerate(SITES)}
    tracker.curves("curves/absmax", x=x, ys=ys, x_name="timestep")
    tracker.table("sites", ["site", "absmax"], [[site, 2.5] for site in SITES])
    tracker.image("figures/heatmap", folder / "heatmap.png", "mean")
    metadata = {"inputs": INPUTS, "sites": len(SITES)}
    path = folder / "statistics"
    tracker.artifact("statistics-def", kind="statistics", path=path, metadata=metadata)
    tracker.summary({"absmax": 3.5})


def events(folder, kind):
    lines = (folder / "events.jsonl").read_text("utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def words_of(caplog):
    """What taqdit said, and every warning of anybody."""
    ours = [r for r in caplog.records if r.name.startswith("taqdit") or r.levelno > logging.INFO]
    return [record.getMessage() for record in ours]


ROWS = [
    {
        **axis(step),
        **{f"absmax/{site.replace('.', '/')}": step + i for i, site in enumerate(SITES)},
        **{
            f"values/{site.replace('.', '/')}": {
                "_type": "histogram",
                "values": counts(step, i).tolist(),
                "bins": [-1, -0.3333333, 0.1, 2, 16],
            }
            for i, site in enumerate(SITES)
        },
    }
    for step in range(STEPS)
]
LINES = [[axis(s)["timestep"], site, s + i] for i, site in enumerate(SITES) for s in range(STEPS)]


# --- the local record -----------------------------------------------------------------------


def test_a_step_is_one_line(folder):
    tracker = start(tracking.local(), folder)
    tell(tracker, folder)
    for step, line in enumerate(events(folder, "histograms")):
        del line["time"]
        assert line == {
            "kind": "histograms",
            "axis": axis(step),
            "along": "timestep",
            "scalars": {f"absmax/{site}": step + i for i, site in enumerate(SITES)},
            "values": {
                f"values/{site}": {
                    "counts": counts(step, i).tolist(),
                    "edges": [-1.0, -0.3333333, 0.1, 2.0, 16.0],
                }
                for i, site in enumerate(SITES)
            },
        }
    assert step == STEPS - 1
    text = (folder / "events.jsonl").read_text("utf-8")
    assert '"counts": [0, 0, 3, 4], "edges": [-1.0, -0.3333333, 0.1, 2.0, 16.0]' in text
    assert str(folder.parent) not in text


@pytest.mark.parametrize(("sites", "bins"), [(1, 512), (8, 512), (30, 128), (64, 64), (191, 64)])
def test_the_more_histograms_a_row_has_the_fewer_bins_has_each(sites, bins, folder):
    tracker = start(tracking.local(), folder)
    counted = np.arange(1024) ** 2, np.geomspace(1, 3, 1025)
    tracker.histograms({f"h{i}": counted for i in range(sites)}, axis=axis(0))
    (line,) = events(folder, "histograms")
    assert len(line["values"]) == sites
    for found in line["values"].values():
        assert (len(found["counts"]), len(found["edges"])) == (bins, bins + 1)
        assert sum(found["counts"]) == sum(i * i for i in range(1024))
        assert (found["edges"][0], found["edges"][-1]) == (1, 3)
        assert sorted(set(found["edges"])) == found["edges"]


@given(
    st.lists(st.floats(0, 1e9) | st.integers(0, 2**40), min_size=1, max_size=300),
    st.integers(1, 40),
)
def test_whole_counts_stay_with_the_given_ones(given_counts, most):
    edges = np.arange(len(given_counts) + 1.0)
    merged, where = merge_bins(np.array(given_counts, float), edges, most=most)
    assert len(merged) <= most
    assert {type(count) for count in merged} == {int}
    assert min(merged) >= 0
    for place, edge in enumerate(where):  # at every edge as many values lie below as before
        below = math.fsum(given_counts[: int(edge)])
        assert abs(sum(merged[:place]) - below) <= 0.5 + 1e-9 * below


def test_counts_of_short_floats_add_up():
    short = np.array([2**24, 1], np.float32)
    assert merge_bins(short, np.arange(3.0), most=1)[0] == [2**24 + 1]


def test_what_does_not_fit_together_is_refused(folder):
    tracker = start(tracking.local(), folder)
    counted = [1, 2], [0, 1, 2]
    with pytest.raises(ValueError, match="along='timestep' must be a name in axis: step, sigma"):
        tracker.histograms({"h": counted}, axis={"step": 1, "sigma": 0.5})
    with pytest.raises(ValueError, match="b is both a histogram and a number"):
        tracker.histograms({"a": counted, "b": counted}, axis=axis(0), scalars={"b": 1.0})
    with pytest.raises(ValueError, match="h: 2 counts need one more edge, not 2"):
        tracker.histograms({"h": ([1, 2], [0, 1])}, axis=axis(0))
    with pytest.raises(ValueError, match="h: 0 counts need"):
        tracker.histograms({"h": ([], [0])}, axis=axis(0))
    assert events(folder, "histograms") == []


# --- what W&B is told -----------------------------------------------------------------------


def nested(row):
    """A row of the .wandb file in the form it was logged in."""
    made = {}
    for name, value in row.items():
        key, _, part = name.partition(".")
        if part and not key.startswith("_"):
            made.setdefault(key, {})[part] = value
        elif not key.startswith("_"):
            made[name] = value
    return made


@pytest.mark.slow
def test_every_call_can_be_read_back_from_the_offline_file(folder):
    tracker = start(offline(), folder)
    tell(tracker, folder)
    tracker.finish(ok=True)
    found = wandb_files.read_run(folder)
    (files,) = folder.glob("wandb/offline-run-*/files")
    rows = [nested(row) for row in found.history]
    assert rows[:STEPS] == ROWS
    (chart,), (table,), (image,) = rows[STEPS:] and (row.values() for row in rows[STEPS:])
    assert [list(row) for row in rows[STEPS:]] == [
        ["curves/absmax_table"],
        ["sites"],
        ["figures/heatmap"],
    ]
    assert json.loads((files / chart["path"]).read_text("utf-8"))["data"] == LINES
    sites = json.loads((files / table["path"]).read_text("utf-8"))
    assert sites["data"] == [[site, 2.5] for site in SITES]
    assert sites["columns"] == ["site", "absmax"]
    assert (files / image["path"]).read_bytes() == (folder / "heatmap.png").read_bytes()
    assert image["caption"] == "mean"
    (made,) = [each for each in found.artifacts if each["type"] == "statistics"]
    assert made["name"] == "statistics-def"
    assert made["metadata"] == {"inputs": INPUTS, "sites": 2}
    reference = folder / "statistics" / "0.safetensors"
    assert made["entries"] == {"0.safetensors": reference.as_uri()}
    assert found.summary["absmax"] == 3.5
    assert found.config["num_steps"] == STEPS
    assert found.config["uses"] == {"trajectories": "trajectories-abc"}
    panel = found.config["_wandb.visualize.curves/absmax"]["panel_config"]
    assert panel["stringSettings"] == {"title": "curves/absmax", "xname": "timestep"}
    assert found.hidden == {"step", "sigma", "timestep"}
    drawn = {name: x for name, x in found.metrics.items() if x}
    assert drawn == dict.fromkeys(set(ROWS[0]) - found.hidden, "timestep")
    assert found.exit_code == 0


def chart(folder):
    """The rows of the one chart of an offline run."""
    (path,) = wandb_files.read_run(folder).column("c_table.path")
    (file,) = folder.glob(f"wandb/offline-run-*/files/{path}")
    return json.loads(file.read_text("utf-8"))["data"]


@pytest.mark.parametrize(
    ("curves", "points", "shown"),
    slow_unless(
        [(191, 50, 64)],
        [(30, 30, 30), (64, 100, 64), (65, 2, 64), (191, 50, 64), (191, 1000, 10), (3, 20000, 1)],
    ),
)
def test_a_chart_has_the_lines_that_can_be_drawn(curves, points, shown, folder, caplog):
    caplog.set_level(logging.INFO, logger="taqdit")
    tracker = start(offline(), folder)
    ys = {f"site_{i:03d}": np.full(points, float(i)) for i in range(curves)}
    tracker.curves("c", x=np.arange(points), ys=ys, x_name="timestep")
    tracker.finish(ok=True)
    (line,) = events(folder, "curves")
    assert line["ys"] == {name: y.tolist() for name, y in ys.items()}
    rows = chart(folder)
    keys = list(dict.fromkeys(key for _, key, _ in rows))
    assert len(keys) == shown
    assert keys == sorted(keys)
    assert keys[0] == "site_000"
    if shown > 1:
        assert keys[-1] == f"site_{curves - 1:03d}"
    assert len(rows) == min(shown * points, 10000)  # no more are kept by W&B
    words = f"W&B: the chart c shows {shown} of {curves} curves; events.jsonl has them all"
    assert words_of(caplog) == [words] * (shown < curves)


@pytest.mark.slow
def test_what_is_no_number_is_a_gap_in_a_curve(folder, caplog):
    tracker = start(offline(), folder)
    ys = {"a": [math.nan, 1.0], "b": [1.0, math.inf], "c": [math.nan, -math.inf]}
    tracker.curves("c", x=[0.0, 1.0], ys=ys, x_name="timestep")
    tracker.finish(ok=True)
    assert words_of(caplog) == []
    assert [y for *_, y in chart(folder)] == [None, 1, 1, None, None, None]


# --- a server -------------------------------------------------------------------------------


def python(*arguments, home, **environment):
    """Runs Python for a user whose home is another folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def track(folder, server, how, monkeypatch):
    """Tells everything to the server: at once, or by `wandb sync` of an offline run."""
    if how == "sync":
        tracker = start(offline(), folder)
        tell(tracker, folder)
        tracker.finish(ok=True)
        assert wandb_files.read_run(folder).exit_code == 0
        (run,) = folder.glob("wandb/offline-run-*")
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        done = python("-m", "wandb", "sync", str(run), home=os.environ["HOME"], **environment)
        assert done.returncode == 0, done.stderr
        return
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = start(tracking.auto(), folder)
    tell(tracker, folder)
    tracker.finish(ok=True)


@pytest.mark.parametrize("how", slow_unless(["online"], ["online", "sync"]))
def test_a_server_gets_everything(how, folder, monkeypatch, caplog):
    with wandb_stub.Server() as server:
        track(folder, server, how, monkeypatch)
    rows = [{k: v for k, v in row.items() if k[0] != "_"} for row in server.history]
    assert rows[:STEPS] == ROWS
    assert [list(row) for row in rows[STEPS:]] == [
        ["curves/absmax_table"],
        ["sites"],
        ["figures/heatmap"],
    ]
    assert server.table("curves/absmax_table") == LINES
    assert server.table("sites") == [[site, 2.5] for site in SITES]
    (image,) = server.column("figures/heatmap")
    assert server.files[image["path"]] == (folder / "heatmap.png").read_bytes()
    made = server.artifact("statistics-def")
    assert made["type"] == "statistics"
    assert json.loads(made["metadata"]) == {"inputs": INPUTS, "sites": 2}
    reference = folder / "statistics" / "0.safetensors"
    assert made["entries"] == {"0.safetensors": reference.as_uri()}
    assert server.config["uses"]["value"] == {"trajectories": "trajectories-abc"}
    assert "curves/absmax" in server.config["_wandb"]["value"]["visualize"]
    names = [each.get("1") for each in server.config["_wandb"]["value"]["m"]]
    assert sorted(names) == sorted(ROWS[0])
    assert json.loads(server.files["wandb-summary.json"])["absmax"] == 3.5
    assert server.exit_codes == [0]
    assert server.used == ["trajectories-abc"] * (how == "online")  # W&B has no other way
    assert words_of(caplog) == []


@pytest.mark.slow
def test_a_trajectory_set_that_cannot_be_linked_costs_nothing_else(folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="taqdit")
    with wandb_stub.Server(refuse=True) as server:
        track(folder, server, "online", monkeypatch)
    assert len(server.history) == STEPS + 3
    assert server.exit_codes == [0]
    (words,) = words_of(caplog)
    assert words.startswith("W&B: trajectories-abc is not linked to this run (ValueError")
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


# --- secrets --------------------------------------------------------------------------------


def test_the_key_is_in_none_of_the_new_records(folder, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = start(offline(), folder)
    counted = [1, 2], [0, 1, 2]
    tracker.histograms({"h": counted}, axis=axis(0), scalars={"s": KEY})
    tracker.curves("c", x=[0, 1], ys={"a": [1, 2]}, x_name=KEY)
    tracker.uses(f"set {KEY}", kind=f"kind {KEY}", path=folder / "trajectories")
    inputs = [{**INPUTS[0], "api_key": "plain-secret", "name": KEY, "password": [12345678]}]
    path = folder / "statistics"
    tracker.artifact("a", kind="statistics", path=path, metadata={"inputs": inputs})
    tracker.finish(ok=True)
    (made,) = events(folder, "artifact")
    masked = {"api_key": "***", "name": "***", "password": ["***"]}
    assert made["metadata"]["inputs"] == [INPUTS[0] | masked]  # the fingerprint is no secret
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        for secret in (KEY, "plain-secret", "12345678"):
            assert secret.encode() not in path.read_bytes(), path


# --- much of it -----------------------------------------------------------------------------


def much(tracker, *, steps, sites, bins):
    """As much as a long run of a large model tells."""
    draw = np.random.default_rng(0)
    edges = np.sort(draw.normal(size=bins + 1))
    for step in range(steps):
        tracker.histograms(
            {f"values/{i}": (draw.integers(0, 10**6, bins), edges) for i in range(sites)},
            axis={"timestep": 1000 - step},
            scalars={f"absmax/{i}": 1.5 for i in range(sites)},
        )


@pytest.mark.slow
def test_a_whole_run_waits_for_a_wandb_that_is_slow_to_begin(folder, tmp_path, monkeypatch, caplog):
    wandb = wandb_stub.Fake(tmp_path / "fake", "init", "hang", patch=monkeypatch)
    tracker = start(offline(init_timeout=60.0), folder)
    wandb.wait()
    much(tracker, steps=100, sites=191, bins=2)
    for step in range(31):
        tracker.scalars({"latent/mean": 0.0}, axis=axis(step))
    for i in range(6):
        tracker.curves(f"c{i}", x=[0, 1], ys={"a": [0, 1]}, x_name="timestep")
    for i in range(60):
        tracker.image(f"figures/{i}", folder / "heatmap.png")
    tracker.table("sites", ["site"], [["a"]])
    assert wandb.rows == []
    wandb.release()
    tracker.finish(ok=True)
    assert len(wandb.rows) == 100 + 31 + 6 + 60 + 1
    assert words_of(caplog) == []


@pytest.mark.slow
def test_a_long_run_of_a_large_model_loses_nothing(folder, caplog):
    tracker = start(offline(), folder)
    much(tracker, steps=100, sites=191, bins=512)
    tracker.finish(ok=True)
    assert words_of(caplog) == []
    history = wandb_files.read_run(folder, patience=60).history
    assert [row["timestep"] for row in history] == list(range(1000, 900, -1))
    assert {len(row) for row in history} == {len(history[0])}
    assert len(events(folder, "histograms")) == 100
    for path in [folder / "events.jsonl", *folder.rglob("*.wandb")]:
        assert path.stat().st_size < 64e6
