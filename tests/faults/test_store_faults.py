"""The store under kills, power loss, full disks, bit rot and company. After every fault: whatever
has its final name verifies, and running again gives the bytes of an undisturbed run."""

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from store_lab import (
    BACKEND,
    FINGERPRINT,
    UNITS,
    Death,
    DyingDisk,
    FailingDisk,
    PowerDisk,
    QuickDisk,
    build,
    contents,
    crash_states,
    tensors,
    unit_name,
)

from taqdit.errors import CorruptError, StorageError
from taqdit.store import Stage, disk, read_shard, verify_shard, write_shard
from taqdit.store.digest import read_stamped


@pytest.fixture
def use_disk(monkeypatch):
    return lambda new: monkeypatch.setattr(disk, "current", new)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return contents(build(tmp_path_factory.mktemp("reference")))


def finished_with_one_corrupt_shard(root: Path) -> None:
    path = build(root).path(unit_name(1))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def check_final_names(root: Path) -> None:
    for path in root.glob("**/*.safetensors"):
        if not path.name.startswith("."):
            verify_shard(path)
    for path in root.glob("**/*.json"):
        read_stamped(path)


def work(function: str, root: Path) -> dict:
    worker = Path(__file__).with_name("store_worker.py")
    command = [sys.executable, str(worker), function, str(root)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_the_reference_holds_what_it_should(reference):
    shards = [unit_name(index) for index in range(UNITS)]
    assert sorted(reference) == sorted([*shards, "SEALED.json", "stage.json"])


@pytest.mark.parametrize("start", [lambda root: None, finished_with_one_corrupt_shard])
def test_death_at_any_operation_then_resume(start, tmp_path, use_disk, reference):
    for at in count(1):
        root = tmp_path / str(at)
        use_disk(QuickDisk())
        start(root)
        use_disk(DyingDisk(at))
        try:
            build(root)
            break
        except Death:
            pass
        use_disk(QuickDisk())
        if start is not finished_with_one_corrupt_shard:
            check_final_names(root)
        assert contents(build(root)) == reference, f"died at operation {at}"
    assert at > 10


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_an_error_of_the_disk_at_any_operation(number, tmp_path, use_disk, reference):
    for at in count(1):
        root = tmp_path / str(at)
        failing = FailingDisk(at, number)
        use_disk(failing)
        message = ""
        try:
            build(root)
        except StorageError as error:
            message = str(error)
        if failing.count < at:
            break
        assert not message or (str(root) in message and "\n" not in message)
        check_final_names(root)
        use_disk(QuickDisk())
        assert contents(build(root)) == reference, f"operation {at} failed"
    assert at > 10


def test_an_error_leaves_no_temporary_file(tmp_path, use_disk):
    for at in range(1, 6):
        use_disk(FailingDisk(at, errno.ENOSPC))
        with pytest.raises(StorageError, match="injected; free some space"):
            disk.publish_bytes(tmp_path / "a.bin", b"12345678")
        assert [path.name for path in tmp_path.iterdir()] == ["a.bin"] * (at == 5)


def test_a_real_quota(tmp_path):
    result = work("exceed_a_quota", tmp_path / "new")
    assert result["left"] == []
    assert "a.safetensors: File too large; free some space" in result["message"]


def after_power_loss(
    tmp_path: Path, use_disk, reference, *, without: str = "", start=lambda root: None
) -> Iterator[list[str]]:
    """For each state that a power cut may leave behind, what is wrong with it."""
    use_disk(QuickDisk())
    start(tmp_path / "recorded")
    recorder = PowerDisk(without)
    place = Path("trajectories", FINGERPRINT[:12])
    if started := (tmp_path / "recorded" / place).exists():
        recorder.adopt(tmp_path / "recorded" / place)
    begin = len(recorder.events)
    use_disk(recorder)
    build(tmp_path / "recorded", on_made=recorder.acknowledge)
    use_disk(QuickDisk())
    states = crash_states(recorder.events, place.name, begin)
    for number, (files, acknowledged) in enumerate(states):
        root = tmp_path / str(number)
        (root / place).mkdir(parents=True)
        for name, data in files:
            (root / place / name).write_bytes(data)
        yield problems(root, root / place, acknowledged, reference, corrupt=started)


def problems(root: Path, folder: Path, acknowledged, reference, *, corrupt: bool) -> list[str]:
    bad = [f"{name} is lost" for name in sorted(acknowledged) if not (folder / name).exists()]
    try:
        if not corrupt:
            check_final_names(root)
        if contents(build(root)) != reference:
            bad.append("the resumed run differs")
    except CorruptError as error:
        bad.append(str(error))
    return bad


def test_power_loss(tmp_path, use_disk, reference):
    states = list(after_power_loss(tmp_path, use_disk, reference))
    assert len(states) > 20
    assert not any(states)


def test_power_loss_while_a_corrupt_shard_is_redone(tmp_path, use_disk, reference):
    start = finished_with_one_corrupt_shard
    states = list(after_power_loss(tmp_path, use_disk, reference, start=start))
    assert len(states) > 10
    assert not any(states)


@pytest.mark.parametrize(("without", "symptom"), [("sync", "corrupt"), ("sync_dir", "lost")])
def test_power_loss_shows_the_want_of_each_sync(without, symptom, tmp_path, use_disk, reference):
    states = after_power_loss(tmp_path, use_disk, reference, without=without)
    assert any(symptom in problem for bad in states for problem in bad)


def test_new_folders_are_made_durable(tmp_path, use_disk):
    recorder = PowerDisk()
    use_disk(recorder)
    Stage.open(tmp_path / "a" / "b", "s", fingerprint=FINGERPRINT, inputs={}, backend=BACKEND)
    synced = [name for operation, name, _ in recorder.events if operation == "sync_dir"]
    assert synced[:4] == [tmp_path.name, "a", "b", "s"]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "a.safetensors"
    write_shard(path, tensors(0), kind="trajectory", index=0, metadata={"prompt": "a red ball"})
    return path


@contextmanager
def changed(path: Path, place: int, new: bytes) -> Iterator[None]:
    """Other bytes in place (rewriting the file each time would be slow)."""
    with path.open("r+b", buffering=0) as file:
        old = os.pread(file.fileno(), len(new), place)
        os.pwrite(file.fileno(), new, place)
        yield
        os.pwrite(file.fileno(), old, place)


def test_flipped_bits_are_found(shard):
    data, dice = shard.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    in_header = [dice.randrange(header) for _ in range(3000)]
    in_body = [dice.randrange(header, len(data)) for _ in range(3000)]
    for place in in_header + in_body:
        flipped = bytes([data[place] ^ 1 << dice.randrange(8)])
        with changed(shard, place, flipped), pytest.raises(CorruptError, match="is corrupt"):
            read_shard(shard)
    read_shard(shard)


def test_other_lengths_are_found(shard):
    data = shard.read_bytes()
    for length in reversed(range(len(data))):
        os.truncate(shard, length)
        with pytest.raises(CorruptError):
            read_shard(shard)
    shard.write_bytes(data + b"\0")
    with pytest.raises(CorruptError, match=f"has {len(data) + 1} bytes, by its header {len(data)}"):
        read_shard(shard)


def test_zeroed_pages_are_found(tmp_path):
    path = tmp_path / "a.safetensors"
    values = np.random.default_rng(0).standard_normal((4, 32, 32, 16), np.float32)
    write_shard(path, {"latents": values}, kind="trajectory", index=0)
    size, dice = path.stat().st_size, random.Random(0)
    for _ in range(500):
        place = dice.randrange(size - 4096)
        with changed(path, place, bytes(4096)), pytest.raises(CorruptError):
            verify_shard(path)
    verify_shard(path)


def test_flipped_bits_in_documents_are_found(tmp_path, reference):
    dice = random.Random(0)
    for name in ("stage.json", "SEALED.json"):
        path, data = tmp_path / name, reference[name]
        path.write_bytes(data)
        right = read_stamped(path)
        for _ in range(1000):
            place = dice.randrange(len(data))
            flipped = bytes([data[place] ^ 1 << dice.randrange(8)])
            with changed(path, place, flipped), suppress(CorruptError):
                assert read_stamped(path) == right  # white space may change


def test_a_corrupt_shard_alone_is_redone(tmp_path, reference):
    finished_with_one_corrupt_shard(tmp_path)
    made = []
    stage = build(tmp_path, on_made=made.append)
    assert made == [unit_name(1)]
    assert contents(stage) == reference
    ((name, reason),) = stage.moved_aside
    assert name == unit_name(1)
    assert "do not fit its sha256" in reason
    assert stage.path(f"{name}.bad-1").exists()


def test_sigkill_at_every_operation(tmp_path):
    result = work("kill_at_each_operation", tmp_path)
    assert result["kills"] > 15
    assert result["differing"] == []


def test_sigkill_at_random(tmp_path):
    result = work("kill_at_random", tmp_path)
    assert result["killed"] >= 20
    assert result["differing"] == 0


def test_four_writers_share_the_work(tmp_path):
    assert work("write_together", tmp_path) == {"made": [UNITS] * 10, "differing": 0}


def test_eight_race_for_a_dead_owners_claim(tmp_path):
    assert work("race_for_a_dead_claim", tmp_path) == {"winners": [1] * 20}
