"""What an analysis keeps in the store: the same bits as computed anew, and never another's."""

import contextlib
import dataclasses
import io
import json
import shutil
import sys

import numpy as np
import pytest
from conftest import slow_unless, tree
from made_statistics import gaussian, made

import taqdit as package
from taqdit import backend
from taqdit.activations import stored as activations
from taqdit.activations.overview import overview
from taqdit.analysis import packed
from taqdit.analysis.profile import profile
from taqdit.analysis.selections import compare_rules, step_weights
from taqdit.errors import CorruptError
from taqdit.stages import analysis as stage
from taqdit.store import read_shard

GRID = (
    "schedule.num_steps=5",
    "sampler.num_trajectories=4",
    "sampler.batch_size=2",
    "sampler.images=false",
    "calibration.export=false",
    "tracer.folds=2",
    "tracer.blocks=[mm_00]",
    "stages=[conditioning,trajectories,statistics,analysis]",
    "analysis.compare=[paper_uniform,regret_optimal,coverage_optimal]",
    "analysis.budget=2",
    "analysis.budgets=[2,3]",
    "tracking=none",
    "plots=none",
)
KEPT = {"overview.safetensors", "profile.safetensors", "choices.safetensors"}


def launched(folder, *overrides):
    """A finished run of the grid in an output folder."""
    with contextlib.redirect_stdout(io.StringIO()):
        return package.launch([*GRID, f"output_dir={folder}", *overrides])


def findings(run):
    """What a run's analysis left, byte by byte."""
    return {
        name: data for name, data in tree(run.folder).items() if name.endswith((".csv", "is.json"))
    }


def entries(folder):
    """The kept analyses, in the order of their names."""
    return sorted((folder / "store" / "analysis").iterdir())


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run from nothing, and its output folder."""
    folder = tmp_path_factory.mktemp("kept")
    return launched(folder), folder


@pytest.fixture
def idle(monkeypatch):
    """Counts what is computed of the statistics anew."""
    calls = []
    for name in ("profile", "overview"):
        whole = getattr(stage, name)

        def counted(*arguments, name=name, whole=whole):
            calls.append(name)
            return whole(*arguments)

        monkeypatch.setattr(stage, name, counted)
    monkeypatch.setattr(activations, "overview", None)  # nobody takes another way
    return calls


def same(one, other):
    """Whether two results are equal to the last bit, whatever they are made of."""
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        fields = [field.name for field in dataclasses.fields(one) if field.name != "_found"]
        return type(one) is type(other) and all(
            same(getattr(one, name), getattr(other, name)) for name in fields
        )
    if isinstance(one, np.ndarray):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


def stored(kept, tmp_path):
    """What a shard gives back of packed arrays."""
    from taqdit.store.shard import write_shard

    write_shard(tmp_path / "x", kept.tensors, kind="analysis", index="x", metadata=kept.metadata)
    shard = read_shard(tmp_path / "x")
    return packed.Packed(shard.tensors, shard.metadata)


@pytest.fixture(params=["usual", "silent", "step"])
def statistics(request):
    """Made statistics: drifting values, a site of zeros among others, a single step."""
    if request.param == "silent":
        return made(
            lambda rng, site, step, t: rng.normal(size=(16, 8)) * (site > 0), num_steps=3, sites=3
        )
    steps = 1 if request.param == "step" else 5
    return made(gaussian(lambda step: 1 + step), num_steps=steps, sites=2)


def test_what_is_packed_is_read_back_to_the_last_bit(statistics, tmp_path):
    sites, weights = statistics.layout.sites, step_weights(statistics.sigmas)
    found, table = profile(statistics, weights), overview(statistics)
    again = packed.unpack_profile(stored(packed.pack_profile(found), tmp_path), sites)
    assert same(again, found)
    assert same(packed.unpack_overview(stored(packed.pack_overview(table), tmp_path), sites), table)


def test_a_comparison_does_not_tell_a_kept_profile_from_a_new_one(tmp_path):
    statistics = made(gaussian(lambda step: 1 + step), num_steps=6, sites=3)
    found = profile(statistics, step_weights(statistics.sigmas))
    kept = stored(packed.pack_profile(found), tmp_path)
    again = packed.unpack_profile(kept, statistics.layout.sites)
    results = [
        compare_rules(statistics, count=2, budgets=[2, 4], known=each) for each in (found, again)
    ]
    assert same(*results)


def test_arrays_of_other_sites_are_refused(statistics):
    sites = statistics.layout.sites
    found = packed.pack_profile(profile(statistics, step_weights(statistics.sigmas)))
    table = packed.pack_overview(overview(statistics))
    for unpack, each in ((packed.unpack_profile, found), (packed.unpack_overview, table)):
        with pytest.raises(ValueError, match="do not fit"):
            unpack(each, (*sites, sites[0]))
        with pytest.raises(KeyError):
            unpack(packed.Packed({}, each.metadata), sites)


def test_a_second_run_reads_what_the_first_one_kept(first, idle):
    run, folder = first
    (entry,) = entries(folder)
    assert {path.name for path in entry.glob("*.safetensors")} == KEPT
    before = tree(entry)
    again = launched(folder)
    assert not idle
    assert findings(again) == findings(run)
    assert tree(entry) == before


def test_anew_it_is_the_same(first, idle, monkeypatch):
    run, folder = first
    (entry,) = entries(folder)
    before = tree(entry)
    again = launched(folder, "refresh=[analysis]")
    assert sorted(idle) == ["overview", "profile"]
    assert findings(again) == findings(run)
    assert tree(entry) == before
    for path in folder.glob("store/analysis/*.replaced-*"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


@pytest.mark.parametrize("name", sorted(KEPT))
def test_a_corrupt_file_is_moved_aside_and_made_again(first, name, idle, caplog):
    run, folder = first
    (entry,) = entries(folder)
    before = tree(entry)
    path = entry / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    again = launched(folder)
    assert idle == [name.removesuffix(".safetensors")] * (name != "choices.safetensors")
    assert f"{name} is moved aside" in caplog.text
    assert findings(again) == findings(run)
    aside = entry / f"{name}.bad-1"
    assert aside.read_bytes() == data
    aside.unlink()
    assert tree(entry) == before


def test_the_entry_is_sealed_with_what_it_holds(first):
    _, folder = first
    (entry,) = entries(folder)
    sealed = json.loads((entry / "SEALED.json").read_text())
    assert {name for name, _ in sealed["files"]} == KEPT
    from taqdit.store import sha256_file

    assert all(sha256_file(entry / name) == digest for name, digest in sealed["files"])


@pytest.mark.slow
def test_intact_files_of_another_entry_are_not_taken(first, tmp_path, idle):
    """Neither those of other statistics nor those of another weighting, under the right name."""
    _, folder = first
    (own,) = entries(folder)
    other = launched(tmp_path, "analysis.weighting=equal")
    (entry,) = entries(tmp_path)
    assert entry.name != own.name
    idle.clear()
    for name in KEPT:
        (entry / name).write_bytes((own / name).read_bytes())
    assert findings(launched(tmp_path, "analysis.weighting=equal")) == findings(other)
    assert sorted(idle) == ["overview", "profile"]
    assert {path.name for path in entry.glob("*.bad-1")} == {f"{name}.bad-1" for name in KEPT}


@pytest.mark.parametrize(
    ("override", "entry_count"),
    [
        ("analysis.weighting=equal", 2),
        pytest.param("sampler.seed=1", 2, marks=pytest.mark.slow),
        pytest.param("sampler.num_trajectories=6", 2, marks=pytest.mark.slow),
        ("timestep_selection=dense_middle", 1),
        ("analysis.target=30", 1),
        ("analysis.budget=3", 1),
    ],
)
def test_what_changes_a_number_makes_another_entry(first, tmp_path, override, entry_count):
    _, folder = first
    shutil.copytree(folder / "store", tmp_path / "store")
    before = tree(tmp_path / "store" / "analysis")
    launched(tmp_path, override)
    after = tree(tmp_path / "store" / "analysis")
    assert len(entries(tmp_path)) == entry_count
    kept = {name: data for name, data in before.items() if "choices" not in name}
    kept = {name: data for name, data in kept.items() if "SEALED" not in name}
    assert all(after[name] == data for name, data in kept.items())


@pytest.mark.parametrize("other", slow_unless(["code"], ["chip", "code"]))
def test_another_machine_and_other_code_make_another_entry(first, tmp_path, other, monkeypatch):
    _, folder = first
    shutil.copytree(folder / "store", tmp_path / "store")
    described = {**backend.describe(), "chip": "another"}
    if other == "chip":
        monkeypatch.setattr(backend, "describe", lambda: described)
    else:
        monkeypatch.setattr(stage, "source_digest", lambda: "f" * 64)
    launched(tmp_path)
    assert len(entries(tmp_path)) == 2


def test_choices_are_added_up(first, tmp_path, idle, monkeypatch):
    from taqdit.timestep_selection import data_driven

    _, folder = first
    shutil.copytree(folder / "store", tmp_path / "store")
    launched(tmp_path, "analysis.budgets=[2,4]")
    (entry,) = entries(tmp_path)
    shard = read_shard(entry / "choices.safetensors")
    keys = {tuple(key) for key, _ in shard.metadata["choices"]}
    expected = {("coverage_optimal", k) for k in (2, 3, 4)}
    assert keys == expected | {("regret_optimal", k, 8) for k in (2, 3, 4)}
    for name in ("least_regret", "medoids"):
        monkeypatch.setattr(data_driven, name, None)
    launched(tmp_path, "analysis.budgets=[2,3,4]")
    assert not idle


@pytest.mark.slow
def test_beside_the_rule_of_a_plugin_no_choice_is_kept(tmp_path, monkeypatch):
    """Its code is not part of the fingerprint, and it may name its choices as it likes."""
    plugin = tmp_path / "plugins"
    plugin.mkdir()
    (plugin / "kept_rules.py").write_text(
        "from taqdit.timestep_selection import Selection, from_evidence\n"
        "__all__ = ['late']\n"
        "@from_evidence\n"
        "def late(trajectory, *, count=None):\n"
        "    steps = [trajectory.num_steps - 1]\n"
        "    steps = trajectory.known('late').once(('regret_optimal', 2, 8), lambda: steps)\n"
        "    return Selection.of(steps)\n"
    )
    monkeypatch.syspath_prepend(str(plugin))
    monkeypatch.setenv("TAQDIT_PLUGINS", "kept_rules")
    launched(tmp_path / "o", "timestep_selection._target_=kept_rules.late")
    (entry,) = entries(tmp_path / "o")
    assert {path.name for path in entry.glob("*.safetensors")} == KEPT - {"choices.safetensors"}
    sys.modules.pop("kept_rules", None)


def test_a_malformed_choice_is_damage(first, tmp_path):
    from taqdit.store import Stage

    run, folder = first
    shutil.copytree(folder / "store", tmp_path / "store")
    (entry,) = entries(tmp_path)
    found = Stage.at(entry)
    found.write(
        "choices.safetensors", {}, kind="analysis", index="choices", metadata={"choices": 3}
    )
    assert findings(launched(tmp_path)) == findings(run)
    assert (entry / "choices.safetensors.bad-1").exists()
    with pytest.raises(CorruptError):
        found.read("choices.safetensors", kind="analysis", index="overview")


@pytest.mark.slow
def test_code_that_was_edited_meanwhile_keeps_nothing(tmp_path, monkeypatch):
    """It would be filed under code that may not have made it."""
    monkeypatch.setattr(stage, "source_unchanged", lambda: False)
    launched(tmp_path)
    assert not list((tmp_path / "store" / "analysis").glob("*/*.safetensors"))
