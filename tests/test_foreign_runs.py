"""Folders of runs that others made: whatever a record holds, a verb refuses it in one line."""

import contextlib
import json
import os
import shutil
import signal
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from conftest import ANALYTIC

import taqdit
from taqdit.errors import CorruptError, InputError, StorageError, TaqditError
from taqdit.runs.api import open_run
from taqdit.store import read_journal, read_shard, sha256_file
from taqdit.store.digest import read_object
from taqdit.store.plain_yaml import checked_text
from taqdit.store_tools import Survey
from taqdit.store_tools.export import export_run
from taqdit.store_tools.image_set import ImageSet
from taqdit.store_tools.runs_found import runs_of
from taqdit.store_tools.verification import verify
from taqdit.trajectories.pictures import read_picture

GONE = object()
ODD = (
    *(GONE, None, 5, -1, True, 1e308, "x", "\0", "\ud800", "../../..", "x" * 5_000),
    *([], [1], ["\ud800"], {}, {"a": 1}, {"path": "\0", "sha256": "x"}, {"path": "x"}),
)
READ = ("config", "store", "stages", "prompts", "prompt_seeds", "imported", "imported_statistics")
GROUPS = ("sampler", "timestep_selection")


@pytest.fixture(scope="module")
def unstored(tmp_path_factory):
    """The outputs of a run that stored no conditioning; not to be changed."""
    home = tmp_path_factory.mktemp("unstored")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent / "plugins"))
        patch.setenv("TAQDIT_PLUGINS", "analytic")
        wanted = ("sampler.num_trajectories=2", "prompts.num=2", "prompts.store_conditioning=false")
        made = ("stages=[trajectories,calibration]", "calibration.export=false")
        taqdit.launch([*ANALYTIC, *wanted, *made, f"output_dir={home / 'outputs'}"])
    return home / "outputs"


@pytest.fixture
def run(unstored, tmp_path):
    """A private copy of the run with its store."""
    shutil.copytree(unstored, tmp_path / "outputs")
    (folder,) = tmp_path.glob("outputs/runs/*/*")
    return folder


def read(run, name="run.json"):
    return json.loads((run / name).read_text())


def write(run, document, name="run.json"):
    (run / name).write_text(json.dumps(document))


def places(record):
    """The keys that are read of a record, as tuples."""
    yield from ((key,) for key in READ)
    for group in GROUPS:
        yield from (("config", group), *(("config", group, key) for key in record["config"][group]))
    yield from (("stages", name) for name in record["stages"])
    yield from (("config", "model"), ("config", "model", "_target_"))


def altered(document, place, value):
    changed = deepcopy(document)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    if value is GONE:
        del inner[place[-1]]
    return changed


def look(run):
    """What the verbs and the library read of a run."""
    for found in runs_of(run.parents[2] / "store"):
        assert "\n" not in (found.note or "")
    yield lambda: ImageSet.of_run(run).entries()
    yield lambda: open_run(run).statistics()
    yield lambda: open_run(run).trajectories().latents(0)
    yield lambda: open_run(run).calibration().conditioning("")


def refused(run):
    """How many of them are refused. Whatever else they raise is raised."""
    errors = []
    for call in look(run):
        try:
            call()
        except TaqditError as error:
            errors.append(str(error))
    assert all(text and "\n" not in text for text in errors)
    return len(errors)


def tried(run, values):
    record, count = read(run), 0
    for place in places(record):
        for value in values:
            write(run, altered(record, place, value))
            count += refused(run)
    return count


def test_a_record_may_hold_anything(run):
    assert refused(run) == 1  # it traced nothing
    assert tried(run, (GONE, [1])) > 50


@pytest.mark.slow
def test_a_record_may_hold_anything_at_all(run):
    assert tried(run, ODD) > 400


@pytest.mark.parametrize("odd", [GONE, 5, "x", {}, {"trajectories": "x"}, {"trajectories": -1}])
def test_a_summary_may_hold_anything(run, odd):
    write(
        run,
        altered(read(run, "summary.json") | {"statistics": None}, ("statistics",), odd),
        "summary.json",
    )
    assert refused(run) == 1


@pytest.mark.parametrize("form", ["images", "npz", "latents"])
@pytest.mark.parametrize("odd", [{"store": "\0"}, {"store": "x" * 5_000}, {"imported": 5}])
def test_nothing_is_exported_of_an_odd_record(run, tmp_path, form, odd):
    write(run, read(run) | odd)
    with pytest.raises((CorruptError, InputError, StorageError)):
        export_run(run, tmp_path / "to", form)


@pytest.mark.parametrize("odd", [{}, {"seed": None}, {"seed": "x"}, {"seed": 12345}])
def test_a_trajectory_of_another_seed_is_not_listed(run, odd):
    stage = ImageSet.of_run(run).stage
    shard = read_shard(stage.path("000001.safetensors"))
    about = {key: shard.metadata[key] for key in ("prompt_index", "prompt_sha256", "batch")}
    arrays = {name: np.array(array) for name, array in shard.tensors.items()}
    stage.write("000001.safetensors", arrays, kind="trajectory", index=1, metadata=about | odd)
    whole, lacking = ImageSet.of_run(run).entries()
    assert [entry.index for entry in whole] == [0]
    assert "another seed" in lacking[1]
    (there,) = Survey.of(run.parents[2] / "store").stages
    (checked,) = verify([there])
    assert [(each.file, each.kind) for each in checked.corrupt] == [("000001.safetensors", "seed")]


def test_what_no_run_asked_for_is_not_counted_up_to(run):
    stage = ImageSet.of_run(run).stage
    for name in ("999999.png", "0999998.safetensors"):
        stage.path(name).write_bytes(b"mine")
    assert [*ImageSet.of_run(run).numbers] == [0, 1]
    found = ImageSet.of_stage(stage.folder)
    assert [*found.numbers] == [0, 1, 999_998, 999_999]
    assert set(found.entries()[1]) == {999_998, 999_999}


def test_conditioning_is_not_made_anew_of_other_weights(run, tmp_path):
    assert export_run(run, tmp_path / "to", "npz") == (1, 0)
    write(run, read(run) | {"weights": {"weights.safetensors": "0" * 64}})
    with pytest.raises(InputError, match=r"run\.json names other weights .*weights\.safetensors"):
        export_run(run, tmp_path / "other", "npz")
    assert not [*(tmp_path / "other").iterdir()]


READERS = {
    "run.json": read_object,
    "picture": lambda path: read_picture(path, owner="x"),
    "shard": read_shard,
    "digest": sha256_file,
    "journal": read_journal,
    "yaml": checked_text,
}


@pytest.mark.parametrize("read_it", READERS.values(), ids=READERS)
def test_nobody_waits_for_a_pipe(tmp_path, read_it):
    os.mkfifo(tmp_path / "pipe")
    with alarm(), pytest.raises((OSError, StorageError), match="not a regular file"):
        read_it(tmp_path / "pipe")


def test_a_pipe_for_a_record_or_a_picture_is_no_reason_to_wait(run, tmp_path):
    stage = ImageSet.of_run(run).stage
    for path in (stage.path("000000.png"), run / "run.json"):
        kept = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with alarm():
            assert any(each.problem for each in runs_of(stage.folder.parents[1])) == (
                path.parent == run
            )
            with pytest.raises(CorruptError, match="not a regular file"):
                export_run(run, tmp_path / "to", "images")
        path.unlink()
        path.write_bytes(kept)


@contextlib.contextmanager
def alarm(seconds=5):
    """Whoever waits is woken by an error."""

    def ring(*_):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
