"""Several processes complete one statistics stage: nothing twice, the bytes of one process.

Workers stand for processes: each holds claims of its own, and what dies lets them go. Their order,
deaths and what was stored before are drawn; nothing of them may show in what is published.
"""

import errno
import os
import re
from collections import Counter
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_oracle import sums_of

from taqdit.activations import Layout, Site
from taqdit.activations import step_shards as activations
from taqdit.schedule import flow
from taqdit.stages import context as bench
from taqdit.stages import statistics
from taqdit.stages.sampling import turns
from taqdit.store import Stage
from taqdit.store.disk import Disk

STEPS, BATCHES, BATCH_SIZE = 5, 4, 2
LAYOUT = Layout((Site("mm_00_img.post_gelu", 6), Site("embed.context_in", 2)), 3)
SIGMAS = flow(num_steps=STEPS).sigmas()


class World:
    """What all workers see: the store, the batches that are in it, every forward that was made."""

    def __init__(self, folder, batches=BATCHES):
        self.folder, self.batches = folder, batches
        self.stored, self.forwards = set(), Counter()
        self.stage()

    def stage(self):
        return Stage.open(
            self.folder, "statistics", fingerprint="a" * 64, inputs={}, backend={"device": "cpu"}
        )

    def forward(self, number, step):
        """What the model shows of a batch at a step."""
        self.forwards[number, step] += 1
        return shown(number, step)

    def files(self):
        return {path.name: path.read_bytes() for path in self.stage().folder.iterdir()}


@lru_cache
def shown(number, step):
    rng = np.random.default_rng([number, step])
    rows = range(number * BATCH_SIZE, (number + 1) * BATCH_SIZE)
    values = [
        rng.normal(size=(BATCH_SIZE, 3, site.width)).astype(np.float32) for site in LAYOUT.sites
    ]
    return sums_of(LAYOUT, values, [row % LAYOUT.folds for row in rows])


class Worker(statistics.StatisticsWork):
    """A process that merges for real, and whose model is the world."""

    def __init__(self, world):
        self.world = world
        plan = SimpleNamespace(
            layout=LAYOUT,
            sampler=SimpleNamespace(batch_size=BATCH_SIZE),
            traced_batches=world.batches,
        )
        work = SimpleNamespace(
            sigmas=SIGMAS,
            timesteps=1000 * SIGMAS,
            is_stored=lambda n: n in world.stored,
            stage=SimpleNamespace(claimants=lambda _: []),
        )
        super().__init__(SimpleNamespace(plan=plan), world.stage(), work)

    def _replay(self, number, steps):
        for step in steps:
            self._add(number, step, self.world.forward(number, step))

    def sample(self, number, *, until=STEPS):
        """Sample a batch, or begin to and die."""
        with self.stage.claim(f"batch-{number}") as mine:
            if not mine or number in self.world.stored:
                return
            for step in range(until):
                self._add(number, step, self.world.forward(number, step))
            if until == STEPS:
                self.world.stored.add(number)

    def work_to_the_end(self):
        while not self.catch_up():
            waiting = sorted(set(range(self.world.batches)) - self.world.stored)
            self.sample(waiting[0])
        self.__exit__()
        self.seal()


class Quick(Disk):
    """A disk that does not wait until what it wrote is safe."""

    def sync(self, file):
        file.flush()

    def sync_dir(self, folder):
        pass


@contextmanager
def new_world(**options):
    with TemporaryDirectory() as folder, patch("taqdit.store.disk.current", Quick()):
        yield World(Path(folder), **options)


@pytest.fixture(scope="module")
def reference():
    """The stage of a single worker that samples one batch after the other."""
    with new_world() as world:
        Worker(world).work_to_the_end()
        assert world.forwards == once(BATCHES)
        return world.files()


def once(batches):
    return Counter({(n, s): 1 for n in range(batches) for s in range(STEPS)})


def test_the_reference_holds_the_steps_alone(reference):
    shards = [activations.file_name(BATCHES * BATCH_SIZE, step) for step in range(STEPS)]
    assert sorted(reference) == sorted(["SEALED.json", "stage.json", *shards])


WORKERS = st.integers(0, 2)
DEEDS = st.one_of(
    st.tuples(st.just("merge"), WORKERS),
    st.tuples(st.just("claim a share"), WORKERS),
    st.tuples(st.just("sample"), WORKERS, st.integers(0, BATCHES - 1)),
)
DEATHS = st.tuples(st.just("die"), WORKERS, st.integers(0, BATCHES - 1), st.integers(0, STEPS))


def act(world, workers, deed):
    kind, who, *what = deed
    if kind == "merge":
        workers[who].catch_up()
    elif kind == "claim a share":
        workers[who]._take()
    elif kind == "sample":
        workers[who].sample(*what)
    else:
        number, until = what
        workers[who].sample(number, until=min(until, STEPS - 1))
        workers[who].__exit__()
        workers[who] = Worker(world)


@contextmanager
def played(deeds, *, before, checkpoints):
    """The world after three workers have done these deeds, and then all that was left."""
    wait = 0.0 if checkpoints else 60.0
    with new_world() as world, patch.object(statistics, "CHECKPOINT_SECONDS", wait):
        world.stored |= before
        workers = [Worker(world) for _ in range(3)]
        for deed in deeds:
            act(world, workers, deed)
        finish(world, workers)
        yield world


BEFORE = st.sets(st.integers(0, BATCHES - 1))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(deeds=st.lists(DEEDS, max_size=14), before=BEFORE, checkpoints=st.booleans())
def test_nothing_is_computed_twice(reference, deeds, before, checkpoints):
    """Whoever samples, merges and waits in whatever order, each step sees each batch once."""
    with played(deeds, before=before, checkpoints=checkpoints) as world:
        assert world.forwards == once(BATCHES)
        assert world.files() == reference


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(deeds=st.lists(DEEDS | DEATHS, max_size=14), before=BEFORE, checkpoints=st.booleans())
def test_the_dead_leave_nothing_behind(reference, deeds, before, checkpoints):
    """What a dead worker held is taken over, and the stage is that of one worker alone."""
    with played(deeds, before=before, checkpoints=checkpoints) as world:
        assert set(world.forwards) == set(once(BATCHES))
        assert world.files() == reference


def finish(world, workers):
    """All go on in turn until each sees that nothing is missing."""
    for number in sorted(set(range(BATCHES)) - world.stored):
        workers[number % len(workers)].sample(number)
    for _ in range(len(workers)):  # a worker may wait for a step that a later one holds
        done = [worker.catch_up() for worker in workers]
    assert all(done)
    for worker in workers:
        worker.__exit__()
        worker.seal()


def test_a_stage_that_others_are_at_is_sealed_by_the_last(tmp_path):
    with new_world() as world:
        world.stored |= set(range(BATCHES))
        short = Worker(world)
        world.batches += 1
        long = Worker(world)  # traces one batch more
        long._take()
        short.work_to_the_end()
        assert "SEALED.json" not in world.files()
        long.work_to_the_end()
        assert "SEALED.json" in world.files()


def test_batches_ahead_wait_where_much_lies_to_be_merged():
    """Once it is merged it is kept as a checkpoint, and there is room again."""
    with new_world(batches=6) as world:
        owner, ahead = Worker(world), Worker(world)
        owner.catch_up()
        for number, crowded in ((1, False), (2, False), (3, True)):
            ahead.sample(number)
            assert ahead.crowded is crowded
        owner.sample(0)
        owner.catch_up()
        assert not ahead.crowded
        owner.work_to_the_end()
        assert world.forwards == once(6)


def test_the_first_batch_of_all_is_never_put_off(tmp_path):
    """The second one is looked at again only after the first is complete."""
    seen = []
    crowd = SimpleNamespace(crowded=True, catch_up=lambda: seen.append("look"), awaited=[])
    batches = turns(World(tmp_path).stage(), [3, 4], crowd)
    for number in islice(batches, 2):
        seen.append(number)
    batches.close()
    assert seen == ["look", 3, "look", "look", 4]
    seen, crowd.crowded = [], False
    crowd.catch_up = lambda: seen.append("look")
    for number in islice(turns(World(tmp_path).stage(), [3, 4], crowd), 2):
        seen.append(number)
    assert seen == ["look", 3, "look", 4]


def test_without_file_locks_the_bytes_are_the_same(reference):
    """Every claim is granted where the file system knows no locks, so work is done twice."""
    error = OSError(errno.ENOLCK, "no locks")
    with new_world() as world, patch("fcntl.flock", side_effect=error):
        workers = [Worker(world) for _ in range(2)]
        for number in range(BATCHES):
            workers[number % 2].catch_up()
            workers[number % 2].sample(number)
        finish(world, workers)
        assert set(world.forwards) == set(once(BATCHES))
        assert {name: world.files()[name] for name in reference} == reference


def test_who_is_waited_for_is_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(bench, "PATIENCE", -1.0)
    monkeypatch.setattr(bench, "POLL_SECONDS", 0.0)
    stage = World(tmp_path).stage()
    with stage.claim("batch-000003"), caplog.at_level("INFO"):
        waiting = bench.Waiting(stage)
        for _ in range(3):
            waiting.pause()
    (said,) = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(rf"waiting for batch-000003 \(host .+, process {os.getpid()}\)", said)


def test_a_corrupt_part_is_moved_aside_and_made_again(reference):
    with new_world() as world:
        first, second = Worker(world), Worker(world)
        first.catch_up()
        second.sample(1)
        part = world.stage().path(activations.part_name(1, 2))
        part.write_bytes(part.read_bytes()[:-1] + b"x")
        first.work_to_the_end()
        assert world.forwards == once(BATCHES) + Counter({(1, 2): 1})
        bad = f"{part.name}.bad-1"
        assert {name: data for name, data in world.files().items() if name != bad} == reference


def test_more_trajectories_go_on_from_fewer():
    with new_world(batches=2) as world:
        Worker(world).work_to_the_end()
        world.batches = BATCHES
        Worker(world).work_to_the_end()
        assert world.forwards == once(BATCHES)
