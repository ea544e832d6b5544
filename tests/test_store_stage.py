"""Stages."""

import json
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from taqdit.backend import describe
from taqdit.errors import CorruptError, StorageError
from taqdit.store import (
    Stage,
    disk,
    document,
    publish,
    publish_bytes,
    publish_json,
    sha256_file,
    write_shard,
)
from taqdit.store.digest import read_stamped, stamp
from taqdit.store.disk import identity_at
from taqdit.store.document import UNKNOWN, among

FINGERPRINT = "0123456789ab" + "c" * 52
CPU = {"device": "cpu", "mlx": "0.32.4"}
GPU = {"device": "gpu", "mlx": "0.32.4"}
INPUTS = {"steps": 2, "sizes": (8, 8)}
DOCUMENT = {  # as another process has just written it
    "schema": 1,
    "stage": "trajectories",
    "fingerprint": FINGERPRINT,
    "inputs": INPUTS,
    "backends": [UNKNOWN, GPU],
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def open_stage(
    root: Path, *, backend=CPU, fingerprint: str = FINGERPRINT, lost: dict | None = None
) -> Stage:
    return Stage.open(
        root,
        "trajectories",
        fingerprint=fingerprint,
        inputs=INPUTS,
        backend=backend,
        lost=lost,
    )


def put(stage: Stage, name: str = "000000.safetensors", value: float = 0.0) -> None:
    write_shard(stage.path(name), {"x": np.full(3, value)}, kind="trajectory", index=0)


def lose(stage: Stage, data: bytes | None = None) -> None:
    """Put other bytes into stage.json, or none."""
    stage.path("stage.json").unlink()
    if data is not None:
        stage.path("stage.json").write_bytes(data)


def dies(path: Path, value: object) -> None:
    raise KeyboardInterrupt


def test_a_new_stage_says_what_it_is(tmp_path):
    stage = open_stage(tmp_path)
    assert stage.folder == tmp_path / "trajectories" / "0123456789ab"
    assert json.loads(stage.path("stage.json").read_text("utf-8")) == stamp(
        {
            "schema": 1,
            "stage": "trajectories",
            "fingerprint": FINGERPRINT,
            "inputs": {"steps": 2, "sizes": [8, 8]},
            "backends": [CPU],
        }
    )
    assert (stage.names(), stage.seal_list, stage.moved_aside) == ([], None, [])


def test_sealing_clears_what_dead_writers_left(tmp_path):
    """One that died after the stage was opened by another, too; not what a living one holds."""
    stage = open_stage(tmp_path)
    put(stage)
    for left in (".unit.safetensors.1.tmp", "batch-000000.claim"):
        stage.path(left).write_bytes(b"x")
    with stage.claim("batch-000001"):
        stage.seal()
        assert stage.path("batch-000001.claim").exists()
    assert not [name for name in names(stage.folder) if name.endswith((".tmp", ".claim"))]


def test_open_and_find_the_same_stage(tmp_path):
    assert Stage.find(tmp_path, "trajectories", FINGERPRINT) is None
    assert names(tmp_path) == []
    put(open_stage(tmp_path))
    for stage in (open_stage(tmp_path), Stage.find(tmp_path, "trajectories", FINGERPRINT)):
        assert stage.names() == ["000000.safetensors"]


def test_a_folder_of_another_fingerprint_is_refused(tmp_path):
    open_stage(tmp_path)
    other = FINGERPRINT[:-1] + "d"
    with pytest.raises(StorageError, match=f"belongs to fingerprint '{FINGERPRINT}', not {other}"):
        open_stage(tmp_path, fingerprint=other)
    with pytest.raises(StorageError, match="belongs to"):
        Stage.find(tmp_path, "trajectories", other)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"schema": 1}'])
def test_a_damaged_stage_file_is_corrupt(tmp_path, data):
    stage = open_stage(tmp_path)
    put(stage)
    lose(stage, data)
    with pytest.raises(CorruptError, match=r"stage\.json is corrupt: .*; restore it, or") as caught:
        open_stage(tmp_path)
    assert "with allow_backend_change=true" in str(caught.value)
    assert str(caught.value).isprintable()  # one line
    assert stage.path("stage.json").read_bytes() == data
    assert names(stage.folder) == ["000000.safetensors", "stage.json"]


def test_a_stage_of_a_later_version_is_refused(tmp_path):
    path = open_stage(tmp_path).path("stage.json")
    publish_json(path, stamp({**read_stamped(path), "schema": 2}))
    with pytest.raises(StorageError, match="has schema 2, this version reads 1"):
        open_stage(tmp_path)


def test_data_without_a_stage_file_is_corrupt(tmp_path):
    stage = open_stage(tmp_path)
    put(stage)
    stage.path("stage.json").unlink()
    assert Stage.find(tmp_path, "trajectories", FINGERPRINT) is None
    with pytest.raises(CorruptError, match=r"holds data but no stage\.json.*allow_backend_change"):
        open_stage(tmp_path)


def test_a_damaged_stage_file_without_data_is_written_anew(tmp_path):
    """Nothing was made that another backend could have made."""
    path = open_stage(tmp_path, backend=GPU).path("stage.json")
    path.write_bytes(b"{}")
    stage = open_stage(tmp_path)
    assert stage.backends == [CPU]
    assert names(stage.folder) == ["stage.json", "stage.json.bad-1"]


@pytest.mark.parametrize("data", [b"{}", None], ids=["damaged", "missing"])
def test_data_are_kept_where_an_unknown_backend_may_have_made_them(tmp_path, caplog, data):
    stage = open_stage(tmp_path)
    put(stage)
    stage.seal()
    sealed, whole = stage.seal_list, stage.path("stage.json").read_bytes()
    lose(stage, data)
    stage = open_stage(tmp_path, lost=UNKNOWN)
    assert stage.backend_note(CPU) == "made on an unknown backend"
    assert (stage.seal_list, stage.valid(stage.names())) == (sealed, set(sealed))
    changed = {**read_stamped(stage.path("stage.json")), "backends": [CPU]}
    assert stamp(changed) == json.loads(whole)  # but for the backend it is what it was
    bad = [] if data is None else [data]
    assert [path.read_bytes() for path in stage.folder.glob("stage.json.bad-1")] == bad
    (line,) = caplog.messages
    assert "stage.json is written anew: made on an unknown backend" in line
    open_stage(tmp_path, lost=UNKNOWN)
    assert len(caplog.messages) == 1


def test_an_unknown_backend_is_no_real_one(tmp_path):
    assert not among(UNKNOWN, [describe(), CPU, {}])
    stage = open_stage(tmp_path)
    put(stage)
    lose(stage)
    stage = open_stage(tmp_path, lost=UNKNOWN)
    with pytest.raises(StorageError, match=r"made on an unknown backend, this is \(device cpu"):
        stage.admit(CPU, allow_change=False)
    stage.admit(CPU, allow_change=True)
    stage.admit(CPU, allow_change=False)
    assert stage.backends == [UNKNOWN, CPU]
    assert stage.backend_note(CPU) == "made on an unknown backend and (device cpu, mlx 0.32.4)"


def test_a_lost_stage_file_is_no_way_to_other_data(tmp_path):
    """One of another fingerprint, or version, is refused as ever, and stays where it is."""
    path = open_stage(tmp_path).path("stage.json")
    with pytest.raises(StorageError, match="belongs to fingerprint"):
        open_stage(tmp_path, fingerprint=FINGERPRINT[:-1] + "d", lost=UNKNOWN)
    publish_json(path, stamp({**read_stamped(path), "schema": 2}))
    with pytest.raises(StorageError, match="has schema 2"):
        open_stage(tmp_path, lost=UNKNOWN)
    assert names(path.parent) == ["stage.json"]


def test_a_death_before_the_new_stage_file_loses_nothing(tmp_path, monkeypatch):
    stage = open_stage(tmp_path)
    put(stage)
    lose(stage, b"{}")
    with monkeypatch.context() as patch:
        patch.setattr(disk, "publish_json", dies)
        with pytest.raises(KeyboardInterrupt):
            open_stage(tmp_path, lost=UNKNOWN)
    kept = ["000000.safetensors", "stage.json.bad-1"]
    assert names(stage.folder) == kept
    with pytest.raises(CorruptError, match="allow_backend_change=true"):
        open_stage(tmp_path)
    assert open_stage(tmp_path, lost=UNKNOWN).backends == [UNKNOWN]
    assert names(stage.folder) == [kept[0], "stage.json", kept[1]]


def test_one_process_at_a_time_writes_a_lost_stage_file_anew(tmp_path):
    """The other waits, and then finds one to which the first may have added its backend."""
    stage = open_stage(tmp_path)
    put(stage)
    lose(stage, b"{}")
    found = []
    with stage.claim("founding"):
        other = Thread(target=lambda: found.append(open_stage(tmp_path, lost=UNKNOWN).backends))
        other.start()
        other.join(0.2)
        assert other.is_alive()
        assert stage.path("stage.json").read_bytes() == b"{}"
        publish_json(stage.path("stage.json"), stamp(DOCUMENT))
    other.join()
    assert found == [[UNKNOWN, GPU]]
    assert names(stage.folder) == ["000000.safetensors", "stage.json"]


def test_whoever_gets_the_claim_looks_again(tmp_path, monkeypatch):
    """Another process was faster between our look and our claim."""
    stage = open_stage(tmp_path)
    put(stage)
    lose(stage, b"{}")
    claim = document.claim

    def late(path):
        publish_json(stage.path("stage.json"), stamp(DOCUMENT))
        return claim(path)

    monkeypatch.setattr(document, "claim", late)
    assert open_stage(tmp_path, lost=UNKNOWN).backends == [UNKNOWN, GPU]
    assert names(stage.folder) == ["000000.safetensors", "stage.json"]


def test_a_process_that_is_at_work_goes_on(tmp_path):
    """What it makes on its backend is among what is made on an unknown one."""
    stage = open_stage(tmp_path)
    put(stage)
    with stage.claim("batch-000001") as mine:
        lose(stage)
        other = open_stage(tmp_path, backend=GPU, lost=UNKNOWN)
        other.admit(GPU, allow_change=True)
        assert mine
        put(stage, "000001.safetensors")
    stage.seal()
    assert set(other.seal_list) == {"000000.safetensors", "000001.safetensors"}
    assert stage.backend_note(CPU) == "made on an unknown backend and (device gpu, mlx 0.32.4)"


def test_names_are_the_published_data_and_nothing_else(tmp_path):
    stage = open_stage(tmp_path)
    shown = ["000001.png", "000001.safetensors", "a-000040.safetensors"]
    hidden = [
        ".a.png.12.tmp",
        "._000001.png",
        ".DS_Store",
        "a.safetensors.bad-1",
        "1.claim",
        "x.txt",
    ]
    for name in [*reversed(shown), *hidden]:
        stage.path(name).touch()
    stage.seal()
    assert stage.names() == shown
    assert stage.names(".png") == ["000001.png"]
    assert stage.names("40.safetensors") == ["a-000040.safetensors"]


def test_opening_clears_dead_writers_files_only(tmp_path):
    stage = open_stage(tmp_path)
    stage.path(".a.safetensors.1.tmp").write_bytes(b"half")

    def write(file):
        open_stage(tmp_path)
        file.write(b"alive")

    publish(stage.path("b.png"), write)
    assert names(stage.folder) == ["b.png", "stage.json"]


def test_valid_moves_corrupt_files_aside(tmp_path, caplog):
    stage = open_stage(tmp_path)
    for name in ("a.safetensors", "b.safetensors", "c.safetensors"):
        put(stage, name)
    stage.path("b.safetensors").write_bytes(b"junk")
    stage.seal()
    wanted = ["a.safetensors", "b.safetensors", "d.safetensors"]
    assert stage.valid(wanted) == {"a.safetensors"}
    ((name, reason),) = stage.moved_aside
    assert (name, stage.path("b.safetensors.bad-1").read_bytes()) == ("b.safetensors", b"junk")
    assert reason in caplog.text
    assert stage.seal_list is None
    put(stage, "b.safetensors")
    judged = identity_at(stage.path("b.safetensors"))
    target = stage.quarantine("b.safetensors", "again", judged=judged)
    assert target.name == "b.safetensors.bad-2"


def test_valid_takes_another_verifier(tmp_path):
    stage = open_stage(tmp_path)
    publish_bytes(stage.path("a.png"), b"good")
    publish_bytes(stage.path("b.png"), b"bad")

    def verify(path):
        if path.read_bytes() == b"bad":
            raise CorruptError(f"{path} is bad")

    assert stage.valid(["a.png", "b.png"], verify) == {"a.png"}


def test_valid_leaves_to_another_process_what_it_moved_first(tmp_path):
    stage = open_stage(tmp_path)
    for error in (CorruptError, StorageError):
        put(stage)

        def moved_meanwhile(path, error=error):
            path.unlink()
            raise error("gone")

        assert stage.valid(stage.names(), moved_meanwhile) == set()
    put(stage)

    def unreadable(path):
        raise StorageError("cannot read")

    with pytest.raises(StorageError, match="cannot read"):
        stage.valid(stage.names(), unreadable)


def test_sealing(tmp_path):
    stage = open_stage(tmp_path)
    names = ["a.png", "a.safetensors"]
    put(stage, "a.safetensors")
    publish_bytes(stage.path("a.png"), b"abc")
    assert stage.unsealed_or_changed(names)
    stage.seal()
    assert stage.seal_list == {name: sha256_file(stage.path(name)) for name in names}
    assert not stage.unsealed_or_changed(names)
    assert stage.unsealed_or_changed([*names, "b.png"])
    publish_bytes(stage.path("b.png"), b"")
    assert stage.unsealed_or_changed(names)


def test_a_damaged_seal_is_no_seal(tmp_path, caplog):
    stage = open_stage(tmp_path)
    put(stage)
    stage.seal()
    whole = stage.path("SEALED.json").read_text("utf-8")
    stage.path("SEALED.json").write_text(whole.replace("000000", "000001"), "utf-8")
    assert stage.seal_list is None
    assert stage.unsealed_or_changed([])
    assert "SEALED.json is corrupt" in caplog.text


def test_an_empty_stage_changes_its_backend_freely(tmp_path):
    stage = open_stage(tmp_path)
    stage.admit(GPU, allow_change=False)
    assert read_stamped(stage.path("stage.json"))["backends"] == [GPU]
    assert stage.backend_note(GPU) is None
    assert stage.backend_note(CPU) == "made on (device gpu, mlx 0.32.4)"


def test_a_stage_with_data_keeps_its_backend(tmp_path):
    stage = open_stage(tmp_path)
    put(stage)
    stage.admit(CPU, allow_change=False)
    with pytest.raises(StorageError) as caught:
        open_stage(tmp_path, backend=GPU).admit(GPU, allow_change=False)
    for part in ("device cpu", "device gpu", "allow_backend_change=true", str(stage.folder)):
        assert part in str(caught.value)
    assert stage.backend_note(CPU) is None


def test_a_mixed_stage_says_so_for_ever(tmp_path):
    stage = open_stage(tmp_path)
    put(stage)
    stage.admit(GPU, allow_change=True)
    for backend in (CPU, GPU):
        later = open_stage(tmp_path, backend=backend)
        later.admit(backend, allow_change=False)
        note = "made on (device cpu, mlx 0.32.4) and (device gpu, mlx 0.32.4)"
        assert later.backend_note(backend) == note
    assert read_stamped(stage.path("stage.json"))["backends"] == [CPU, GPU]


def test_computing_takes_the_seal_off(tmp_path):
    stage = open_stage(tmp_path)
    put(stage)
    stage.seal()
    stage.admit(CPU, allow_change=False)
    assert stage.seal_list is None
