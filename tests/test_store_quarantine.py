"""Several at once meet a file that is corrupt: it is moved aside once, and what is made instead of
it stays."""

from pathlib import Path
from threading import Thread

import numpy as np

from taqdit.errors import CorruptError
from taqdit.store import Stage, disk
from taqdit.store.disk import identity_at

NAME, FINGERPRINT = "000000.safetensors", "0123456789ab" + "c" * 52


def make(stage: Stage) -> bytes:
    stage.write(NAME, {"x": np.arange(3)}, kind="trajectory", index=0, metadata={})
    return stage.path(NAME).read_bytes()


def damaged(root: Path) -> Stage:
    """A stage whose only file is corrupt."""
    found = Stage.open(root, "trajectories", fingerprint=FINGERPRINT, inputs={}, backend={})
    found.path(NAME).write_bytes(make(found)[:-1] + b"?")
    return found


def left(stage: Stage) -> list[str]:
    return sorted(path.name for path in stage.folder.iterdir() if path.name != "stage.json")


def test_what_another_has_made_anew_stays(tmp_path):
    """It is there again, and sealed, before whoever read the corrupt file does anything."""
    stage = damaged(tmp_path)
    other = Stage.at(stage.folder)
    made = []

    def slowly(path):
        assert other.valid([NAME]) == set()
        made.append(make(other))
        other.seal()
        raise CorruptError("it was corrupt")

    assert stage.valid([NAME], slowly) == set()
    assert left(stage) == [NAME, f"{NAME}.bad-1", "SEALED.json"]
    assert stage.path(NAME).read_bytes() == made[0]
    assert (stage.moved_aside, len(other.moved_aside)) == ([], 1)
    assert stage.valid([NAME]) == {NAME}


def test_a_file_that_is_written_to_meanwhile_is_not_the_one_that_was_judged(tmp_path):
    stage = damaged(tmp_path)
    judged = identity_at(stage.path(NAME))
    stage.path(NAME).write_bytes(b"more")
    assert stage.quarantine(NAME, "a test", judged=judged) is None
    assert left(stage) == [NAME]


def test_of_two_that_move_it_aside_the_second_finds_it_gone(tmp_path):
    stage = damaged(tmp_path)
    judged = identity_at(stage.path(NAME))
    assert stage.quarantine(NAME, "a test", judged=judged).name == f"{NAME}.bad-1"
    assert stage.quarantine(NAME, "a test", judged=judged) is None
    assert stage.quarantine(NAME, "a test", judged=None) is None
    assert len(stage.moved_aside) == 1


def test_nobody_comes_between_the_look_and_the_renaming(tmp_path, monkeypatch):
    stage = damaged(tmp_path)
    judged, targets = identity_at(stage.path(NAME)), []

    def move():
        targets.append(stage.quarantine(NAME, "a test", judged=judged))

    second = Thread(target=move)

    class Slow(disk.Disk):
        def replace(self, source, target):
            if second.ident is None:
                second.start()
                second.join(0.1)
            super().replace(source, target)

    monkeypatch.setattr(disk, "current", Slow())
    move()
    second.join(10)
    assert len(targets) == 2
    assert set(targets) == {stage.path(f"{NAME}.bad-1"), None}
    assert left(stage) == [f"{NAME}.bad-1"]
