"""The analytic model, which tells when a step begins and cannot be interrupted within one.

As with a real model, Python's signal handlers wait for the end of the call that computes. Each step
appends a byte to the file that TAQDIT_TEST_TICKS names. Reached as `model._target_=ticking.slow`
with TAQDIT_PLUGINS=ticking.
"""

import hashlib
import os
from contextlib import contextmanager
from dataclasses import dataclass

import analytic

__all__ = ["slow"]

ROUNDS = 40_000  # some 20 ms


def tick():
    """Append a byte."""
    file = os.open(os.environ["TAQDIT_TEST_TICKS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, b".")
    finally:
        os.close(file)


@dataclass(frozen=True)
class Ticking(analytic.Analytic):
    """Source and model in one."""

    def load(self, spec):
        return Ticking(latent_shape=spec.latent_shape, spec=spec)

    @contextmanager
    def denoiser(self, **about):
        with super().denoiser(**about) as denoise:

            def ticked(latent, step):
                tick()
                hashlib.pbkdf2_hmac("sha256", b"", b"", ROUNDS)
                return denoise(latent, step)

            yield ticked


def slow(
    *, local_ckpt=None, low_memory=False, use_t5=False, w16=False, a16=False, latent_size=(8, 8)
):
    """The ideal denoiser of Gaussian data."""
    return analytic._spec(Ticking(), latent_size)
