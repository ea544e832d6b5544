"""Claims: who works on what, and what becomes of it when they die."""

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from taqdit.store import Stage, disk, publish_bytes
from taqdit.store.lock import try_hold


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def open_stage(root: Path) -> Stage:
    return Stage.open(root, "trajectories", fingerprint="a" * 64, inputs={}, backend={})


@pytest.fixture
def stage(tmp_path):
    return open_stage(tmp_path)


def test_a_claim_is_one_process_s(stage):
    with stage.claim("000001") as mine, stage.claim("000001") as again, stage.claim("2") as other:
        assert (mine, again, other) == (True, False, True)
        claim = json.loads(stage.path("000001.claim").read_bytes())
        assert claim["pid"] == os.getpid()
        stage.seal()
        assert stage.path("000001.claim").exists()
    assert names(stage.folder) == ["SEALED.json", "stage.json"]
    with stage.claim("000001") as mine:
        assert mine


def test_a_dead_owners_claim_is_taken_over(stage):
    left = stage.path("000001.claim")
    left.write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere", "note": "x" * 200}))
    with stage.claim("000001") as mine:
        assert mine
        assert json.loads(left.read_bytes())["pid"] == os.getpid()
    left.touch()
    stage.seal()
    assert names(stage.folder) == ["SEALED.json", "stage.json"]


def test_a_claim_released_while_it_is_looked_at_is_made_anew(stage, monkeypatch):
    releases = iter([True, True, False])

    def release_first(file, *, without_locks):
        if next(releases, False):
            stage.path("1.claim").unlink()
        return try_hold(file, without_locks=without_locks)

    monkeypatch.setattr("taqdit.store.claim.try_hold", release_first)
    with stage.claim("1") as first, stage.claim("1") as second:
        assert (first, second) == (True, False)


def test_a_claim_is_held_until_its_file_is_gone(stage, monkeypatch):
    others = []

    class Curious(disk.Disk):
        def unlink(self, path):
            if not others:
                others.append(None)
                with stage.claim("1") as other:
                    others[0] = other
            super().unlink(path)

    monkeypatch.setattr(disk, "current", Curious())
    with stage.claim("1"):
        pass
    assert others == [False]


def test_a_claim_is_released_whatever_happens(stage):
    with pytest.raises(KeyboardInterrupt), stage.claim("1"):
        raise KeyboardInterrupt
    assert names(stage.folder) == ["stage.json"]


def test_without_locks_work_may_double_but_goes_on(stage, tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    stage.path(".x.1.tmp").touch()
    open_stage(tmp_path)
    publish_bytes(stage.path("a.png"), b"x")
    with stage.claim("1") as first, stage.claim("1") as second:
        assert (first, second) == (True, True)
    assert names(stage.folder) == [".x.1.tmp", "a.png", "stage.json"]
