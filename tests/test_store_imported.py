"""What was imported is listed, and verified by the digests that stage.json and its seal have."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import tree

import taqdit as package
from taqdit.calibration.imported import import_npz
from taqdit.cli.verbs import dispatch
from taqdit.errors import CorruptError, StorageError
from taqdit.store import publish_json
from taqdit.store.digest import read_stamped, stamp

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
def pictures(run, tmp_path):
    """The run's images, exported."""
    dispatch(["store", "export", str(run.folder), "--to", str(tmp_path / "images")])
    return tmp_path / "images"


@pytest.fixture
def store(run, pictures, tmp_path, capsys):
    """An output folder with the run's calibration set and its images imported."""
    for source in (run.folder / "calibration.npz", pictures):
        dispatch(["store", "import", str(source), "--output-dir", str(tmp_path / "outputs")])
    capsys.readouterr()
    return tmp_path / "outputs"


def verified(store, capsys):
    capsys.readouterr()
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


NPZ, IMAGES = "*/*.npz", "*/metadata.jsonl"


def stage_with(store, pattern):
    """The folder of what was imported."""
    return next((store / "store" / "imported").glob(pattern)).parent


def flip(path, at=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


def told(found):
    return [(each["kind"], each["file"]) for each in found["findings"]]


@pytest.mark.parametrize("pattern", [NPZ, IMAGES, "*/000001.png"])
@pytest.mark.parametrize("seal", ["gone", "damaged"])
def test_another_byte_is_found_without_a_seal(store, capsys, pattern, seal):
    folder = stage_with(store, pattern)
    (folder / "SEALED.json").unlink()
    assert verified(store, capsys)[1]["findings"] == []
    if seal == "damaged":
        (folder / "SEALED.json").write_bytes(b"{}")
    path = next(folder.glob(pattern.removeprefix("*/")))
    flip(path)
    code, found = verified(store, capsys)
    assert code == 5
    assert ("digest", path.name) in told(found)
    assert found["corrupt"] == (2 if seal == "damaged" else 1)


def test_what_a_repair_left_is_verified_and_what_it_took_is_missed(store, capsys):
    folder = stage_with(store, IMAGES)
    flip(folder / "000000.png")
    assert dispatch(["store", "repair", str(store)]) == 0
    code, found = verified(store, capsys)
    (gap,) = found["findings"]
    assert (code, gap["kind"]) == (0, "gap")
    assert gap["words"] == "missing: 000000.png; taqdit store import of the folder stores it again"
    (folder / "SEALED.json").unlink()
    flip(folder / "000001.png")
    code, found = verified(store, capsys)
    assert (code, told(found)) == (5, [("digest", "000001.png"), ("gap", None)])
    (folder / "000001.png").unlink()
    (folder / "metadata.jsonl").rename(folder / "metadata.jsonl.bad-1")
    (gap,) = verified(store, capsys)[1]["findings"]
    assert gap["words"].startswith("missing: 000000.png and 1 more; ")


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_pictures_are_known_by_their_digests_while_the_list_of_them_is_gone(
    store, capsys, pictures, damage
):
    folder = stage_with(store, IMAGES)
    before = tree(folder)
    damage(folder / "metadata.jsonl")
    done = 0 if damage is flip else 4  # what is gone cannot be moved aside
    assert dispatch(["store", "repair", str(store)]) == done
    lost = [("gap", None)] if damage is flip else [("missing", "metadata.jsonl")]
    assert told(verified(store, capsys)[1]) == lost
    shutil.copy(folder / "000000.png", folder / "000001.png")
    found = verified(store, capsys)[1]
    assert sorted(told(found), key=str) == sorted([*lost, ("seal", "000001.png")], key=str)
    dispatch(["store", "import", str(pictures), "--output-dir", str(store)])
    assert before.items() <= tree(folder).items()
    assert verified(store, capsys)[1]["findings"] == []


def refuse(path, data):
    raise StorageError("the disk is full")


def test_an_import_that_is_cut_off_leaves_the_digests(store, capsys, pictures, monkeypatch):
    folder = stage_with(store, IMAGES)
    flip(folder / "metadata.jsonl")
    monkeypatch.setattr("taqdit.store_tools.import_data.publish_bytes", refuse)
    with pytest.raises(StorageError, match="full"):
        dispatch(["store", "import", str(pictures), "--output-dir", str(store)])
    shutil.copy(folder / "000000.png", folder / "000001.png")
    assert told(verified(store, capsys)[1]) == [("seal", "000001.png"), ("gap", None)]


def test_a_seal_that_is_wrong_heals(store, capsys, pictures):
    """A whole picture that is not the one that it lists is moved aside, and comes back."""
    folder = stage_with(store, IMAGES)
    before = tree(folder)
    seal = read_stamped(folder / "SEALED.json")
    seal["files"][0][1] = "0" * 64
    publish_json(folder / "SEALED.json", stamp(seal))
    dispatch(["store", "repair", str(store)])
    dispatch(["store", "import", str(pictures), "--output-dir", str(store)])
    assert before.items() <= tree(folder).items()
    assert verified(store, capsys)[1]["findings"] == []


def test_a_picture_that_is_whole_but_another_is_found_without_a_seal(store, capsys):
    folder = stage_with(store, IMAGES)
    (folder / "SEALED.json").unlink()
    shutil.copy(folder / "000000.png", folder / "000001.png")
    code, found = verified(store, capsys)
    assert (code, told(found)) == (5, [("digest", None)])
    assert dispatch(["store", "repair", str(store)]) == 4
    assert "import it again, which moves aside what differs" in capsys.readouterr().out


def test_a_file_that_is_gone_is_missed_without_a_seal(store, capsys):
    folder = stage_with(store, NPZ)
    (folder / "SEALED.json").unlink()
    next(folder.glob("*.npz")).unlink()
    code, found = verified(store, capsys)
    assert (code, found["findings"][0]["words"]) == (
        0,
        "missing: calibration.npz; taqdit store import of the file stores it again",
    )


def test_another_file_in_the_place_of_an_imported_one_is_not_read(store, run, tmp_path):
    path = next(stage_with(store, NPZ).glob("*.npz"))
    assert len(import_npz(path))
    package.open_run(run.folder).calibration().export_npz(tmp_path / "again.npz")
    other = np.load(tmp_path / "again.npz")
    np.savez(path, **{**other, "cfg_scale": other["cfg_scale"] + 1})
    with pytest.raises(CorruptError, match="its bytes are not those that were imported"):
        import_npz(path)
    assert import_npz(shutil.copy(path, tmp_path))  # as any other file


@pytest.mark.parametrize("name", ["mine", "0123456789ab"])
@pytest.mark.parametrize("text", ["{}", "lights and sound", '{"stage": "imported", "sha256": ""}'])
def test_a_stage_json_of_ones_own_is_no_concern(run, tmp_path, name, text):
    """Beside a good file, in a folder that only looks like one of a store."""
    folder = tmp_path / "imported" / name
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text(text)
    assert import_npz(shutil.copy(run.folder / "calibration.npz", folder))


def test_a_stage_of_another_kind_is_no_concern(run, tmp_path):
    folder = tmp_path / "imported" / "0123456789ab"
    folder.mkdir(parents=True)
    inputs = {"file": "calibration.npz", "sha256": "0" * 64}
    publish_json(folder / "stage.json", stamp({"stage": "theatre", "inputs": inputs}))
    assert import_npz(shutil.copy(run.folder / "calibration.npz", folder))
