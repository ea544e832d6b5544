"""Every place where taqdit opens a file that may be another's, against files that nobody should
open: refused in one line or read rightly, cheaply. See hostile_lab.py for the places and files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ledger import shows

LAB = Path(__file__).with_name("hostile_lab.py")
SECONDS, MEGABYTES = 1, 50
BINARY = ("shard (.safetensors)", "weights (.safetensors)", "calibration.npz")
BINARY += ("activation statistics .npz", "stored picture", "imported picture")


def opened_all(folder, *arguments):
    """What came of all files, by loader, in a process of its own."""
    command = [sys.executable, str(LAB), str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def require(found):
    for name, each in found.items():
        (seconds, slow), (megabytes, large) = each["seconds"], each["megabytes"]
        print(
            f"{name:27} {each['files']:4} files, {each['refused']:4} refused, slowest"
            f" {1000 * seconds:5.0f} ms ({slow}), most {megabytes:5.1f} MB ({large})"
        )
        assert not each["problems"], (name, each["problems"][:5])
        assert seconds < SECONDS, (name, slow)
        assert megabytes < MEGABYTES, (name, large)
        assert each["files"] >= (40 if name in BINARY else 15)
    return sum(each["files"] for each in found.values())


@shows("P16", "hostile files for every loader: one line or right data, in 1 s and 50 MB resident")
@pytest.mark.slow
def test_hostile_files_everywhere(tmp_path):
    return require(opened_all(tmp_path))


@pytest.mark.long
@shows("P16", "hostile files for every loader: the same by Python's own count of memory")
def test_hostile_files_everywhere_traced(tmp_path):
    found = opened_all(tmp_path, "traced")
    assert set(BINARY) < set(found)
    return require(found)
