"""Ctrl-C and SIGTERM: no second step begins, what is published stays, the exit code says so."""

import itertools
import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ANALYTIC, command, tree
from ledger import shows

SETTINGS = (*ANALYTIC, "model._target_=ticking.slow", "calibration.export=false")
STEPS = 18  # of a whole run
EACH = 4  # interrupted runs in one store


class Store:
    """Runs of one command in one folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)

    def start(self):
        line, env = command(*SETTINGS)
        env |= {"TAQDIT_PLUGINS": "ticking", "TAQDIT_TEST_TICKS": str(self.folder / "ticks")}
        return subprocess.Popen(
            line,
            cwd=self.folder,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # a background shell without job control lets its children ignore Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def finish(self):
        process = self.start()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return self.files()

    def files(self):
        return tree(self.folder / "outputs" / "store")

    def ticks(self):
        """How many steps have begun in all runs."""
        ticks = self.folder / "ticks"
        return ticks.stat().st_size if ticks.exists() else 0

    def summaries(self):
        return list(self.folder.glob("outputs/runs/*/*/summary.json"))

    def run_until(self, ticks):
        """A run that has begun so many steps, or has ended."""
        before, process = self.ticks(), self.start()
        while process.poll() is None and self.ticks() < before + ticks:
            time.sleep(0.001)
        return process


def stopped(process):
    """Halt the process, so that it does nothing while one looks; whether it was still there."""
    process.send_signal(signal.SIGSTOP)
    while process.poll() is None:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            return True
        time.sleep(0.001)
    return False


def interrupt(store, number, dice):
    """Interrupt a run within a random step of it; whether there was one to interrupt."""
    process = store.run_until(dice.randint(1, 8))
    time.sleep(dice.uniform(0, 0.03))
    if not stopped(process):
        return False
    begun = store.ticks()
    kept = {name: data for name, data in store.files().items() if published(name)}
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    if process.returncode == 0 and store.ticks() == begun:
        return False  # its work was done
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert store.ticks() <= begun + 1, "it went on"
    assert kept.items() <= store.files().items()
    return True


def published(name):
    """Whether a file of the store is there for good."""
    return not name.endswith((".tmp", ".claim")) and "SEALED" not in name


def interrupt_again_and_again(folder, reference, stores):
    """EACH interrupts in each of several stores, which then end as if nothing had been."""
    dice, done = random.Random(0), 0
    numbers = itertools.cycle([signal.SIGINT, signal.SIGTERM])
    for number in range(stores):
        store = Store(folder / str(number))
        interrupted = sum(interrupt(store, next(numbers), dice) for _ in range(EACH))
        said = [json.loads(path.read_text())["status"] for path in store.summaries()]
        assert said.count("interrupted") == interrupted
        assert store.finish() == reference
        done += interrupted
    return done


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The store of an uninterrupted run."""
    store = Store(tmp_path_factory.mktemp("reference"))
    files = store.finish()
    assert store.ticks() == STEPS
    return files


pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.mark.slow
@shows("P7", "Ctrl-C or SIGTERM at a random moment: at most one more step begins")
def test_an_interrupt_ends_a_run_within_a_step(tmp_path, reference):
    return interrupt_again_and_again(tmp_path, reference, stores=1)


@shows("P7", "Ctrl-C or SIGTERM at a random moment, in more stores")
@pytest.mark.long
def test_an_interrupt_ends_a_run_within_a_step_many_times(tmp_path, reference):
    return interrupt_again_and_again(tmp_path, reference, stores=10)


@shows(
    "P7", "whole runs, a second Ctrl-C up to 0.2 s after the first: then the uninterrupted store"
)
@pytest.mark.slow
def test_a_second_interrupt_is_safe(tmp_path, reference):
    store, dice = Store(tmp_path / "store"), random.Random(0)
    done = 0
    for _ in range(4):
        process = store.run_until(dice.randint(1, 6))
        process.send_signal(signal.SIGINT)
        time.sleep(dice.uniform(0, 0.2))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (0, 130, -signal.SIGINT), errors
        done += process.returncode != 0
    assert store.finish() == reference
    return done
