"""What was imported is listed and verified by the bytes that its seal knows."""

import json
import shutil

import pytest

import taqdit as package
from taqdit.cli import dispatch

SMALL = (
    "schedule.num_steps=3",
    "sampler.num_trajectories=2",
    "sampler.batch_size=2",
    "timestep_selection.count=2",
    "stages=[conditioning,trajectories,calibration]",
    "tracking=none",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return package.launch([*SMALL, f"output_dir={tmp_path_factory.mktemp('run')}"])


@pytest.fixture
def store(run, tmp_path, capsys):
    """An output folder with the run's calibration set and its images imported."""
    images = tmp_path / "images"
    dispatch(["store", "export", str(run.folder), "--to", str(images)])
    for source in (run.folder / "calibration.npz", images):
        dispatch(["store", "import", str(source), "--output-dir", str(tmp_path / "outputs")])
    shutil.rmtree(images)
    capsys.readouterr()
    return tmp_path / "outputs"


def verified(store, capsys):
    code = dispatch(["store", "verify", "--json", str(store)])
    return code, json.loads(capsys.readouterr().out)


def test_what_is_whole_is_whole(store, capsys):
    code, found = verified(store, capsys)
    assert (code, found["corrupt"], found["warnings"]) == (0, 0, 0)
    dispatch(["store", "ls", str(store)])
    assert " 1 file " in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["*/calibration.npz", "*/*.png", "*/metadata.jsonl"])
def test_another_byte_is_found(store, capsys, pattern):
    path = sorted((store / "store" / "imported").glob(pattern))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, found = verified(store, capsys)
    assert (code, found["corrupt"]) == (5, 1)


def test_a_file_that_is_gone_is_missed(store, capsys):
    next((store / "store" / "imported").glob("*/calibration.npz")).unlink()
    code, found = verified(store, capsys)
    assert (code, found["corrupt"]) == (5, 1)
