"""Whole runs with a W&B that fails or hangs in each of its calls: same bytes, all is on record."""

import json
import time
from itertools import product

import pytest
import wandb_stub
from conftest import ANALYTIC, ROOT, slow_unless, tree
from ledger import shows

import taqdit as package

SETTINGS = [s for s in ANALYTIC if not s.startswith("tracking")]
PATIENCE = (
    "tracking=wandb",
    "tracking.mode=offline",
    "tracking.init_timeout=5.0",
    "tracking.call_timeout=1.0",
    "tracking.finish_timeout=2.0",
)


def recorded(run):
    """What events.jsonl holds: the kind and name of each line, and where on its axis it lies."""
    lines = (run.folder / "events.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert found[0].pop("name") == f"{run.folder.parent.name}_{run.folder.name}"
    return [(event["kind"], event.get("name"), event.get("axis")) for event in found]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The store and the record of a run without W&B."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tests" / "plugins"))
        patch.setenv("TAQDIT_PLUGINS", "analytic")
        run = package.launch([*SETTINGS, "tracking=local", f"output_dir={folder}"])
    return tree(folder / "store"), recorded(run)


CASES = [*product(("init", "log", "log_artifact", "finish"), ("raise", "hang"))]


@pytest.mark.parametrize(("where", "how"), slow_unless([("init", "raise"), ("log", "hang")], CASES))
@shows(
    "P15", "W&B raises or hangs in init, log, log_artifact, finish: the run is unharmed", trials=1
)
def test_a_run_is_unharmed(tmp_path, monkeypatch, caplog, reference, where, how):
    fake = wandb_stub.Fake(tmp_path / "fake", where, how, patch=monkeypatch)
    began = time.monotonic()
    run = package.launch([*SETTINGS, *PATIENCE, f"output_dir={tmp_path / 'mine'}"])
    assert time.monotonic() - began < 50  # it would hang for ever
    assert run.summary["status"] == "ok"
    assert fake.calls.count(where) == 1
    files, lines = reference
    assert tree(tmp_path / "mine" / "store") == files
    assert recorded(run) == lines
    assert lines[-1][0] == "finish"
    (warning,) = [r.getMessage() for r in caplog.records if "W&B" in r.getMessage()]
    assert {"raise": " failed (OSError: ", "hang": " within "}[how] in warning
    assert wandb_stub.SECRET not in warning
