"""`taqdit sync`: what W&B has not, or not wholly, it gets from events.jsonl; nothing twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb_stub
from conftest import slow_unless
from ledger import shows

from taqdit.cli import verbs as cli
from taqdit.errors import StorageError

ROOT = Path(__file__).resolve().parent.parent
RUN = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from taqdit import tracking
folder = Path(sys.argv[1])
folder.mkdir(parents=True)
waits = dict(init_timeout=60.0, call_timeout=60.0, finish_timeout=float(sys.argv[2]))
tracker = tracking.auto(project="mine", **waits).start(folder, run_id="r1", name="n", config={})
for step in range(20):
    tracker.scalars({"a": float(step)}, axis={"step": step})
tracker.table("t", ["x"], [[1], [2]])
tracker.summary({"points": 20})
exec(sys.stdin.read())
tracker.scalars({"a": 20.0}, axis={"step": 20})
tracker.finish(ok=True)
print("went on")
"""
KILLED = """
import os, signal, time
while not tracker._sinks[1].location:
    tracker._sinks[1].emit("", {})
    time.sleep(0.05)
time.sleep(0.5)  # some of it has been handed over
os.kill(tracker._sinks[1]._mirror._child.pid, signal.SIGKILL)
time.sleep(0.2)
"""


def broken_off(folder, server, *, in_midst="", patience=60.0):
    """A run online whose mirror does not come to its end; what the run said."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    env |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": wandb_stub.SECRET}
    env |= {"WANDB_ERROR_REPORTING": "false", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", RUN, str(folder), str(patience)]
    done = subprocess.run(
        line, input=in_midst, env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
    return done.stderr


def every_event_once(server):
    (rows,) = server.rows.values()
    assert server.column("a") == [float(step) for step in range(21)]
    assert len(rows) == 22
    assert server.table("t") == [[1], [2]]
    assert server.summaries["r1"]["points"] == 20
    assert server.exit_codes[-1] == 0
    assert list(server.runs) == ["r1"]


@pytest.mark.slow
@shows("P15", "the mirror is killed in the midst: `taqdit sync` finishes the run", trials=1)
def test_sync_finishes_a_run_whose_mirror_was_killed(taqdit, tmp_path):
    folder = tmp_path / "outputs" / "runs" / "r"
    with wandb_stub.Server() as server:
        (warning,) = broken_off(folder, server, in_midst=KILLED).splitlines()
        advice = f"from here on events.jsonl alone; finish it: taqdit sync {folder}"
        assert warning == f"W&B: its process ended (signal 9); {advice}"
        assert 20.0 not in server.column("a")
        known = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": wandb_stub.SECRET}
        done = taqdit("sync", **known)
        assert done.returncode == 0, done.stderr
        address = f"{server.url}/tester/mine/runs/r1"
        assert done.stdout == f"uploaded: outputs/runs/r -> {address}\n1 uploaded, 0 were already\n"
        every_event_once(server)
        assert taqdit("sync", **known).stdout == "0 uploaded, 1 were already\n"
        (folder / "wandb" / "mirror.jsonl").unlink()  # as if the last word had been lost
        assert taqdit("sync", **known).stdout.endswith("1 uploaded, 0 were already\n")
        every_event_once(server)


@pytest.mark.slow
@shows("P15", "the network is lost in mid-run: `taqdit sync` finishes the run", trials=1)
def test_sync_finishes_a_run_whose_network_was_lost(taqdit, tmp_path):
    folder = tmp_path / "outputs" / "runs" / "r"
    with wandb_stub.Server(stall=True) as server:
        warning = broken_off(folder, server, patience=1.0)
        assert warning.startswith("W&B: finish did not end within 1 s; ")
    with wandb_stub.Server() as server:
        known = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": wandb_stub.SECRET}
        done = taqdit("sync", **known)
        assert done.returncode == 0, done.stderr
        every_event_once(server)


RECORD = {"run_id": "r", "name": "n", "group": None, "job_type": None, "tags": [], "config": {}}
MINE = {"project": "p", "entity": None}


def recorded(folder, *events, **changes):
    """A run's folder with an events.jsonl; the last line is torn."""
    folder.mkdir(parents=True)
    lines = [{"kind": "run", "time": "", **RECORD, **changes}, *events]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "events.jsonl").write_text(text + '{"kind": "finis')
    (folder / "run.json").write_text("{}")
    return folder


FINISH = {"kind": "finish", "time": "", "ok": True}
SCALARS = {"kind": "scalars", "time": "", "axis": {}, "values": {"a": 1.0}}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", wandb_stub.SECRET)
    monkeypatch.chdir(tmp_path)
    return wandb_stub.Fake(tmp_path / "fake", patch=monkeypatch)


def test_sync_takes_what_is_to_be_in_wandb(fake, tmp_path, capsys):
    runs = tmp_path / "outputs" / "runs"
    recorded(runs / "new", SCALARS, {"kind": "of a later version"}, {}, FINISH, wandb=MINE)
    recorded(runs / "local", SCALARS, FINISH, wandb=None)
    old = {"tracking": {"_target_": "taqdit.tracking.auto", "project": "older"}}
    recorded(runs / "old", SCALARS, FINISH, config=old)
    recorded(runs / "going", SCALARS, wandb=MINE)
    assert cli.dispatch(["sync"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "left out: outputs/runs/going has not ended; name it to upload what there is",
        "uploaded: outputs/runs/new -> http://host/run",
        "1 uploaded, 0 were already",
    ]
    assert (fake.options["project"], fake.options["id"], fake.exit_codes) == ("p", "r", [0])
    assert fake.options["resume"] is None  # what W&B has of it is replaced
    for name, project, code in (("local", "taqdit", 0), ("old", "older", 0), ("going", "p", 1)):
        assert cli.dispatch(["sync", f"outputs/runs/{name}"]) == 0  # as it is named
        assert fake.options["project"] == project
        assert fake.exit_codes[-1] == code
    assert fake.rows == [{"a": 1.0}] * 4


def test_a_run_that_has_gone_on_is_uploaded_whole(fake, tmp_path, capsys):
    going = recorded(tmp_path / "outputs" / "runs" / "going", SCALARS, wandb=MINE)
    cli.dispatch(["sync", str(going)])
    text = (going / "events.jsonl").read_text().removesuffix('{"kind": "finis')
    (going / "events.jsonl").write_text(text + json.dumps(FINISH) + "\n")
    capsys.readouterr()
    cli.dispatch(["sync"])
    cli.dispatch(["sync"])
    *_, first, second = capsys.readouterr().out.splitlines()
    assert (first, second) == ("1 uploaded, 0 were already", "0 uploaded, 1 were already")
    assert fake.exit_codes == [1, 0]


def test_runs_that_shared_a_folder_are_uploaded_each(fake, tmp_path):
    lines = [{"kind": "run", "time": "", **RECORD, "run_id": "s", "wandb": MINE}, SCALARS, FINISH]
    recorded(tmp_path / "outputs" / "runs" / "r", SCALARS, SCALARS, *lines, wandb=MINE)
    (tmp_path / "outputs" / "runs" / "r" / "summary.json").write_text("{}")
    assert cli.dispatch(["sync"]) == 0
    assert fake.exit_codes == [1, 0]
    assert len(fake.rows) == 3


def test_a_picture_that_is_gone_costs_no_run(fake, tmp_path, caplog):
    caplog.set_level("INFO")
    image = {"kind": "image", "time": "", "name": "i", "path": "figures/i.png", "caption": ""}
    artifact = {"kind": "artifact", "time": "", "name": "a", "type": "t", "metadata": {}}
    events = [image, artifact | {"path": "../../../gone"}, SCALARS, FINISH]
    recorded(tmp_path / "outputs" / "runs" / "r", *events, wandb=MINE)
    assert cli.dispatch(["sync"]) == 0
    assert fake.rows == [{"a": 1.0}]
    assert "figures/i.png is not there any more" in caplog.text


@pytest.mark.parametrize("how", slow_unless(["raise"], ["raise", "crash"]))
def test_a_run_that_breaks_off_again_stays_waiting(how, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", wandb_stub.SECRET)
    monkeypatch.chdir(tmp_path)
    fake = wandb_stub.Fake(tmp_path / "fake", "log", how, patch=monkeypatch)
    recorded(tmp_path / "outputs" / "runs" / "r", SCALARS, FINISH, wandb=MINE)
    for _ in range(2):
        with pytest.raises(StorageError, match="W&B took 0 of 1 runs, not outputs/runs/r"):
            cli.dispatch(["sync"])
        line, count = capsys.readouterr().out.splitlines()
        assert line.startswith("not uploaded: outputs/runs/r: ")
        assert wandb_stub.SECRET not in line
        assert count == "0 uploaded, 0 were already"
    assert fake.calls.count("log") == 2


@pytest.mark.parametrize("odd", [{"name": None}, {"tags": 3}, {"config": []}])
def test_a_record_that_makes_no_sense_hides_no_other(fake, tmp_path, capsys, caplog, odd):
    runs = tmp_path / "outputs" / "runs"
    recorded(runs / "good", SCALARS, FINISH, wandb=MINE)
    recorded(runs / "odd", SCALARS, FINISH, wandb=MINE, **odd)
    assert cli.dispatch(["sync"]) == 0
    assert "1 uploaded, 0 were already" in capsys.readouterr().out
    assert (
        f"left out: outputs/runs/odd/events.jsonl: an event `run` without {next(iter(odd))}"
        in caplog.text
    )
