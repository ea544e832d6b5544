"""A sweep killed again and again, then run to its end: the same comparison, nothing done twice."""

import os
import random
import time

import pytest
from conftest import tree
from grid import BATCHES, FORWARDS, JOBS, Grid, Sweep, kill, whole
from ledger import shows

KILLS = 10
LINGER = 0.6  # seconds: at most this long after the call that a kill waits for
SEED = "TAQDIT_TEST_SEED"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The uninterrupted sweep, and its store's files."""
    _, sweep, store = whole(tmp_path_factory)
    return sweep, store


@pytest.fixture
def rng():
    """Other moments each time; the seed is shown if the test fails."""
    seed = int(os.environ.get(SEED) or random.SystemRandom().randrange(2**32))
    print(f"{SEED}={seed}")
    return random.Random(seed)


def killed_after(grid, calls, seconds):
    """Start the sweep, kill it some seconds after that many calls in all; the Sweep it was."""
    before = set(grid.sweeps())
    process = grid.start()
    while process.poll() is None and len(grid.calls()) < calls:
        time.sleep(0.01)
    while process.poll() is None and set(grid.sweeps()) <= before:
        time.sleep(0.01)  # before its first job it has nothing that it could lose
    time.sleep(seconds)
    assert kill(process), "the sweep had ended before it was killed"
    (root,) = set(grid.sweeps()) - before
    return Sweep(root, grid.calls())


def forwards(calls):
    return sum(call["call"] == "forward" for call in calls)


def interrupted(sweep):
    """Forwards of the batch that a killed sweep was at, or may have been: those of one batch."""
    at = max((number for number, calls in sweep.calls.items() if forwards(calls)), default=None)
    return 0 if at is None else JOBS[at][1]


def untouched(grid, sealed, sweep, reference):
    """No job asked a model for what was sealed before its sweep began."""
    for number, calls in sweep.calls.items():
        if reference.marks(number) <= sealed:
            assert not calls, f"job {number} called the model for what was there"


def killed_in_a_chain(grid, moments, reference):
    """Kill the sweep at each moment (calls, seconds); the killed sweeps."""
    found = []
    for calls, seconds in moments:
        sealed = grid.sealed()
        sweep = killed_after(grid, calls, seconds)
        untouched(grid, sealed, sweep, reference)
        found.append(sweep)
    return found


def finished(grid, killed, reference, store):
    """Run to the end after kills: the same result, and only what was lost is made again."""
    sealed = grid.sealed()
    sweep = grid.finish()
    untouched(grid, sealed, sweep, reference)
    assert sweep.compared == reference.compared
    assert tree(grid.store) == store
    lost = sum(map(interrupted, killed))
    made = forwards(grid.calls())
    assert FORWARDS <= made <= FORWARDS + lost
    print(f"{len(killed)} kills: {made} forwards, {FORWARDS} uninterrupted, {lost} may be lost")


@shows("P21", "an 18-job sweep killed along its way, then run again: only what was lost is made")
@pytest.mark.slow
def test_killed_ten_times_along_the_way(tmp_path, reference, rng):
    """After one another in one store, spread over the work."""
    sweep, store = reference
    total = len([call for calls in sweep.calls.values() for call in calls])
    moments = [
        (int((i + rng.random()) * total / KILLS), rng.uniform(0, LINGER)) for i in range(KILLS)
    ]
    print("killed after (calls, seconds):", moments)
    grid = Grid(tmp_path)
    killed = killed_in_a_chain(grid, moments, sweep)
    finished(grid, killed, sweep, store)
    assert len(killed) == KILLS
    return KILLS


@shows("P21", "an 18-job sweep killed once, at moments spread over its whole time")
@pytest.mark.long
def test_killed_at_any_time_in_ten_stores(tmp_path, reference, rng):
    """Moments spread evenly over the seconds that the sweep takes, each in a store of its own."""
    sweep, store = reference
    began = time.monotonic()
    Grid(tmp_path / "timed").finish()
    took, kills = time.monotonic() - began, 0
    for number in range(KILLS):
        grid = Grid(tmp_path / str(number))
        process = grid.start()
        seconds = (number + rng.random()) * took / KILLS
        time.sleep(seconds)
        kills += kill(process)
        print(f"store {number}: killed after {seconds:.2f} of {took:.2f} s")
        killed = [Sweep(root, grid.calls()) for root in grid.sweeps()]
        finished(grid, killed, sweep, store)
    return kills


@pytest.mark.slow
def test_a_whole_batch_is_what_a_kill_may_cost(reference):
    """The bound of the tests above is no more than one batch of the interrupted set."""
    sweep, _ = reference
    assert interrupted(sweep) == JOBS[-1][1]
    assert interrupted(Sweep(sweep.root, [])) == 0
    assert sum(forwards(calls) for calls in sweep.calls.values()) == FORWARDS
    assert BATCHES > 1
