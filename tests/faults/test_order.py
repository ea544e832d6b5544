"""The bytes of a trajectory depend on its number and the seed: not on what was made before it, by
how many processes, or on anybody's random numbers."""

import ast
import random
import subprocess

import numpy as np
import pytest
from conftest import ANALYTIC, ROOT, command, tree
from ledger import shows

from taqdit.prompts.options import Prompts
from taqdit.sampler import euler
from taqdit.schedule import flow
from taqdit.store import Stage, sha256_hex
from taqdit.trajectories import conditioning, sampling

TEXTS = ("a large red circle at the center on a white background", "small blue ring, top")
BATCHES = 4


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """The bytes of a batch of the embedded model, by its number."""
    from taqdit.models.options import tiny

    model, folder = tiny().load(), tmp_path_factory.mktemp("rows")
    stage = Stage.open(folder, "conditioning", fingerprint="f" * 64, inputs={}, backend={})
    list(conditioning.encode(stage, ["", *TEXTS], model.encode))
    rows, sampler = conditioning.Conditioning(stage), euler(seed=3, batch_size=2)

    def latents(number):
        batch = sampling.Batch.of(number, sampler=sampler, prompts=Prompts(TEXTS, (None, None)))
        course = sampling.Sampling(model, rows.guided, flow(num_steps=3).sigmas(), sampler)
        steps = course.sample(batch)
        return b"".join(latent.tobytes() for _, latent in steps)

    return latents


def disturb(dice):
    """What others do to the global generators."""
    from taqdit.backend import mx

    np.random.seed(dice.randrange(2**32))  # noqa: NPY002 (this is what must not matter)
    mx.random.seed(dice.randrange(2**32))
    random.seed(dice.random())


@pytest.mark.slow
@shows("P12", "the embedded model's batches in other orders, among others' random numbers")
def test_any_order_gives_the_same_bytes(make):
    dice, numbers = random.Random(0), range(BATCHES)
    orders = [list(numbers), list(numbers)[::-1]]
    orders += [dice.sample(numbers, BATCHES) for _ in range(4)]
    digests = set()
    for order in orders:
        made = {}
        for number in order:
            disturb(dice)
            made[number] = make(number)
        digests.add(sha256_hex(b"".join(made[number] for number in numbers)))
    assert len(digests) == 1
    assert len(set(map(make, numbers))) == BATCHES
    return len(orders)


@shows("P12", "1, 2 and 4 processes at once: one store")
@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_bytes(tmp_path):
    line, env = command(*ANALYTIC, "model._target_=analytic.slow")
    stores = []
    for number in (1, 2, 4):
        folder = tmp_path / str(number)
        folder.mkdir()
        started = [subprocess.Popen(line, cwd=folder, env=env) for _ in range(number)]
        assert [process.wait(timeout=120) for process in started] == [0] * number
        stores.append(tree(folder / "outputs" / "store"))
    assert stores[0]
    assert stores[0] == stores[1] == stores[2]
    return len(stores)


def calls(tree):
    """The dotted names of what a file calls, with the calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = ast.unparse(node.func)
            if name.replace(".", "").isidentifier():  # not a method of what another call gave
                yield name, node


BANNED = ("np.random.seed", "numpy.random.seed", "mx.random.seed", "random.seed", "time.time")
GLOBAL = ("np.random.", "numpy.random.", "random.")  # a draw from a generator that all share
HIDDEN = ("random", "numpy.random", "mlx.core.random", "time")  # under a name without a module
OWN = ("np.random.default_rng", "np.random.RandomState", "np.random.SeedSequence")


def complaints(path):
    """Uses of a shared generator or of the clock in a file, and generators without a seed."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in HIDDEN:
            yield f"{path}:{node.lineno}: from {node.module}"
    for name, node in calls(tree):
        keyless = name.startswith("mx.random.") and not any(k.arg == "key" for k in node.keywords)
        shared = name.startswith(GLOBAL) and name not in OWN
        seedless = name in OWN[:2] and not node.args
        if name in BANNED or shared or seedless or (keyless and name != "mx.random.key"):
            yield f"{path}:{node.lineno}: {name}"


@shows("P12", "source files read for seeds of shared generators, draws from them, time.time: none")
def test_no_file_uses_a_shared_generator_or_the_clock(tmp_path):
    files = sorted((ROOT / "taqdit").rglob("*.py"))
    assert [line for path in files for line in complaints(path)] == []
    bad = tmp_path / "bad.py"
    lines = ["np.random.seed(0)", "mx.random.seed(0)", "time.time()", "np.random.rand(3)"]
    lines += ["random.random()", "np.random.default_rng()", "mx.random.normal((2,))"]
    lines += ["from time import time", "from numpy.random import rand"]
    bad.write_text("\n".join(lines))
    assert len(list(complaints(bad))) == len(lines)
    return len(files)
