"""`taqdit store manifest`, `export` and `import`: round trips, hostile names and files, deaths."""

import json
import os
import shutil
import subprocess
import zlib
from itertools import count

import numpy as np
import pytest
from conftest import ANALYTIC, command, tree
from exported import activations, reduced, stored
from faults.store_lab import Death, DyingDisk, QuickDisk
from faults.test_hostile_files import HOSTILE, saved
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from taqdit.activations.opened import export_npz, open_statistics
from taqdit.calibration.imported import import_npz
from taqdit.config import compose_config
from taqdit.errors import ConfigError, CorruptError, InputError, StorageError
from taqdit.runs.api import open_run
from taqdit.store import Stage, disk, read_shard, sha256_file
from taqdit.store_tools import (
    export as store_export,
)
from taqdit.store_tools import (
    import_data as store_import,
)
from taqdit.store_tools import (
    manifest as store_data,
)
from taqdit.store_tools.export import export_run
from taqdit.words import ranges

ODD = ('a "quoted" cat, with a comma', "ein Hündchen \\n 猫 🐈", "=1+1 </script> {x: 'y'}")
COUNT = 5  # asked for; whole batches of 2 are computed


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run of odd prompts; not to be changed."""
    home = tmp_path_factory.mktemp("original")
    (home / "odd.txt").write_text("\n".join(ODD), encoding="utf-8")
    wanted = ("prompts=file", "prompts.path=odd.txt", f"sampler.num_trajectories={COUNT}")
    line, env = command(*ANALYTIC, *wanted)
    done = subprocess.run(line, cwd=home, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = home.glob("outputs/runs/*/*")
    return run


@pytest.fixture
def run(original, tmp_path):
    """A private copy of the run with its store."""
    outputs = original.parents[2]
    shutil.copytree(outputs, tmp_path / "outputs")
    return tmp_path / "outputs" / original.relative_to(outputs)


@pytest.fixture
def use_disk(monkeypatch):
    return lambda new: monkeypatch.setattr(disk, "current", new)


def stage_of(run):
    (folder,) = (run.parents[2] / "store" / "trajectories").iterdir()
    return folder


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def manifest(*arguments):
    assert store_data.manifest([str(each) for each in arguments]) == 0


def read_manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def lines_of(folder):
    text = (folder / "metadata.jsonl").read_bytes()
    assert text.isascii()
    return [json.loads(line) for line in text.splitlines()]


# --- manifest --------------------------------------------------------------------------------


def test_a_manifest_lists_every_image_of_a_run_in_the_older_format(run):
    manifest(run)
    found = read_manifest(run)
    assert (found["num_images"], found["expected_images"], found["missing"]) == (COUNT, COUNT, [])
    assert (found["num_steps"], found["cfg_weight"]) == (6, 2.0)
    for index, image in enumerate(found["images"]):
        assert set(image) == {
            *("image_id", "prompt", "seed", "cfg_weight", "num_steps"),
            *("filename", "latent_filename"),
        }
        assert (image["image_id"], image["seed"]) == (index, index)
        assert image["prompt"] == found["images"][index]["prompt"] == ODD[index % len(ODD)]
        shard = read_shard(run / image["latent_filename"], kind="trajectory")
        assert shard.metadata["index"] == index
        assert (run / image["filename"]).samefile(stage_of(run) / f"{index:06d}.png")


def test_a_manifest_lists_only_what_is_whole_and_counts_the_rest(run, capsys):
    folder = stage_of(run)
    flip(folder / "000001.safetensors")
    (folder / "000003.png").unlink()
    (folder / "000005.safetensors").unlink()  # beyond what the run asked for
    before = tree(folder)
    manifest(run)
    assert tree(folder) == before  # nothing is moved aside
    found = read_manifest(run)
    assert [image["image_id"] for image in found["images"]] == [0, 2, 4]
    assert found["missing"] == [1, 3]
    said = capsys.readouterr().out
    assert f"3 of {COUNT} images; 2 missing or damaged: 1, 3" in said
    manifest(folder)
    assert read_manifest(folder)["missing"] == [1, 3, 5]  # its PNG is there, or its seal says so


def test_a_manifest_of_an_interrupted_run_counts_what_it_asked_for(run):
    folder = stage_of(run)
    for path in folder.iterdir():
        if path.name >= "000002" and path.name != "stage.json":
            path.unlink()
    (run / "summary.json").unlink()
    for where in (run, folder):
        manifest(where)
        found = read_manifest(where)
        assert (found["num_images"], found["missing"]) == (2, [2, 3, 4])


@pytest.mark.parametrize("asked", [10**12, 2**20 + 1, 0, True, "5", None])
def test_no_more_is_looked_for_than_a_run_can_ask_for(run, tmp_path, asked):
    record = json.loads((run / "run.json").read_text())
    record["config"]["sampler"]["num_trajectories"] = asked
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(CorruptError, match="num_trajectories="):
        manifest(run)
    with pytest.raises(CorruptError, match="num_trajectories="):
        export_run(run, tmp_path / "to", "images")
    (stage_of(run) / "999999999999.png").write_bytes(b"mine")
    manifest(stage_of(run))  # what the folder holds is enough
    assert read_manifest(stage_of(run))["expected_images"] == 6


def test_files_are_looked_for_by_the_folders_list_alone(run, monkeypatch):
    record = json.loads((run / "run.json").read_text())
    record["config"]["sampler"]["num_trajectories"] = 10_000
    (run / "run.json").write_text(json.dumps(record))
    read, looked = Stage.read, []

    def look(stage, name, **more):
        looked.append(name)
        return read(stage, name, **more)

    monkeypatch.setattr(Stage, "read", look)
    manifest(run)
    found = read_manifest(run)
    assert (found["num_images"], found["expected_images"]) == (6, 10_000)
    assert found["missing"] == list(range(6, 10_000))
    assert len(looked) == 6


def test_a_seal_tells_what_is_missing_where_no_run_is_left(run):
    folder = stage_of(run)
    shutil.rmtree(run)
    (folder / "000005.safetensors").unlink()
    (folder / "000005.png").unlink()
    manifest(folder)
    assert read_manifest(folder)["missing"] == [5]


def test_a_stage_by_itself_is_enough(run, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(stage_of(run), alone)
    manifest(alone, "--into", tmp_path / "new" / "list.json")
    found = json.loads((tmp_path / "new" / "list.json").read_text())
    assert found["num_images"] == 6
    assert all((tmp_path / "new" / image["filename"]).is_file() for image in found["images"])


def test_a_manifest_without_images_names_none(run):
    record = json.loads((run / "run.json").read_text())
    record["config"]["sampler"]["images"] = False
    (run / "run.json").write_text(json.dumps(record))
    (stage_of(run) / "000000.png").unlink()
    manifest(run)
    found = read_manifest(run)
    assert found["num_images"] == COUNT
    assert found["images"][0]["filename"] is None


def test_without_a_folder_every_stage_gets_its_manifest(run, monkeypatch):
    monkeypatch.chdir(run.parents[3])
    manifest()
    assert read_manifest(stage_of(run))["num_images"] == 6
    shutil.copytree(stage_of(run), stage_of(run).with_name("0" * 12))
    with pytest.raises(ConfigError, match="--into takes one manifest and there are 2"):
        store_data.manifest(["--into", "x.json"])


def test_a_manifest_writes_over_manifests_only(run, tmp_path):
    for text in ("my notes", "{}", "[]"):
        (tmp_path / "notes").write_text(text)
        with pytest.raises(InputError, match="no manifest of taqdit"):
            store_data.manifest([str(run), "--into", str(tmp_path / "notes")])
        assert (tmp_path / "notes").read_text() == text
    manifest(run)
    manifest(run)


@pytest.mark.parametrize("where", ["nothing", "conditioning"])
def test_what_is_no_data_set_is_refused(run, tmp_path, where):
    conditioning = next((run.parents[2] / "store" / "conditioning").iterdir())
    folder = {"nothing": tmp_path, "conditioning": conditioning}[where]
    with pytest.raises(InputError, match="is no stage of"):
        store_data.manifest([str(folder)])


def test_a_shard_of_another_prompt_is_not_listed(run):
    stage = Stage.at(stage_of(run))
    shard = read_shard(stage.path("000000.safetensors"))
    about = {k: shard.metadata[k] for k in ("prompt_index", "seed", "batch")}
    about["prompt_sha256"] = "0" * 64
    arrays = {name: np.array(array) for name, array in shard.tensors.items()}
    stage.write("000000.safetensors", arrays, kind="trajectory", index=0, metadata=about)
    manifest(run)
    assert read_manifest(run)["missing"] == [0]


@given(st.sets(st.integers(0, 40)))
def test_ranges_in_words(numbers):
    found = set()
    words = ranges(numbers)
    for word in words.removesuffix(" ..").split(", ") if numbers else ():
        low, _, high = word.partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    assert found == numbers or (words.endswith(" ..") and found < numbers)


# --- export ----------------------------------------------------------------------------------


def test_exported_images_are_those_of_the_store(run, tmp_path):
    assert export_run(run, tmp_path / "set", "images") == (COUNT + 1, 0)
    rows = lines_of(tmp_path / "set")
    assert [row["file_name"] for row in rows] == [f"{i:06d}.png" for i in range(COUNT)]
    assert [row["prompt"] for row in rows] == [ODD[i % len(ODD)] for i in range(COUNT)]
    assert [row["seed"] for row in rows] == list(range(COUNT))
    for row in rows:
        name = row["file_name"]
        assert (tmp_path / "set" / name).read_bytes() == (stage_of(run) / name).read_bytes()
    before = tree(tmp_path / "set")
    assert export_run(run, tmp_path / "set", "images") == (0, COUNT + 1)
    assert tree(tmp_path / "set") == before


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_one_line_per_image_whatever_the_prompt(prompt):
    from taqdit.store_tools.export import _line
    from taqdit.store_tools.image_set import Entry, ImageSet

    found = ImageSet(None, {"cfg_scale": 2.0, "num_steps": 6}, None, range(1), pictures=True)
    line = _line(found, Entry(0, prompt, 7), "000000.png")
    assert line.splitlines() == [line]
    assert json.loads(line)["prompt"] == prompt


def test_an_export_grows_with_its_run(run, tmp_path):
    record = json.loads((run / "run.json").read_text())
    record["config"]["sampler"]["num_trajectories"] = 2
    (run / "run.json").write_text(json.dumps(record))
    export_run(run, tmp_path / "set", "images")
    assert len(lines_of(tmp_path / "set")) == 2
    record["config"]["sampler"]["num_trajectories"] = COUNT
    (run / "run.json").write_text(json.dumps(record))
    assert export_run(run, tmp_path / "set", "images") == (COUNT - 2 + 1, 2)
    assert len(lines_of(tmp_path / "set")) == COUNT
    record["config"]["sampler"]["num_trajectories"] = 2
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"holds '000002.png', which is not of this export"):
        export_run(run, tmp_path / "set", "images")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cat.png", b"mine"),
        ("notes.txt", b"mine"),
        ("000001.png", b"mine"),
        ("metadata.jsonl", b'{"file_name": "cat.png"}\n'),
        ("metadata.jsonl", b"mine"),
    ],
)
def test_an_export_writes_over_nothing_of_anothers(run, tmp_path, name, content):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(content)
    with pytest.raises(InputError, match=r"not of this export|of another export"):
        export_run(run, tmp_path / "set", "images")
    assert (tmp_path / "set" / name).read_bytes() == content


def test_a_link_in_the_place_of_a_file_is_not_written_through(run, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "000000.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not of this export"):
        export_run(run, tmp_path / "set", "images")
    assert not (tmp_path / "nowhere").exists()


def test_the_picture_of_another_run_is_anothers(run, tmp_path):
    (tmp_path / "set").mkdir()
    shutil.copy(stage_of(run) / "000001.png", tmp_path / "set" / "000000.png")
    with pytest.raises(InputError, match="belongs to"):
        export_run(run, tmp_path / "set", "images")


HIDDEN = (".DS_Store", ".metadata.jsonl", ".000000.png", ".000000.npz", ".000000.png.new")


@pytest.mark.parametrize(
    ("form", "left"),
    [
        ("images", (".000000.png.12345-0a1b.tmp", ".metadata.jsonl.1-a.tmp")),
        ("latents", (".000000.npz.12-ab.tmp", ".000000.npz.new", "..000000.npz.new.1-a.tmp")),
        ("npz", (".calibration.npz.new", "..calibration.npz.new.1-a.tmp")),
    ],
)
def test_hidden_files_are_let_be_and_own_leftovers_cleared(run, tmp_path, form, left):
    (tmp_path / "set").mkdir()
    others = {*HIDDEN, ".other.png.12345-a.tmp", ".000000.png.12345.tmp"}
    for name in (*others, *left):
        (tmp_path / "set" / name).write_bytes(b"x")
    export_run(run, tmp_path / "set", form)
    assert {path.name for path in (tmp_path / "set").glob(".*")} == others


def test_what_another_export_compares_with_is_left_to_it(run, tmp_path, monkeypatch):
    to = tmp_path / "set"
    export_run(run, to, "npz")
    compared = []

    def digest(path):
        store_export._Export(to, [store_export.CALIBRATION])  # another one begins
        compared.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(store_export, "sha256_file", digest)
    assert export_run(run, to, "npz") == (0, 1)
    assert compared == ["calibration.npz", ".calibration.npz.new"]


@pytest.mark.parametrize("form", ["images", "npz", "latents"])
def test_nothing_is_exported_into_the_store(run, form):
    before = tree(run.parents[2])
    for folder in (stage_of(run), run.parents[2] / "store", run.parents[2] / "store" / "new"):
        with pytest.raises(InputError, match="lies in the store"):
            export_run(run, folder, form)
    assert tree(run.parents[2]) == before


@pytest.mark.parametrize("form", ["images", "latents"])
def test_what_is_damaged_is_told_and_the_list_waits_for_it(run, tmp_path, form):
    path = stage_of(run) / "000003.safetensors"
    whole = path.read_bytes()
    flip(path)
    with pytest.raises(CorruptError, match="1 missing or damaged: 3"):
        export_run(run, tmp_path / "set", form)
    there = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert [name[:6] for name in there] == ["000000", "000001", "000002", "000004"]
    path.write_bytes(whole)
    assert export_run(run, tmp_path / "set", form) == (2, COUNT - 1)
    assert len(lines_of(tmp_path / "set")) == COUNT


def test_a_run_without_images_exports_none(run, tmp_path):
    record = json.loads((run / "run.json").read_text())
    record["config"]["sampler"]["images"] = False
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="decoded no images"):
        export_run(run, tmp_path / "set", "images")


def test_exported_latents_are_those_of_the_store(run, tmp_path):
    export_run(run, tmp_path / "set", "latents")
    for row in lines_of(tmp_path / "set"):
        kept = read_shard(stage_of(run) / f"{row['image_id']:06d}.safetensors").tensors
        with np.load(tmp_path / "set" / row["file_name"], allow_pickle=False) as found:
            assert sorted(found) == sorted(kept)
            assert all(np.array_equal(found[name], kept[name]) for name in kept)
            assert all(found[name].dtype == kept[name].dtype for name in kept)


def test_the_exported_calibration_set_is_that_of_the_run(run, tmp_path):
    to = tmp_path / "set"
    assert export_run(run, to, "npz") == (1, 0)
    assert (to / "calibration.npz").read_bytes() == (run / "calibration.npz").read_bytes()
    assert export_run(run, to, "npz") == (0, 1)
    flip(to / "calibration.npz")
    damaged = tree(to)
    with pytest.raises(InputError, match="not of this export"):
        export_run(run, to, "npz")
    assert tree(to) == damaged


@pytest.mark.parametrize("form", ["images", "npz", "latents"])
def test_death_at_any_operation_of_an_export(run, tmp_path, use_disk, form):
    use_disk(QuickDisk())
    export_run(run, tmp_path / "reference", form)
    reference, outputs = tree(tmp_path / "reference"), tree(run.parents[2])
    for at in count(1):
        to = tmp_path / str(at)
        use_disk(DyingDisk(at))
        try:
            export_run(run, to, form)
            break
        except Death:
            pass
        use_disk(QuickDisk())
        assert ("metadata.jsonl" in tree(to)) <= (len(tree(to)) >= COUNT + 1)
        export_run(run, to, form)
        assert tree(to) == reference, f"died at operation {at}"
        assert tree(run.parents[2]) == outputs
    assert at > 3
    assert len(open_run(run).trajectories()) == COUNT


# --- import ----------------------------------------------------------------------------------


def take(source, outputs, capsys):
    """What is in the entry after an import, and what was said."""
    assert store_import.import_data([str(source), "--output-dir", str(outputs)]) == 0
    (entry,) = (outputs / "store" / "imported").iterdir()
    return entry, capsys.readouterr().out


def test_a_calibration_set_goes_into_the_store_and_out_of_it(tmp_path, capsys):
    (tmp_path / "good.npz").write_bytes(saved())
    entry, said = take(tmp_path / "good.npz", tmp_path / "out", capsys)
    assert (entry / "calibration.npz").read_bytes() == saved()
    found = import_npz(entry / "calibration.npz")
    assert Stage.at(entry).fingerprint[:12] == entry.name
    assert Stage.at(entry).inputs["points"] == len(found)
    override = said.split("taqdit ")[1].strip()
    assert compose_config([override]).inputs.calibration == str(entry / "calibration.npz")
    before = tree(entry)
    take(tmp_path / "good.npz", tmp_path / "out", capsys)
    assert tree(entry) == before


def test_what_is_said_to_type_can_be_typed(tmp_path, capsys):
    (tmp_path / "good.npz").write_bytes(saved())
    outputs = tmp_path / "it's ${here}, = [x]"
    entry, said = take(tmp_path / "good.npz", outputs, capsys)
    line = said.split("taqdit ")[1].strip()
    typed = subprocess.run(["sh", "-c", f"printf %s {line}"], capture_output=True, check=True)
    found = compose_config([typed.stdout.decode()]).inputs.calibration
    assert found == str(entry / "calibration.npz")


def test_a_damaged_entry_is_made_again(tmp_path, capsys):
    (tmp_path / "good.npz").write_bytes(saved())
    entry, _ = take(tmp_path / "good.npz", tmp_path / "out", capsys)
    flip(entry / "calibration.npz")
    take(tmp_path / "good.npz", tmp_path / "out", capsys)
    assert (entry / "calibration.npz").read_bytes() == saved()
    assert (entry / "calibration.npz.bad-1").exists()


def test_an_entry_that_has_lost_its_stage_json_is_whole_after_another_import(tmp_path, capsys):
    (tmp_path / "good.npz").write_bytes(saved())
    entry, _ = take(tmp_path / "good.npz", tmp_path / "out", capsys)
    before = tree(entry)
    for lose in (lambda path: path.unlink(), flip):
        lose(entry / "stage.json")
        take(tmp_path / "good.npz", tmp_path / "out", capsys)
        assert {name: data for name, data in tree(entry).items() if ".bad-" not in name} == before
    assert (entry / "stage.json.bad-1").exists()


def test_statistics_of_older_tools_are_taken_too(tmp_path, capsys):
    export_npz(stored(tmp_path / "st", reduced(activations())), tmp_path / "diagnostics.npz")
    entry, said = take(tmp_path / "diagnostics.npz", tmp_path / "out", capsys)
    assert "inputs.statistics=" in said
    assert open_statistics(entry / "activation_statistics.npz").num_steps == 3


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_npz_leaves_nothing_in_the_store(tmp_path, name):
    make, _ = HOSTILE[name]
    (tmp_path / "foreign.npz").write_bytes(make())
    with pytest.raises(InputError) as caught:
        store_import.import_data([str(tmp_path / "foreign.npz"), "--output-dir", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.npz"]
    assert all(text.isprintable() and len(text) < 600 for text in caught.value.args)


def test_a_file_that_changes_while_it_is_read_is_not_stored(tmp_path, monkeypatch):
    (tmp_path / "good.npz").write_bytes(saved())
    monkeypatch.setattr(store_import, "sha256_file", lambda path: "0" * 64)
    with pytest.raises(InputError, match="changed while it was read"):
        store_import.import_data([str(tmp_path / "good.npz"), "--output-dir", str(tmp_path)])
    assert not list(tmp_path.glob("store/imported/*/*.npz"))


def test_a_file_that_is_swapped_after_it_was_judged_is_not_stored(tmp_path, monkeypatch):
    source = tmp_path / "good.npz"
    source.write_bytes(saved())
    judged = store_import.import_npz

    def judged_and_swapped(path):
        found = judged(path)
        path.unlink()
        path.write_bytes(b"anything at all")
        return found

    monkeypatch.setattr(store_import, "import_npz", judged_and_swapped)
    with pytest.raises(InputError, match="changed while it was read"):
        store_import.import_data([str(source), "--output-dir", str(tmp_path)])
    assert not list(tmp_path.glob("store/imported/*/*.npz"))


def test_one_process_imports_at_a_time(tmp_path, capsys):
    (tmp_path / "good.npz").write_bytes(saved())
    entry, _ = take(tmp_path / "good.npz", tmp_path / "out", capsys)
    with Stage.at(entry).claim(store_import.NAME), pytest.raises(StorageError, match="another"):
        take(tmp_path / "good.npz", tmp_path / "out", capsys)


@pytest.fixture
def images(tmp_path):
    """A small foreign data set."""
    folder = tmp_path / "images"
    folder.mkdir()
    rows = []
    for number, prompt in enumerate(("a cat", ODD[1])):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 9, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"img_{number}.png")
        rows.append({"file_name": f"img_{number}.png", "prompt": prompt, "seed": number, "x": [1]})
    write_rows(folder, rows)
    return folder


def write_rows(folder, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def test_a_folder_of_images_goes_into_the_store(images, tmp_path, capsys):
    entry, said = take(images, tmp_path / "out", capsys)
    inside = tree(entry)
    assert {name: inside[name] for name in tree(images)} == tree(images)
    assert set(inside) == {*tree(images), "stage.json", "SEALED.json"}
    assert set(Stage.at(entry).seal_list) == {"img_0.png", "img_1.png", "metadata.jsonl"}
    assert "2 images" in said
    flip(entry / "img_0.png")
    take(images, tmp_path / "out", capsys)
    assert (entry / "img_0.png").read_bytes() == (images / "img_0.png").read_bytes()


def test_a_picture_that_is_swapped_after_it_was_judged_is_not_stored(images, tmp_path, monkeypatch):
    of = store_import.ForeignImages.of

    def judged_and_swapped(folder):
        found = of(folder)
        (folder / "img_1.png").write_bytes(b"anything at all")
        return found

    monkeypatch.setattr(store_import.ForeignImages, "of", judged_and_swapped)
    with pytest.raises(InputError, match=r"img_1\.png changed while it was read"):
        store_import.import_data([str(images), "--output-dir", str(tmp_path / "out")])
    assert not list(tmp_path.glob("out/store/imported/*/img_1.png"))


def test_a_list_that_begins_with_a_byte_order_mark_is_read(images, tmp_path, capsys):
    path = images / "metadata.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    entry, said = take(images, tmp_path / "out", capsys)
    assert "2 images" in said
    assert tree(entry)["metadata.jsonl"] == path.read_bytes()


def test_an_export_can_be_imported(run, tmp_path, capsys):
    export_run(run, tmp_path / "set", "images")
    entry, _ = take(tmp_path / "set", tmp_path / "out", capsys)
    assert lines_of(entry) == lines_of(tmp_path / "set")


def change_row(**changes):
    def change(folder):
        lines = (folder / "metadata.jsonl").read_text().splitlines()
        row = {**json.loads(lines[0]), **changes}
        write_rows(folder, [row, json.loads(lines[1])])

    return change


def replace_text(data):
    return lambda folder: (folder / "metadata.jsonl").write_bytes(data)


def replace_picture(make):
    def replace(folder):
        data = make((folder / "img_0.png").read_bytes())
        (folder / "img_0.png").unlink()
        (folder / "img_0.png").write_bytes(data)

    return replace


def huge(data):
    """A PNG whose first chunk, with a right checksum, claims more pixels than anyone has."""
    chunk = b"IHDR" + (2**31 - 1).to_bytes(4, "big") * 2 + data[24:29]
    return data[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[33:]


def flipped(at):
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def link(folder):
    (folder / "img_0.png").rename(folder.parent / "secret.png")
    (folder / "img_0.png").symlink_to(folder.parent / "secret.png")


def pipe(folder):
    (folder / "img_0.png").unlink()
    os.mkfifo(folder / "img_0.png")


def text_bomb(data):
    """A picture with a compressed text of 200 MB."""
    about = PngInfo()
    about.add_text("x", "0" * (200 << 20), zip=True)
    from io import BytesIO

    buffer = BytesIO()
    Image.new("RGB", (9, 12)).save(buffer, format="PNG", pnginfo=about)
    return buffer.getvalue()


HOSTILE_FOLDERS = {
    "a path": (change_row(file_name="../img_0.png"), "plain name"),
    "an absolute path": (change_row(file_name="/etc/passwd.png"), "plain name"),
    "a backslash": (change_row(file_name="..\\img_0.png"), "plain name"),
    "a hidden file": (change_row(file_name=".img_0.png"), "plain name"),
    "a line break": (change_row(file_name="img_0\n.png"), "plain name"),
    "a line's end": (change_row(file_name="img_0.png\n"), "plain name"),
    "no text": (change_row(file_name=["img_0.png"]), "plain name"),
    "the seal": (change_row(file_name="SEALED.json"), "plain name"),
    "listed twice": (change_row(file_name="img_1.png"), "2 times"),
    "twice but for case": (change_row(file_name="IMG_1.png"), "2 times"),
    "not there": (change_row(file_name="img_2.png"), "does not list"),
    "no prompt": (change_row(prompt=None), "prompt must be a text"),
    "a long prompt": (change_row(prompt="x" * 2001), "at most 2,000"),
    "a control character": (change_row(prompt="a\x1b[2J"), "U\\+001B"),
    "turned around": (change_row(prompt="a \u202e cat"), "U\\+202E"),
    "a seed in words": (change_row(seed="7"), "seed="),
    "a seed below zero": (change_row(seed=-1), "seed="),
    "no line": (replace_text(b"\n\n"), "lists 0 images"),
    "no JSON": (replace_text(b"img_0.png a cat\n"), "no JSON"),
    "a list": (replace_text(b"[1]\n"), "not an object"),
    "deep": (replace_text(b"[" * 60_000), "nested too deeply"),
    "a long line": (replace_text(b"[" * 100_000), "more than 65,536 bytes"),
    "not UTF-8": (replace_text(b'{"file_name": "\xff.png"}'), "no JSON"),
    "a lone surrogate": (
        replace_text(b'{"file_name": "img_0.png", "prompt": "\\ud800"}'),
        "U\\+D800",
    ),
    "no metadata": (lambda folder: (folder / "metadata.jsonl").unlink(), "cannot be read"),
    "an unlisted picture": (
        lambda folder: shutil.copy(folder / "img_0.png", folder / "more.PNG"),
        "does not list",
    ),
    "an empty picture": (replace_picture(lambda data: b""), "no PNG"),
    "a JPEG": (replace_picture(lambda data: b"\xff\xd8\xff\xe0" + data), "no PNG"),
    "a truncated picture": (replace_picture(lambda data: data[:-20]), "not a whole PNG"),
    "a longer picture": (replace_picture(lambda data: data + b"x"), "not a whole PNG"),
    "a flipped pixel": (replace_picture(flipped(60)), "not a whole PNG"),
    "a huge picture": (replace_picture(huge), "at most 2048 x 2048"),
    "a text bomb": (replace_picture(text_bomb), "not a whole PNG"),
    "a link": (link, "not a regular file"),
    "a pipe": (pipe, "not a regular file"),
}


@pytest.mark.parametrize("name", HOSTILE_FOLDERS)
def test_a_hostile_folder_of_images_is_refused(images, tmp_path, name):
    spoil, message = HOSTILE_FOLDERS[name]
    spoil(images)
    with pytest.raises(InputError, match=message) as caught:
        store_import.import_data([str(images), "--output-dir", str(tmp_path / "out")])
    assert str(caught.value).isprintable()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["npz", "images"])
def test_death_at_any_operation_of_an_import(images, tmp_path, use_disk, kind):
    source = images
    if kind == "npz":
        source = tmp_path / "good.npz"
        source.write_bytes(saved())

    def take_in(outputs):
        store_import.import_data([str(source), "--output-dir", str(outputs)])

    use_disk(QuickDisk())
    take_in(tmp_path / "reference")
    reference = tree(tmp_path / "reference")
    for at in count(1):
        use_disk(DyingDisk(at))
        try:
            take_in(tmp_path / str(at))
            break
        except Death:
            pass
        use_disk(QuickDisk())
        take_in(tmp_path / str(at))
        assert tree(tmp_path / str(at)) == reference, f"died at operation {at}"
    assert at > 10


# --- the command -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_words_of_the_command_and_their_exit_codes(run, tmp_path, taqdit):
    assert taqdit("store", "export", run, "--to", "set").returncode == 0
    assert len(lines_of(tmp_path / "set")) == COUNT
    assert taqdit("store", "import", "set").returncode == 0
    assert taqdit("store", "manifest", run).returncode == 0
    flip(stage_of(run) / "000000.png")
    done = taqdit("store", "export", run, "--to", "again")
    assert (done.returncode, done.stderr.count("\n")) == (CorruptError.exit_code, 1)
    assert taqdit("store", "export", run).returncode == ConfigError.exit_code
    assert taqdit("store", "export", "nowhere", "--to", "x").returncode == InputError.exit_code
