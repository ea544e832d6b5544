"""Whole runs on full disks and through losses of power: one line, nothing half published, and the
same command again ends in the store of an undisturbed run (whole_runs.py has the disks)."""

import errno
import json
import os
import subprocess
import sys
from unittest.mock import patch

import pytest
import whole_runs
from conftest import ROOT
from ledger import shows
from store_lab import QuickDisk, using
from test_mutations import changed
from whole_runs import EMBEDDED, FORMULA, Cut, FullDisk, ends_wrong, recorded, run, sample, unfit

from taqdit.errors import StorageError
from taqdit.store import claim, disk

STRIDE = 37  # of operations, in the default run of the tests


def undisturbed(settings, root):
    """The store of a run, and its operations of the disk."""
    operations = whole_runs.count_operations(settings, root)
    return whole_runs.stored(root), operations


@pytest.fixture(scope="module")
def formula(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tests" / "plugins"))
        patch.setenv("TAQDIT_PLUGINS", "analytic")
        return undisturbed(FORMULA, tmp_path_factory.mktemp("formula"))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    return undisturbed(EMBEDDED, tmp_path_factory.mktemp("embedded"))


def full_at_each(settings, root, whole, *, begin=1, stride=1, ways=(False, True)):
    """Injected failures, at every operation from `begin` by `stride`; how many ended the run."""
    reference, operations = whole
    failed, bad = 0, []
    for number, at in enumerate(range(begin, operations + 1, stride)):
        for for_good in ways if stride == 1 else ways[number % 2 :][:1]:
            place = root / f"{at}-{for_good}"
            new = FullDisk(at, for_good=for_good)
            ended, wrong = whole_runs.full_at(settings, place, new, reference)
            failed += ended
            bad += [f"operation {at}: {each}" for each in wrong]
    assert bad == []
    return failed


@shows("P3", "a whole run of the analytic model: ENOSPC and a short write, by a stride")
def test_a_disk_that_fills_in_a_whole_run(tmp_path, formula):
    return full_at_each(FORMULA, tmp_path, formula, begin=7, stride=STRIDE)


@pytest.mark.long
@shows("P3", "a whole run of the analytic model: ENOSPC at each operation, once and for good")
def test_a_disk_that_fills_at_any_operation_of_a_run(tmp_path, formula):
    failed = full_at_each(FORMULA, tmp_path, formula)
    assert failed > 100
    return failed


@pytest.mark.long
@shows("P3", "a whole run of the embedded model, all its stages: ENOSPC at each operation")
def test_a_disk_that_fills_at_any_operation_of_a_traced_run(tmp_path, embedded):
    failed = full_at_each(EMBEDDED, tmp_path, embedded, ways=(False,))
    assert failed > 150
    return failed


@shows("P3", "a run whose last file, its summary, does not fit: exit 4 all the same")
def test_a_summary_that_does_not_fit_is_an_error(tmp_path, formula):
    _, operations = formula
    error = None
    with whole_runs.in_order(), using(FullDisk(operations - 3)):
        error = run(FORMULA, tmp_path)
    assert error is not None
    assert "summary.json" in str(error)
    assert error.exit_code == 4
    return 1


@shows("P3", "a claim whose file cannot be filled is let go, though its error is kept", trials=1)
def test_a_claim_on_a_full_disk_is_let_go(tmp_path):
    """Jobs of a sweep share a process: the next one would wait for it for ever."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    path = tmp_path / "a.claim"
    with (
        pytest.raises(StorageError) as kept,
        patch.object(claim.json, "dumps", side_effect=full),
        claim.claim(path),
    ):
        pass
    with claim.claim(path) as mine:
        assert mine, kept.value


def at_work(what, root, trials, *, before=()):
    """What whole_runs.py found in a process of its own; how many runs failed."""
    done = subprocess.run(
        [*before, sys.executable, whole_runs.__file__, what, str(root), *map(str, trials)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bad"] == []
    return found["failed"]


@pytest.mark.slow
@shows("P3", "a whole run under quotas from 0 bytes up")
def test_quotas_of_all_sizes(tmp_path):
    failed = at_work("quotas", tmp_path, range(0, 20_000, 800))
    assert failed > 10
    return failed


def small_disks(root, options):
    """Runs on a real tmpfs of each of `options`, which then gets room; skips where none can be
    mounted."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    trial = [*alone, "mount", "-t", "tmpfs", "-o", "size=4k", "none", str(root)]
    try:
        done = subprocess.run(trial, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here (Linux has it)")
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    return at_work("small_disks", root, options, before=alone)


@pytest.mark.slow
@shows("P3", "a whole run on a tmpfs with too few pages, or too few files, of many sizes")
def test_small_file_systems_of_all_sizes(tmp_path):
    sizes = [f"size={4 * pages}k" for pages in range(1, 60, 2)]
    failed = small_disks(tmp_path, [*sizes, *(f"nr_inodes={number}" for number in range(2, 45, 2))])
    assert failed > 25
    return failed


def states(root):
    """A recorded run and every state that a loss of power may leave of it."""
    cut = Cut(recorded(FORMULA, root))
    return cut, list(cut.states())


def torn_and_lost(cut, found):
    """How many states hold a torn file, and how many lack an acknowledged one."""
    problems = [cut.torn_or_lost(state) for state in found]
    return sum(torn for torn, _ in problems), sum(lost for _, lost in problems)


def run_again(cut, chosen, root, reference):
    """Run again from these states: nothing else is in the store than had nothing been."""
    bad = []
    for number, state in enumerate(chosen):
        place = root / f"again-{number}"
        place.mkdir()
        cut.restore(state, place)
        wrong = [*unfit(place), *ends_wrong(FORMULA, place, reference)]
        bad += [f"state {number}: {each}" for each in wrong]
    assert bad == []
    return len(chosen)


@shows("P2", "a whole run: each state after a power cut at each event looked at, some run again")
def test_a_loss_of_power_in_a_whole_run(tmp_path, formula):
    cut, found = states(tmp_path / "recorded")
    assert torn_and_lost(cut, found) == (0, 0)
    assert len(found) > 100
    run_again(cut, sample(found, 3), tmp_path, formula[0])
    return len(found)


@pytest.mark.slow
@shows("P2", "a whole run: each state after a power cut at each event run again")
def test_a_loss_of_power_at_any_moment_of_a_run(tmp_path, formula):
    cut, found = states(tmp_path / "recorded")
    return run_again(cut, found, tmp_path, formula[0])


@pytest.mark.parametrize(
    ("function", "line", "what"),
    [
        (disk.publish, "current.sync(file)", 0),
        (disk.publish, "current.sync_dir(path.parent)", 1),
        (disk.make_folder, "current.sync_dir(folder.parent)", 1),
    ],
    ids=["the file's sync", "the folder's sync", "a new folder's sync"],
)
@shows("mutations", "a whole run without one of the syncs: states torn or with a loss", trials=1)
def test_a_sync_that_is_gone_is_noticed(tmp_path, formula, function, line, what):
    with changed(function, line, "pass"):
        cut, found = states(tmp_path / "recorded")
    assert torn_and_lost(cut, found)[what] > 0


def lie(root, formula, count):
    """Runs again from states of a disk that says "synced" and is not: torn files are under final
    names, and none is believed. How many."""
    with changed(disk.publish, "current.sync(file)", "pass"):
        cut, found = states(root / "recorded")
    reference, _ = formula
    torn = [state for state in found if cut.torn_or_lost(state)[0]]
    assert len(torn) > 100
    for number, state in enumerate(chosen := sample(torn, count)):
        place = root / f"lied-{number}"
        place.mkdir()
        cut.restore(state, place)
        with using(QuickDisk()):
            error = run(FORMULA, place)
        if error is not None:  # stage.json itself is torn: nothing of it is used
            assert error.exit_code == 5, error
            continue
        kept = whole_runs.stored(place)
        assert {k: v for k, v in kept.items() if ".bad-" not in k} == reference
    return len(chosen)


@shows("P2", "a disk that lies about syncs: a run again from states with torn files")
def test_torn_files_are_not_believed(tmp_path, formula):
    return lie(tmp_path, formula, 3)


@pytest.mark.long
@shows("P2", "a disk that lies about syncs: from more states with torn files")
def test_torn_files_are_not_believed_many_times(tmp_path, formula):
    return lie(tmp_path, formula, 200)
