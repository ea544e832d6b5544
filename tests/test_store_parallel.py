"""Several files are verified at once, with the results and errors of one after the other."""

import threading
import time

import numpy as np
import pytest

from taqdit.errors import CorruptError, StorageError
from taqdit.store import Stage, parallel, sha256_file, verify_shard

NAMES = [f"{index:06d}.safetensors" for index in range(12)]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(parallel, "_cores", lambda: 2)


@pytest.fixture
def stage(tmp_path):
    stage = Stage.open(tmp_path, "numbers", fingerprint="ab" * 32, inputs={}, backend={})
    for index, name in enumerate(NAMES):
        stage.write(name, {"x": np.arange(index + 1)}, kind="number", index=index, metadata={})
    return stage


def damage(stage, *indices):
    for index in indices:
        path = stage.path(NAMES[index])
        path.write_bytes(path.read_bytes()[:-1])


def test_results_come_in_the_order_of_the_items():
    def slow_at_first(item):
        time.sleep(0.02 if item == 0 else 0)
        return item**2

    assert list(parallel.each(slow_at_first, range(20))) == [item**2 for item in range(20)]
    assert list(parallel.each(slow_at_first, [])) == []


def test_two_are_at_work_at_once():
    both = threading.Barrier(2, timeout=10)
    assert list(parallel.each(lambda _: both.wait() >= 0, range(2))) == [True, True]


def test_one_item_needs_no_thread():
    assert list(parallel.each(lambda _: threading.get_ident(), [0])) == [threading.get_ident()]


def test_two_threads_a_core_are_at_work(monkeypatch):
    """One waits for the disk while another hashes, also on a single core; never more than eight."""
    for cores, threads in ((1, 2), (2, 4), (64, 8)):
        monkeypatch.setattr(parallel, "_cores", lambda cores=cores: cores)
        together = threading.Barrier(threads, timeout=10)
        assert set(parallel.each(lambda _, b=together: b.wait() >= 0, range(threads))) == {True}
        assert len(set(parallel.each(lambda _: threading.get_ident(), range(100)))) <= threads


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_the_rest(error):
    done = []

    def fails_at_three(item):
        time.sleep(0.002)
        if item == 3:
            raise error
        done.append(item)

    with pytest.raises(error):
        list(parallel.each(fails_at_three, range(1000)))
    assert len(done) < 100
    assert not [t for t in threading.enumerate() if t.name.startswith("store")]


def test_leaving_the_loop_ends_the_rest():
    done = []

    def note(item):
        time.sleep(0.002)
        done.append(item)

    results = parallel.each(note, range(1000))
    next(results)
    results.close()
    assert len(done) < 100


def test_files_are_verified_at_once_and_judged_in_their_order(stage, caplog):
    damage(stage, 7, 2, 10)
    both, seen = threading.Barrier(2, timeout=10), set()

    def verify(path):
        if path.name in NAMES[:2]:
            both.wait()
        seen.add(threading.get_ident())
        verify_shard(path)

    wanted = [*NAMES, "missing.safetensors"]
    sound = {name for index, name in enumerate(NAMES) if index not in (7, 2, 10)}
    assert stage.valid(iter(wanted), verify) == sound
    assert [name for name, _ in stage.moved_aside] == [NAMES[2], NAMES[7], NAMES[10]]
    assert all(stage.path(f"{NAMES[i]}.bad-1").exists() for i in (2, 7, 10))
    assert threading.get_ident() not in seen


def test_a_file_that_cannot_be_read_stops_there(stage):
    damage(stage, 1, 9)

    def verify(path):
        if path.name == NAMES[5]:
            raise StorageError("cannot read")
        verify_shard(path)

    with pytest.raises(StorageError, match="cannot read"):
        stage.valid(NAMES, verify)
    assert [name for name, _ in stage.moved_aside] == [NAMES[1]]
    assert stage.path(NAMES[9]).exists()


def test_a_name_that_is_asked_for_twice_is_moved_aside_once(stage):
    damage(stage, 4)
    assert stage.valid([NAMES[4], NAMES[4], NAMES[5]]) == {NAMES[5]}
    assert len(stage.moved_aside) == 1


def test_a_seal_lists_the_digests_of_its_files_in_order(stage):
    stage.seal()
    assert list(stage.seal_list.items()) == [(n, sha256_file(stage.path(n))) for n in NAMES]


def test_a_flipped_bit_is_found_whichever_thread_looks(stage):
    path = stage.path(NAMES[11])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError):
        verify_shard(path)
    assert stage.valid(NAMES) == set(NAMES[:11])
