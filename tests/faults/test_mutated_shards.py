"""Shards changed in every way that comes to mind, under their old digest and under one that was
made anew: refused in one line, or read as exactly what they are.

Digests show accident, not malice: whoever changes numbers of a shard and makes its digest anew is
believed, as long as the shard has the form that its stage asks for.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from faults.mutating import kinds, same, trials
from ledger import shows


def in_a_child(folder, number, seed):
    """So many trials in a process of its own, whose memory is measured."""
    program = Path(__file__).with_name("mutating.py")
    command = [sys.executable, str(program), str(folder), str(number), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(found)
    assert not found["problems"], found["problems"]
    assert found["slowest_ms"] < 1000
    assert found["extra_mb"] < 50
    assert found["refused"] > found["trials"] / 2
    assert found["as changed"] > found["trials"] / 100  # or the digests made anew are not
    return found["trials"]


@shows("P16", "shards of seven kinds changed, half of them under a digest made anew")
@pytest.mark.slow
def test_mutated_shards(tmp_path):
    return in_a_child(tmp_path, 10_000, 0)


@pytest.mark.long
@shows("P16", "shards of seven kinds changed, half of them under a digest made anew, at length")
def test_many_mutated_shards(tmp_path):
    return in_a_child(tmp_path, 100_000, 1)


def test_a_few_mutated_shards(tmp_path):
    in_a_child(tmp_path, 600, 3)


def test_each_kind_is_read_as_it_was_written(tmp_path):
    for name, kind in kinds(tmp_path).items():
        assert same(kind.read(), kind.read()), name
        assert kind.data == kind.stage.path(kind.file).read_bytes()


def test_other_data_are_noticed(tmp_path, monkeypatch):
    """The trials can fail: a reader that does not look at digests is caught."""
    monkeypatch.setattr("taqdit.store.shard._check", lambda *_: None)
    assert trials(tmp_path, 500, 2)["all_problems"] > 20
