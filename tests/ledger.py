"""What the fault tests show, written down: one line of JSON for each test that a promise rests on.

    @shows("P1", "killed at every operation of the disk, half of the data written")
    def test_sigkill_at_every_operation(tmp_path):
        ...
        return number_of_kills

A test that shows something returns how many trials it made, or says so beforehand (`trials=1`
where each of its parameters is one). The lines are appended to the file that TAQDIT_FAULT_LEDGER
names; without it nothing is written. tests/faults/table.py runs the tests and writes the table.
"""

import functools
import json
import os
import platform
import time
from importlib.metadata import version

import pytest

VARIABLE = "TAQDIT_FAULT_LEDGER"
PROMISES = {
    "P1": "killed at any point and run again: a byte-identical store",
    "P2": "the same through a loss of power",
    "P3": "a full disk or a quota: one line, nothing half published, resumable",
    "P4": "damaged files are found before use, and they alone are redone",
    "P5": "several processes at one store do each other no harm",
    "P6": "work of another configuration is never mixed in",
    "P7": "Ctrl-C and SIGTERM: an end within one denoising step, what is published kept, exit 130",
    "P8": "NaN and infinity enter no data set or statistic unnoticed",
    "P9": "no sum overflows in float16",
    "P10": "statistics as good as float64, however the stream is split",
    "P11": "a trace interrupted and resumed equals an uninterrupted one bit for bit",
    "P12": "the same seed gives the same bytes, in any order and by any number of processes",
    "P13": "another machine or version: within stated bounds, and said",
    "P14": "out of memory: a clean stop, nothing lost",
    "P15": "W&B failing, hanging or absent harms no run",
    "P16": "foreign files run no code and stay within their budget",
    "P17": "a configuration cannot choose code",
    "P18": "secrets stay out of what is written",
    "P19": "prompt files are text and nothing else",
    "P20": "the weights are what they are said to be, and stay untouched",
    "P21": "a killed sweep goes on where it stopped",
    "P22": "clock and time zone do not matter",
    "mutations": "each check notices when what it checks is taken away",
}


def shows(promise, what, *, trials=None):
    """Mark a test as showing `promise` (a key of PROMISES) by doing `what`."""
    if promise not in PROMISES:
        raise ValueError(f"there is no promise {promise!r}")

    def mark(test):
        name = f"{test.__module__}::{test.__qualname__}"
        place = [test.__module__, test.__code__.co_firstlineno]
        declared = {"declared": name, "promise": promise, "what": what, "place": place}
        _write(declared)

        def write(trials, failures, began):
            seconds = round(time.monotonic() - began, 3)
            counts = {"trials": trials, "failures": failures, "seconds": seconds}
            about = {"test": name, "promise": promise, "what": what}
            _write({**about, **counts, "versions": versions()})

        @functools.wraps(test)
        def told(*arguments, **named):
            began = time.monotonic()
            try:
                made = test(*arguments, **named) or trials
                assert made, "a test without trials shows nothing"
            except pytest.skip.Exception:
                raise
            except BaseException:
                write(1, 1, began)
                raise
            write(made, 0, began)

        told.shows = declared
        return told

    return mark


@functools.cache
def versions():
    """What the trials were made with."""
    packages = {name: version(name) for name in ("taqdit", "mlx", "numpy", "safetensors")}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **packages,
    }


def _write(line):
    """One write of one line: processes that append to a file do not mix what they write."""
    if path := os.environ.get(VARIABLE):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, (json.dumps(line) + "\n").encode())
        finally:
            os.close(file)
