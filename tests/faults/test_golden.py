"""Latents of the embedded model as one machine made them: another one comes within a tolerance.

The last bits depend on the machine, its BLAS and the version of MLX; the store says what they were.
After a change of the embedded model, make the file anew:

    PYTHONPATH=tests .venv/bin/python tests/faults/test_golden.py
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ledger import shows

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).with_name("golden_latents.npy")
TEXTS = ("a large red circle at the center on a white background", "a small blue ring at the top")
STEPS, KEPT = 6, (3, 6)  # model evaluations; the latents that are compared
TOLERANCE = 1e-3  # of latents whose standard deviation is about 1


def latents():
    """(2, 2, 8, 8, 16) float32: of two trajectories the latent in the middle and the last one."""
    from taqdit.backend import mx
    from taqdit.models.options import tiny
    from taqdit.sampler import euler
    from taqdit.schedule import flow
    from taqdit.trajectories import sampling

    model = tiny().load()
    rows = [model.encode(text) for text in (*TEXTS, "", "")]
    tokens, pooled = (mx.array(np.stack(part)) for part in zip(*rows, strict=True))
    course = sampling.Sampling(
        model, lambda texts: (tokens, pooled), flow(num_steps=STEPS).sigmas(), euler()
    )
    found = course.sample(sampling.Batch(range(2), TEXTS, (0, 1)))
    return np.stack([latent for step, latent in found if step in KEPT])


def differ(found):
    """Largest absolute difference from the golden latents."""
    golden = np.load(GOLDEN, allow_pickle=False)
    assert (golden.shape, golden.dtype) == (found.shape, found.dtype)
    return float(np.abs(found - golden).max())


@shows("P13", f"latents of the embedded model within {TOLERANCE} of the committed ones")
def test_latents_are_the_committed_ones(capsys):
    error = differ(latents())
    with capsys.disabled():
        print(f"\ngolden latents: largest difference {error:.2e}, allowed {TOLERANCE}")
    assert error <= TOLERANCE
    return len(KEPT) * len(TEXTS)


@pytest.mark.slow
@shows("P13", "the same with MLX's own BLAS, in a process of its own", trials=1)
def test_another_blas_gives_the_same_within_the_tolerance():
    code = "import test_golden; print(test_golden.differ(test_golden.latents()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env={"TAQDIT_BLAS": "0", "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= TOLERANCE


def test_the_tolerance_can_tell():
    """A thousandth more of everything is beyond it."""
    golden = np.load(GOLDEN)
    assert golden.std() == pytest.approx(1, abs=0.5)
    assert GOLDEN.stat().st_size < 20_000
    assert differ(golden) == 0
    assert differ(golden * np.float32(1.001)) > TOLERANCE


if __name__ == "__main__":
    np.save(GOLDEN, latents())
