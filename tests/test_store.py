"""The store: canonical JSON, digests, publishing and journals."""

import errno
import fcntl
import io
import json
import os
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taqdit.errors import CorruptError, StorageError
from taqdit.store import (
    Journal,
    canonical_json,
    disk,
    make_folder,
    publish,
    publish_bytes,
    publish_json,
    read_journal,
    sha256_file,
    sha256_hex,
    write_shard,
)
from taqdit.store.digest import read_stamped, stamp

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None)
@given(json_values)
def test_canonical_json_reads_back_and_is_a_fixed_point(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text
    assert text.encode().decode() == text


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_canonical_json_does_not_see_the_order_of_keys(value):
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_canonical_json_by_example():
    assert canonical_json({"b": (1, 2.0), "a": "ä\n"}) == '{"a":"ä\\n","b":[1,2.0]}'
    assert canonical_json({10: 0, 9: 0}) == '{"10":0,"9":0}'


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], "\ud800", {"a": float("-inf")}])
def test_canonical_json_refuses_what_no_json_file_can_hold(value):
    with pytest.raises(ValueError, match=r"."):
        canonical_json(value)


def test_canonical_json_refuses_other_objects():
    for value in ({1: 0, "1": 0}, object(), {"a": np.float32(1)}, b"bytes"):
        with pytest.raises(TypeError):
            canonical_json(value)


def test_sha256_is_the_known_one(tmp_path):
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_hex(b"abc") == sha256_file(tmp_path / "abc") == known
    with pytest.raises(StorageError, match=r"cannot read .*missing: No such file"):
        sha256_file(tmp_path / "missing")


def test_a_stamped_document_reads_back(tmp_path):
    publish_json(tmp_path / "a.json", stamp({"x": (1, 2), "y": {3: "ü"}}))
    assert read_stamped(tmp_path / "a.json") == {"x": [1, 2], "y": {"3": "ü"}}


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"a": 1}', b"[" * 10**5, b"\xff{}", b"1" * 5000]
)
def test_a_document_without_a_fitting_stamp_is_corrupt(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(CorruptError, match=r"a\.json is corrupt: .*; restore it, or have it moved"):
        read_stamped(tmp_path / "a.json")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_publish_replaces_in_one_step(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"new")
        assert path.read_bytes() == b"old"
        assert len(list(tmp_path.glob(f".a.bin.{os.getpid()}-*.tmp"))) == 1

    publish(path, write)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_publish_passes_errors_on_and_leaves_nothing(tmp_path, error):
    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        publish(tmp_path / "a.bin", write)
    assert names(tmp_path) == []


def test_publish_serves_writers_that_seek(tmp_path):
    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.txt", "hello")

    publish(tmp_path / "a.zip", write)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("a.txt") == b"hello"


def test_publish_json_is_for_people(tmp_path):
    publish_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n "a": "ü",\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        publish_json(tmp_path / "b.json", float("nan"))
    assert names(tmp_path) == ["a.json"]


def test_publish_wants_twice_the_room(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    publish(tmp_path / "a.bin", lambda file: file.write(b"x"), size_hint=999)
    line = r"cannot write .*b\.bin: 1,999 bytes are free, at least 2,000 \(twice its size\)"
    with pytest.raises(StorageError, match=line):
        publish(tmp_path / "b.bin", lambda file: file.write(b"x"), size_hint=1000)
    with pytest.raises(StorageError, match="are needed"):
        write_shard(tmp_path / "c", {"x": np.zeros(200)}, kind="k", index=0)
    assert names(tmp_path) == ["a.bin"]


def test_publish_into_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*a\.bin: No such file or directory; "):
        publish_bytes(tmp_path / "missing" / "a.bin", b"x")


def test_two_writers_of_a_file_do_not_meet(tmp_path, monkeypatch):
    """Nor do two of the same number, on two hosts that share the folder: the last one stays."""
    monkeypatch.setattr(os, "getpid", lambda: 7)

    def write(file):
        publish_bytes(tmp_path / "a.bin", b"inner")
        file.write(b"outer")

    publish(tmp_path / "a.bin", write)
    assert (tmp_path / "a.bin").read_bytes() == b"outer"
    assert names(tmp_path) == ["a.bin"]


def test_a_living_writers_file_is_not_taken(tmp_path):
    with (
        disk.current.open_exclusive(tmp_path / ".a.bin.tmp"),
        pytest.raises(FileExistsError),
        disk.current.open_exclusive(tmp_path / ".a.bin.tmp"),
    ):
        pass


def test_a_file_swept_away_before_its_lock_is_made_again(tmp_path, monkeypatch):
    hold, sweeps = disk.hold, iter([True, True, False])

    def sweep_first(file):
        if next(sweeps):
            Path(file.name).unlink()
        hold(file)

    monkeypatch.setattr(disk, "hold", sweep_first)
    publish_bytes(tmp_path / "a.bin", b"x")
    assert names(tmp_path) == ["a.bin"]


@pytest.fixture
def syncs(monkeypatch):
    """What the system is asked to sync with: ("fcntl" or "fsync", is it a folder)."""
    calls, refusals = [], []

    def note(kind, descriptor):
        calls.append((kind, stat.S_ISDIR(os.fstat(descriptor).st_mode)))
        if kind in refusals:
            raise OSError(errno.ENOTSUP, "no such sync here")

    monkeypatch.setattr(os, "fsync", lambda fd: note("fsync", fd))
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, command: note(command, fd))
    return calls, refusals


def test_sync_is_fsync_where_that_is_enough(tmp_path, syncs, monkeypatch):
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)
    publish_bytes(tmp_path / "a.bin", b"x")
    assert syncs[0] == [("fsync", False), ("fsync", True)]


def test_sync_goes_through_the_drives_cache_on_macos(tmp_path, syncs, monkeypatch):
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", "full", raising=False)
    publish_bytes(tmp_path / "a.bin", b"x")
    assert syncs[0] == [("full", False), ("full", True)]


def test_sync_makes_do_with_what_the_file_system_has(tmp_path, syncs, monkeypatch):
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", "full", raising=False)
    calls, refusals = syncs
    refusals.append("full")
    publish_bytes(tmp_path / "a.bin", b"x")
    assert calls == [("full", False), ("fsync", False), ("full", True), ("fsync", True)]
    refusals.append("fsync")  # a folder need not be syncable, a file must
    with pytest.raises(StorageError, match="no such sync"):
        publish_bytes(tmp_path / "b.bin", b"x")


def test_make_folder_where_a_file_is_in_the_way(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot create .*file.x"):
        make_folder(tmp_path / "file" / "x")


def test_an_image_writer_can_publish(tmp_path):
    image = pytest.importorskip("PIL.Image").fromarray(np.zeros((4, 4, 3), np.uint8))
    publish(tmp_path / "a.png", lambda file: image.save(file, format="PNG"))
    whole = io.BytesIO()
    image.save(whole, format="PNG")
    assert (tmp_path / "a.png").read_bytes() == whole.getvalue()


records = st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=5)


@settings(max_examples=30, deadline=None)
@given(first=records, second=records, cut=st.integers(0, 400))
def test_a_journal_cut_anywhere_keeps_whole_lines_and_goes_on(first, second, cut):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        fill(path, first)
        os.truncate(path, min(cut, path.stat().st_size))
        kept = path.read_bytes().count(b"\n")
        assert read_journal(path) == first[:kept]
        fill(path, second)
        assert read_journal(path) == first[:kept] + second


def fill(path: Path, some: list[dict]) -> None:
    journal = Journal(path)
    for record in some:
        journal.append(record)
    journal.close()


def test_each_line_is_there_at_once(tmp_path):
    journal = Journal(tmp_path / "events.jsonl")
    journal.append({"step": 1, "loss": float("nan"), "curve": (0.5, float("-inf"))})
    assert read_journal(tmp_path / "events.jsonl") == [
        {"step": 1, "loss": "nan", "curve": [0.5, "-inf"]}
    ]
    journal.close()


def test_a_damaged_line_is_named_and_left_out(tmp_path, caplog):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a":1}\n' + bytes(10) + b'\n[]\n{"a":2}\n{"a":')
    assert read_journal(path) == [{"a": 1}, {"a": 2}]
    assert "line 2 is left out" in caplog.text
    assert "line 3 is left out: its JSON is not an object" in caplog.text
    assert "line 5" not in caplog.text


def test_a_journal_that_cannot_be_written_or_read(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        Journal(tmp_path / "missing" / "events.jsonl")
    with pytest.raises(StorageError, match="cannot read"):
        read_journal(tmp_path / "events.jsonl")
