"""Run in a process of its own by the tests (a test process may hold a GPU, which forking breaks):
forks children that build, race and get killed, and prints what came of it as JSON."""

import fcntl
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from company_checks import no_locks
from store_lab import FaultyDisk, QuickDisk, build, contents, open_stage

from taqdit.store import disk


class KillingDisk(FaultyDisk):
    def step(self) -> None:
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def fork(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr)
        os._exit(1)
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at_each_operation(root: Path) -> dict:
    reference = contents(build(root / "reference"))
    differing = []
    for number in count(1):

        def die_or_finish(at: int = number) -> None:
            disk.current = KillingDisk(at)
            build(root / str(at))

        if wait(fork(die_or_finish)) == 0:
            return {"kills": number - 1, "differing": differing}
        if contents(build(root / str(number))) != reference:
            differing.append(number)


def kill_at_random(root: Path) -> dict:
    reference = contents(build(root / "reference"))
    dice = random.Random(0)
    killed = differing = number = 0
    while killed < 20:
        folder, number = root / str(number), number + 1
        for _ in range(2):
            pid = fork(lambda folder=folder: build(folder))
            time.sleep(dice.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
            killed += wait(pid) == -signal.SIGKILL
        differing += contents(build(folder)) != reference
    return {"killed": killed, "differing": differing}


def write_together(root: Path) -> dict:
    reference = contents(build(root / "reference"))
    made, differing = [], 0
    for number in range(10):
        folder, (read, write) = root / str(number), os.pipe()

        def work(folder: Path = folder, write: int = write) -> None:
            build(folder, on_made=lambda name: os.write(write, b"x"))

        children = [fork(work) for _ in range(4)]
        assert [wait(pid) for pid in children] == [0] * 4
        os.close(write)
        made.append(len(os.read(read, 100)))
        os.close(read)
        differing += contents(build(folder)) != reference
    return {"made": made, "differing": differing}


def race_for_a_dead_claim(root: Path) -> dict:
    stage = open_stage(root)
    winners = []
    for number in range(20):
        unit = str(number)

        def die_holding(unit: str = unit) -> None:
            with stage.claim(unit):
                os.kill(os.getpid(), signal.SIGKILL)

        wait(fork(die_holding))
        assert stage.path(f"{unit}.claim").exists()
        winners.append(_race(lambda unit=unit: stage.claim(unit)))
    return {"winners": winners}


def _race(claim: Callable) -> int:
    """How many of eight obtain the claim, when each holds on to it until all have tried."""
    (go, start), (results, report), (over, end) = os.pipe(), os.pipe(), os.pipe()

    def try_it() -> None:
        os.close(start)
        os.close(end)
        os.read(go, 1)
        with claim() as mine:
            os.write(report, b"\1" if mine else b"\0")
            os.read(over, 1)

    children = [fork(try_it) for _ in range(8)]
    os.close(start)
    os.close(report)
    answers = b""
    while len(answers) < 8 and (more := os.read(results, 8)):
        answers += more
    os.close(end)
    assert [wait(pid) for pid in children] == [0] * 8
    for descriptor in (go, results, over):
        os.close(descriptor)
    return sum(answers)


def write_together_without_locks(root: Path) -> dict:
    fcntl.flock = no_locks
    return write_together(root)


if __name__ == "__main__":
    disk.current = QuickDisk()
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
