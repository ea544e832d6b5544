"""`taqdit store gc`: what no run refers to goes, and nothing else does, whatever happens."""

import errno
import json
import os
import shutil
import tempfile
from contextlib import suppress
from functools import lru_cache
from itertools import combinations_with_replacement, count
from pathlib import Path

import numpy as np
import pytest
from conftest import ANALYTIC, tree
from faults.store_lab import Death, DyingDisk, FaultyDisk, QuickDisk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ledger import shows

from taqdit.cli.verbs import dispatch
from taqdit.errors import ConfigError, CorruptError, InputError, StorageError
from taqdit.report.run_folder import RunFolder
from taqdit.run import launch
from taqdit.runs.api import open_run
from taqdit.runs.record import publish_pointers, publish_record
from taqdit.stages.fingerprints import fingerprint
from taqdit.store import Stage, disk, make_folder, publish_json, read_shard
from taqdit.store.aside import claim_of, put_back, rename_away
from taqdit.store.claim import claim
from taqdit.store_tools import Survey, find_store, garbage, verify
from taqdit.store_tools import gc as store_gc
from taqdit.store_tools.garbage import find_garbage, remove_all
from taqdit.store_tools.remedies import commands
from taqdit.store_tools.repair import repair_stages
from taqdit.store_tools.runs_found import pointers, runs_of
from taqdit.store_tools.stage_folder import survey_stage
from taqdit.store_tools.verbs import SUBVERBS, about

SHARD = "000000.safetensors"
RECORD = {  # of a run, but for its store and its stages
    **{"config": {}, "prompts": ["a"], "prompt_seeds": [None]},
    **{"imported": None, "imported_statistics": None},
}


class Lab:
    """An output folder with stages as runs make them, one small shard each."""

    def __init__(self, outputs):
        self.outputs, self.store, self.runs = outputs, outputs / "store", 0
        self.store.mkdir(parents=True, exist_ok=True)

    def stage(self, name, **inputs):
        mark = fingerprint(inputs)
        stage = Stage.open(self.store, name, fingerprint=mark, inputs=inputs, backend={})
        values = np.frombuffer(bytes.fromhex(mark), np.uint8)
        stage.write(SHARD, {"x": values}, kind=name, index=0, metadata={})
        stage.seal()
        return stage

    def run(self, *stages, where="runs/2026-01-01", **more):
        folder = self.outputs / where / f"{self.runs:06d}"
        self.runs += 1
        folder.mkdir(parents=True)
        marks = dict(stages)
        store = os.path.relpath(self.store, folder)
        publish_json(folder / "run.json", {**RECORD, "store": store, "stages": marks, **more})
        return folder

    def folders(self):
        return {path for path in self.store.glob("*/*") if path.is_dir()}

    def gc(self, *flags):
        return store_gc.gc([str(self.outputs), *flags])


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "outputs")


@pytest.fixture
def use_disk(monkeypatch):
    return lambda new: monkeypatch.setattr(disk, "current", new)


# --- what is kept, what goes -----------------------------------------------------------------

PAIRS = [(model, seed) for model in (0, 1) for seed in (0, 1)]
CONDITIONING = [("conditioning", model) for model in (0, 1)]
TRAJECTORIES = [("trajectories", *pair) for pair in PAIRS]
STATISTICS = [("statistics", *pair, folds) for pair in PAIRS for folds in (2, 4)]
WEIGHTS = [("weights", model) for model in (0, 1)]
ANALYSES = [("analysis", each) for each in STATISTICS]
FIGURES = [("figures", each, None) for each in TRAJECTORIES]
FIGURES += [("figures", ("trajectories", *each[1:3]), each) for each in STATISTICS]
MARKED = [*CONDITIONING, *TRAJECTORIES, *STATISTICS, *WEIGHTS]


def mark_of(key):
    return fingerprint(inputs_of(key))


def inputs_of(key):
    """What a stage of this name was made from, as runs write it: the later ones hold the rest."""
    kind, *rest = key
    if kind == "weights":
        return {"of": rest[0]}
    if kind == "analysis":
        return {"statistics": [digest_of(rest[0])], "weighting": "sigma"}
    if kind == "figures":
        shown = rest[1] and [mark_of(rest[1]), 8]
        return {"trajectories": mark_of(rest[0]), "statistics": shown}
    values = zip(("model", "seed", "folds"), rest, strict=False)
    return {"weights": {"a": [rest[0]]}, **dict(values)}


@lru_cache
def digest_of(key):
    """Of the shard that a stage of this name holds."""
    with tempfile.TemporaryDirectory() as place:
        stage = Lab(Path(place)).stage(key[0], **inputs_of(key))
        return read_shard(stage.path(SHARD)).metadata["sha256"]


def below(key):
    """What a stage was made from."""
    kind, *rest = key
    found = [("conditioning", rest[0])] if kind in ("trajectories", "statistics") else []
    return [*found, ("trajectories", *rest[:2])] if kind == "statistics" else found


def needed(there, runs):
    """The oracle: what the runs lead to, of what is there."""
    named = {key for run in runs for key in run}
    found = named & there
    found |= {base for key in found for base in below(key)} & there
    known = named | found
    shown = {key for key in there if key[0] == "figures" and {key[1], key[2] or key[1]} <= known}
    return found | shown | {key for key in there if key[0] == "analysis" and key[1] in found}


@settings(max_examples=50)
@given(
    there=st.sets(st.sampled_from([*MARKED, *ANALYSES, *FIGURES]), max_size=16),
    runs=st.lists(st.sets(st.sampled_from(MARKED), max_size=3), max_size=3),
)
@example(there={FIGURES[0]}, runs=[{TRAJECTORIES[0]}])  # of data that are gone themselves
@example(there={FIGURES[0], FIGURES[4]}, runs=[{TRAJECTORIES[0]}])
@example(there={*STATISTICS[:2], *ANALYSES[:2], *FIGURES[4:6]}, runs=[{STATISTICS[0]}])
def test_exactly_what_no_run_leads_to_goes(there, runs):
    runs = [{key[0]: key for key in run}.values() for run in runs]  # one of each kind
    disk.current, before = QuickDisk(), disk.current
    try:
        with tempfile.TemporaryDirectory() as place:
            lab = Lab(Path(place) / "outputs")
            made = {key: lab.stage(key[0], **inputs_of(key)).folder for key in there}
            for run in runs:
                lab.run(*((key[0], mark_of(key)) for key in run))
            assert lab.gc("--yes") == 0
            assert lab.folders() == {made[key] for key in needed(there, runs)}
    finally:
        disk.current = before


@pytest.fixture
def small(lab):
    """Two runs over one conditioning and what they show, and data that no run refers to."""
    for key in (CONDITIONING[0], TRAJECTORIES[0], STATISTICS[0], ANALYSES[0], FIGURES[0]):
        lab.stage(key[0], **inputs_of(key))
    lab.run(*((key[0], mark_of(key)) for key in (CONDITIONING[0], TRAJECTORIES[0], STATISTICS[0])))
    lab.run(*((key[0], mark_of(key)) for key in (CONDITIONING[0], TRAJECTORIES[0])))
    lab.lost = [lab.stage(key[0], **inputs_of(key)).folder for key in (CONDITIONING[1], FIGURES[1])]
    return lab


def test_a_stage_is_not_made_from_one_of_its_own_kind(lab):
    """Not where nobody knows what one was made from, nor where one's inputs hold the other's."""
    lost, other = (lab.stage(key[0], **inputs_of(key)) for key in CONDITIONING)
    lost.path("stage.json").write_text("{")
    all_latents = lab.stage("trajectories", seed=1)
    final_ones = lab.stage("trajectories", seed=1, latents="final")
    lab.run(("trajectories", final_ones.fingerprint))
    assert lab.gc("--yes") == 0
    assert lab.folders() == {lost.folder, final_ones.folder}
    assert not other.folder.exists()
    assert not all_latents.folder.exists()


def test_runs_of_sweeps_and_in_folders_of_ones_own_count(lab):
    places = ("runs/2026-01-01", "sweeps/2026-01-01/1", "mine", "mine/wandb", "a/b/c/d")
    for place in places:
        lab.run(where=place)
    lab.run(where="store/x")
    inside = lab.run(where="runs/x") / "wandb"
    inside.mkdir()
    (inside / "run.json").write_text("{}")  # W&B's own affair
    assert len(runs_of(lab.store)) == len(places) + 1


def test_runs_behind_a_link_count(small, tmp_path):
    (small.outputs / "runs").rename(tmp_path / "elsewhere")
    (small.outputs / "runs").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")
    assert [each.path for each in find_garbage(small.store).garbage] == small.lost


def test_a_store_behind_a_link_keeps_the_runs_beside_the_link(small, tmp_path):
    (tmp_path / "disk").mkdir()
    small.store.rename(tmp_path / "disk" / "store")
    small.store.symlink_to(tmp_path / "disk" / "store")
    (small.outputs / "runs").rename(small.outputs / "archive")
    small.gc("--yes")
    assert len(small.folders()) == 5


@pytest.mark.parametrize(("start", "given"), [("", "."), ("", "../store"), ("trajectories", "..")])
def test_a_run_that_was_moved_counts_wherever_one_stands(small, monkeypatch, start, given):
    (small.outputs / "runs").rename(small.outputs / "archive")
    monkeypatch.chdir(small.store / start)
    assert find_store(Path(given)).parent.samefile(small.outputs)
    store_gc.gc([given, "--yes"])
    assert len(small.folders()) == 5


def test_a_store_that_was_moved_keeps_what_is_read_by_its_path(small, tmp_path):
    """Of whichever kind, also what was replaced, and as a disk that ignores case may spell it."""
    folder = small.store / "statistics" / mark_of(STATISTICS[0])[:12]
    aside = folder.with_name(f"{folder.name}.replaced-1")
    shutil.copytree(folder, aside)
    spelled = aside.with_name(aside.name.upper())
    small.run(imported_statistics=str(spelled))
    small.run(imported={"path": str(small.lost[0] / SHARD), "sha256": ""})
    small.outputs.rename(tmp_path / "moved")
    store_gc.gc([str(tmp_path / "moved"), "--yes"])
    moved = [tmp_path / "moved" / each.relative_to(small.outputs) for each in small.lost]
    assert moved[0].is_dir()
    assert not moved[1].exists()
    assert (tmp_path / "moved" / aside.relative_to(small.outputs)).is_dir()


def test_a_stage_behind_a_link_is_left_alone(small, tmp_path):
    away = tmp_path / "away"
    small.lost[0].rename(away)
    small.lost[0].symlink_to(away)
    small.gc("--yes")
    assert small.lost[0].is_dir()
    assert (away / SHARD).is_file()


def test_statistics_and_files_that_a_run_read_are_kept(small):
    statistics = small.stage("statistics", other=1).folder
    aside = statistics.with_name(f"{statistics.name}.replaced-1")
    shutil.copytree(statistics, aside)
    small.run(imported_statistics=str(statistics))
    small.run(imported_statistics=str(aside))
    small.run(imported={"path": str(small.lost[0] / SHARD), "sha256": ""})
    small.gc("--yes")
    assert statistics.is_dir()
    assert aside.is_dir()
    assert small.lost[0].is_dir()
    assert not small.lost[1].is_dir()


def test_what_was_imported_is_kept(small):
    imported = small.stage("imported", kind="images").folder
    (imported / "a.png.bad-1").write_bytes(b"damaged, and all there is")
    small.gc("--yes")
    assert (imported / "a.png.bad-1").is_file()


def test_analyses_are_kept_while_statistics_are_being_made(small):
    analysis = small.stage("analysis", **inputs_of(ANALYSES[1])).folder
    (small.store / "statistics" / mark_of(STATISTICS[0])[:12] / "SEALED.json").unlink()
    small.gc("--yes")
    assert analysis.is_dir()


@pytest.mark.parametrize("name", ["stage.json", SHARD])
def test_what_is_damaged_is_kept_and_all_that_may_belong_to_it(small, name):
    path = small.store / "statistics" / mark_of(STATISTICS[0])[:12] / name
    path.write_bytes(path.read_bytes()[:-9])
    kept = [small.stage("analysis", **inputs_of(ANALYSES[1])).folder]
    if name == "stage.json":
        kept.append(small.stage("trajectories", **inputs_of(TRAJECTORIES[2])).folder)
    small.gc("--yes")
    assert all(folder.is_dir() for folder in kept)
    assert small.lost[0].is_dir() == (name == "stage.json")


def test_a_stage_of_which_nobody_knows_what_it_is_is_kept(small):
    (small.lost[1] / "stage.json").write_bytes(b"{")
    weights = small.stage("weights", of=1).folder
    (weights / "stage.json").unlink()
    begun = small.store / "figures" / ("0" * 12)  # by a process that has not yet written more
    begun.mkdir()
    small.gc("--yes")
    assert not small.lost[0].exists()
    assert small.lost[1].is_dir()
    assert begun.is_dir()
    assert weights.is_dir()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": {}, "store": "x"}', "[" * 10**5])
def test_a_record_that_cannot_be_read_stops_everything(small, text):
    folder = small.run()
    (folder / "run.json").write_text(text)
    before = tree(small.outputs)
    with pytest.raises(CorruptError, match=r"run\.json"):
        small.gc("--yes")
    assert tree(small.outputs) == before


@pytest.fixture
def shut(monkeypatch):
    """Let a method of paths be refused where a test says."""

    def shut(name, refuses):
        method = getattr(Path, name)

        def call(path, *arguments):
            if refuses(path):
                raise PermissionError(errno.EACCES, "Permission denied")
            return method(path, *arguments)

        monkeypatch.setattr(Path, name, call)

    return shut


@pytest.mark.parametrize("name", ["lost+found", ".Trashes"])
def test_folders_of_the_system_stop_nothing(small, shut, name):
    (small.outputs / name).mkdir()
    shut("iterdir", lambda path: path.name == name)
    assert small.gc("--yes") == 0
    assert not small.lost[0].is_dir()


def test_runs_in_hidden_folders_count(small):
    small.run(("conditioning", mark_of(CONDITIONING[1])), where=".mine")
    small.gc("--yes")
    assert small.lost[0].is_dir()


def test_a_folder_that_can_be_listed_and_not_entered_stops_everything(small, shut):
    (small.outputs / "mine").mkdir()
    shut("exists", lambda path: path.parent.name == "mine")
    with pytest.raises(StorageError, match="mine: Permission denied"):
        small.gc("--yes")


ODD = ([["a"]], {"a": 1}, [], [1], "text", 7)


@pytest.mark.parametrize("odd", [*ODD, None])
def test_analyses_of_nobody_knows_what_are_kept(small, odd):
    odd_one = small.stage("analysis", statistics=odd).folder
    unsaid = small.stage("analysis", other=1).folder
    small.gc("--yes")
    assert odd_one.is_dir()
    assert unsaid.is_dir()
    assert not small.lost[0].exists()


@pytest.mark.parametrize("odd", ODD)
def test_figures_of_nobody_knows_what_are_kept(small, odd):
    shown = mark_of(TRAJECTORIES[0])
    odd_ones = [small.stage("figures", trajectories=shown, statistics=odd)]
    odd_ones.append(small.stage("figures", trajectories=odd, statistics=None))
    assert small.gc("--yes") == 0
    assert odd_ones[0].folder.is_dir()
    assert odd_ones[1].folder.is_dir() == (odd != "text")
    assert not small.lost[0].exists()


@pytest.mark.parametrize("where", ["outputs", "store"])
def test_a_folder_that_cannot_be_listed_stops_everything(small, shut, where):
    (small.store / "runs").mkdir()
    shut("iterdir", lambda path: (path.parent.name, path.name) == (where, "runs"))
    with pytest.raises(StorageError, match="Permission denied"):
        small.gc("--yes")
    assert small.lost[0].is_dir()


@pytest.fixture
def shut_out(monkeypatch):
    """Let the listing of a stage's folder be refused."""
    return lambda folder: monkeypatch.setattr(os, "scandir", refusing(os.scandir, folder))


def refusing(method, folder):
    def call(path="."):
        if Path(os.fsdecode(path)) == folder:
            raise PermissionError(errno.EACCES, "Permission denied")
        return method(path)

    return call


@pytest.mark.parametrize("flags", [["--dry-run"], ["--yes"]])
def test_a_stage_that_cannot_be_listed_is_told_and_kept(small, shut_out, capsys, flags):
    shut_out(small.lost[1])
    assert small.gc(*flags) == StorageError.exit_code
    assert small.lost[1].is_dir()
    assert small.lost[0].is_dir() == (flags == ["--dry-run"])
    text = capsys.readouterr().out
    assert f"\nleft          cannot list {small.lost[1]}: Permission denied" in text
    assert small.gc("--yes") == StorageError.exit_code  # though nothing is left to remove
    assert "nothing to remove" in capsys.readouterr().out or flags == ["--dry-run"]


def test_a_stage_that_cannot_be_listed_at_the_last_moment_is_left(small, shut_out, capsys):
    found = find_garbage(small.store)
    shut_out(small.lost[0])
    left = remove_all(found.garbage, small.store)
    assert [each.path for each in left] == small.lost[:1]
    assert small.lost[0].is_dir()


@settings(max_examples=10)
@given(
    there=st.sets(st.sampled_from([*MARKED, *ANALYSES, *FIGURES]), min_size=1, max_size=16),
    runs=st.lists(st.sets(st.sampled_from(MARKED), max_size=3), max_size=3),
    data=st.data(),
)
@example(there={STATISTICS[0], TRAJECTORIES[0], ANALYSES[0], FIGURES[4]}, runs=[], data=None)
def test_a_stage_that_cannot_be_listed_keeps_more_and_never_less(there, runs, data):
    """As if a run referred to it, and to all that it may be made from."""
    runs = [{key[0]: key for key in run}.values() for run in runs]  # one of each kind
    hidden = data.draw(st.sampled_from(sorted(there, key=str))) if data else STATISTICS[0]
    disk.current, before = QuickDisk(), disk.current
    try:
        with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
            lab = Lab(Path(place) / "outputs")
            made = {key: lab.stage(key[0], **inputs_of(key)).folder for key in there}
            for run in runs:
                lab.run(*((key[0], mark_of(key)) for key in run))
            patch.setattr(os, "scandir", refusing(os.scandir, made[hidden]))
            assert lab.gc("--yes") == StorageError.exit_code
            patch.undo()
            assert lab.folders() >= {made[key] for key in needed(there, [*runs, {hidden}])}
    finally:
        disk.current = before


def test_each_verb_is_listed_with_a_whole_sentence():
    _, *listed = about().split("\n\n")[:-1]
    lines = listed[0].split("\n")
    assert len(lines) == len(SUBVERBS)
    assert all(line.endswith(".") for line in lines)


def test_no_store_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="holds no store"):
        store_gc.gc([str(tmp_path)])


# --- leftovers -------------------------------------------------------------------------------


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(small, capsys):
    kept = small.store / "trajectories" / mark_of(TRAJECTORIES[0])[:12]
    dead = [
        kept / ".x.png.123.tmp",
        kept / ".x.png.123-0a1b.tmp",
        kept / "batch-000000.claim",
        claim_of(kept),
        small.store / "runs" / ".x.json.1-0a1b.tmp",
    ]
    (small.store / "runs").mkdir()
    dead += [kept / f"{SHARD}.bad-1", kept / f"{SHARD}.bad-12"]
    for path in dead:
        path.write_bytes(b"12345")
    lonely = kept.with_name(f"{'f' * 12}.replaced-1")  # nothing has taken its place
    names = (f"{kept.name}.replaced-1", f"{kept.name}.removed-1", f"{'f' * 12}.removed-2")
    aside = [kept.with_name(name) for name in names]
    for folder in (*aside, lonely):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "file").write_bytes(b"12345")
    dead += aside
    others = [kept / "notes.txt", kept / "my.bad-day", small.store / "x.claim"]
    others.append(kept.with_name("mine.replaced-1"))
    for path in others:
        path.write_bytes(b"mine")
    living = kept / ".y.png.123.tmp"
    with living.open("wb") as file, Stage.at(kept).claim("batch-000001") as mine:
        from taqdit.store.lock import hold

        hold(file)
        assert mine
        found = {each.path for each in find_garbage(small.store).garbage}
        assert found == {*dead, *small.lost}
        assert len(find_garbage(small.store).garbage) == len(found)
        small.gc("--yes")
        assert living.exists()
        assert (kept / "batch-000001.claim").exists()
    assert not any(path.exists() for path in dead)
    assert all(path.read_bytes() == b"mine" for path in others)
    assert "moved aside as damaged" in capsys.readouterr().out
    assert lonely.is_dir()
    assert len(small.folders()) == 5 + 1


def test_links_in_what_goes_are_not_followed(small, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"mine")
    (small.lost[0] / "link").symlink_to(tmp_path / "precious")
    small.gc("--yes")
    assert not small.lost[0].exists()
    assert (tmp_path / "precious" / "file").read_bytes() == b"mine"


def test_a_removal_that_was_cut_off_is_undone_where_a_run_needs_it(small):
    folder = small.store / "trajectories" / mark_of(TRAJECTORIES[0])[:12]
    before = tree(folder)
    folder.rename(folder.with_name(f"{folder.name}.removed-1"))
    small.gc("--yes")
    assert tree(folder) == before
    shutil.copytree(folder, folder.with_name(f"{folder.name}.removed-1"))
    small.gc("--yes")  # made anew meanwhile
    assert tree(folder) == before
    assert not folder.with_name(f"{folder.name}.removed-1").exists()


@pytest.mark.parametrize("named", [True, False])
def test_what_was_replaced_and_half_removed_is_judged_anew(small, named):
    folder = small.store / "trajectories" / mark_of(TRAJECTORIES[0])[:12]
    aside = folder.with_name(f"{folder.name}.replaced-2")
    shutil.copytree(folder, aside.with_name(f"{aside.name}.removed-1"))
    if named:
        small.run(imported={"path": str(aside / SHARD), "sha256": ""})
    small.gc("--yes")
    assert aside.is_dir() == named
    assert len(small.folders()) == 5 + named


# --- asking ----------------------------------------------------------------------------------


def answer(monkeypatch, text):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def asked(question):
        if text is None:
            raise EOFError
        return text

    monkeypatch.setattr("builtins.input", asked)


@pytest.mark.parametrize("text", ["", "n", "no", "x", None])
def test_anything_but_yes_removes_nothing(small, monkeypatch, text, capsys):
    answer(monkeypatch, text)
    before = tree(small.outputs)
    assert small.gc() == 0
    assert tree(small.outputs) == before
    assert "nothing was removed" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["y", "Yes "])
def test_yes_removes(small, monkeypatch, text):
    answer(monkeypatch, text)
    small.gc()
    assert not any(folder.exists() for folder in small.lost)


def test_without_a_terminal_it_takes_a_flag(small, taqdit, capsys):
    before = tree(small.outputs)
    done = taqdit("store", "gc")
    assert (done.returncode, done.stderr.count("\n")) == (ConfigError.exit_code, 1)
    assert "--yes" in done.stderr
    with pytest.raises(ConfigError, match="no terminal"):
        small.gc()
    assert small.gc("--dry-run", "--yes") == 0
    assert tree(small.outputs) == before
    said = capsys.readouterr().out
    assert all(f"{path.parent.name}/{path.name}" in said for path in small.lost)
    assert small.gc("--yes") == 0
    assert len(small.folders()) == 5
    assert small.gc() == 0  # there is nothing to ask


def test_it_says_how_many_bytes(small, capsys):
    expected = sum(len(data) for folder in small.lost for data in tree(folder).values())
    assert sum(each.size for each in find_garbage(small.store).garbage) == expected


def test_it_says_so_where_there_is_no_run(lab, capsys):
    lab.stage("weights", of=1)
    lab.gc("--dry-run")
    assert "there is not one run" in capsys.readouterr().out


# --- company and faults ----------------------------------------------------------------------


def test_a_stage_in_use_is_left(small, capsys):
    with Stage.at(small.lost[0]).claim("batch-000000") as mine:
        assert mine
        assert find_garbage(small.store).busy == [small.lost[0]]
        assert [each.path for each in find_garbage(small.store).garbage] == [small.lost[1]]
        small.gc("--yes")
    assert small.lost[0].is_dir()
    assert not small.lost[1].is_dir()
    assert "in use" in capsys.readouterr().out


def test_a_stage_that_is_being_set_aside_is_left(small, capsys):
    with claim(claim_of(small.lost[0])) as mine:
        assert mine
        small.gc("--yes")
    assert small.lost[0].is_dir()
    assert "left " in capsys.readouterr().out


def test_a_stage_that_gets_a_claim_while_one_is_asked_is_left(small):
    found = find_garbage(small.store)
    with Stage.at(small.lost[0]).claim("batch-000000"):
        assert [*remove_all(found.garbage, small.store)] == found.garbage[:1]
    assert small.lost[0].is_dir()


def test_a_run_that_begins_while_one_is_asked_keeps_its_stages(small):
    found = find_garbage(small.store)
    small.run(("conditioning", mark_of(CONDITIONING[1])))
    assert [*remove_all(found.garbage, small.store)] == found.garbage[:1]
    assert small.lost[0].is_dir()


@pytest.fixture
def aside(small):
    """What `refresh` moved aside: of a stage that a run refers to, and twice of one that none
    does."""
    kept = small.store / "trajectories" / mark_of(TRAJECTORIES[0])[:12]
    names = [(kept, 1), (small.lost[0], 1), (small.lost[0], 2)]
    folders = [folder.with_name(f"{folder.name}.replaced-{n}") for folder, n in names]
    for (folder, _), path in zip(names, folders, strict=True):
        shutil.copytree(folder, path)
    return folders


@pytest.mark.parametrize("batch", [1, 100])
def test_all_that_was_replaced_goes_at_once(small, aside, monkeypatch, batch):
    monkeypatch.setattr(garbage, "BATCH", batch)
    assert small.gc("--yes") == 0
    assert not any(folder.exists() for folder in (*aside, *small.lost))
    assert len(small.folders()) == 5


def test_what_was_replaced_and_is_named_while_one_is_asked_stays(small, aside):
    found = find_garbage(small.store)
    small.run(imported_statistics=str(aside[0]))
    shutil.rmtree(small.lost[0])  # its old ones are all that there is of it by now
    left = remove_all(found.garbage, small.store)
    assert {each.path for each in left} == {*aside, small.lost[0]}
    assert all(folder.is_dir() for folder in aside)


def test_what_was_replaced_and_is_named_at_the_last_moment_comes_back(small, aside, monkeypatch):
    def rename_away(folder, word):
        if folder == aside[0]:
            small.run(imported_statistics=str(folder))
        return removal(folder, word)

    before = tree(small.store)
    removal = garbage.rename_away
    monkeypatch.setattr(garbage, "rename_away", rename_away)
    small.gc("--yes")
    assert tree(small.store) == before


def test_what_was_replaced_is_left_while_its_stage_is_being_set_aside(small, aside):
    with claim(claim_of(Path(aside[0]).with_suffix(""))) as mine:
        assert mine
        small.gc("--yes")
    assert aside[0].is_dir()
    assert not aside[1].exists()


@pytest.mark.parametrize("problem", [StorageError("no list"), KeyboardInterrupt()])
def test_a_second_look_that_fails_puts_all_back(small, aside, monkeypatch, problem):
    def look(store):
        raise problem

    before = tree(small.store)
    monkeypatch.setattr(garbage, "runs_of", look)
    if isinstance(problem, StorageError):
        assert small.gc("--yes") == StorageError.exit_code
    else:
        with pytest.raises(type(problem)):
            small.gc("--yes")
    assert tree(small.store) == before


class Interrupted(QuickDisk):
    """Ctrl-C, or an error, while a renaming is made durable."""

    def __init__(self, error):
        self.error = error

    def sync_dir(self, folder):
        if list(folder.glob("*.removed-*")):
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "injected")])
def test_a_renaming_that_is_cut_off_is_undone(small, use_disk, error):
    before = tree(small.store)
    use_disk(Interrupted(error))
    with suppress(KeyboardInterrupt):
        assert small.gc("--yes") == StorageError.exit_code
    assert tree(small.store) == before


def test_a_run_that_begins_at_the_last_moment_gets_its_stage_back(small, monkeypatch):
    whole = tree(small.lost[0])

    def rename_away(folder, word):
        small.run(("conditioning", mark_of(CONDITIONING[1])))
        return removal(folder, word)

    removal = garbage.rename_away
    monkeypatch.setattr(garbage, "rename_away", rename_away)
    small.gc("--yes")
    assert tree(small.lost[0]) == whole


def test_a_run_that_made_the_stage_anew_keeps_that(small, monkeypatch):
    def rename_away(folder, word):
        away = removal(folder, word)
        if folder == small.lost[0]:
            small.run(("conditioning", mark_of(CONDITIONING[1])))
            small.stage("conditioning", **inputs_of(CONDITIONING[1]))
        return away

    removal = garbage.rename_away
    monkeypatch.setattr(garbage, "rename_away", rename_away)
    small.gc("--yes")
    assert (small.lost[0] / SHARD).is_file()
    assert not list(small.store.glob("*/*.removed-*"))


class Refusing(QuickDisk):
    """Refuses to rename, or to unlink, what belongs to one stage."""

    def __init__(self, operation, folder):
        self.operation, self.folder = operation, folder

    def refuse(self, operation, path):
        if operation == self.operation and self.folder.name in str(path):
            raise PermissionError(errno.EPERM, "Operation not permitted")

    def replace(self, source, target):
        self.refuse("replace", source)
        super().replace(source, target)

    def unlink(self, path):
        self.refuse("unlink", path)
        super().unlink(path)


@pytest.mark.parametrize("operation", ["replace", "unlink"])
@pytest.mark.parametrize("which", [0, 1])
def test_what_cannot_be_removed_is_told_and_the_rest_goes(
    small, use_disk, capsys, operation, which
):
    kept = small.store / "trajectories" / mark_of(TRAJECTORIES[0])[:12]
    bad = kept / f"{SHARD}.bad-1"
    bad.write_bytes(b"12345")
    use_disk(Refusing(operation, small.lost[which]))
    assert small.gc("--yes") == StorageError.exit_code
    said = capsys.readouterr().out
    assert "in 2 places" in said
    assert f"left          {small.lost[which]}: cannot " in said
    assert "Operation not permitted" in said
    assert not bad.exists()
    assert not small.lost[1 - which].exists()
    use_disk(QuickDisk())
    assert small.gc("--yes") == 0
    assert len(small.folders()) == 5


def test_a_damaged_file_that_cannot_be_removed_is_told(small, use_disk, capsys):
    kept = small.store / "trajectories" / mark_of(TRAJECTORIES[0])[:12]
    (kept / f"{SHARD}.bad-1").write_bytes(b"12345")
    use_disk(Refusing("unlink", kept))
    assert small.gc("--yes") == StorageError.exit_code
    assert ".bad-1: cannot remove" in capsys.readouterr().out
    assert not any(folder.exists() for folder in small.lost)


def test_what_cannot_be_put_back_is_told_and_not_deleted(small, use_disk, monkeypatch, capsys):
    def rename_away(folder, word):
        small.run(("conditioning", mark_of(CONDITIONING[1])))
        return removal(folder, word)

    whole, away = tree(small.lost[0]), small.lost[0].with_name(f"{small.lost[0].name}.removed-1")
    with monkeypatch.context() as patch:
        removal = garbage.rename_away
        patch.setattr(garbage, "rename_away", rename_away)
        use_disk(Refusing("replace", away))
        assert small.gc("--yes") == StorageError.exit_code
    said = capsys.readouterr().out
    assert tree(away) == whole
    assert f"cannot rename {away}" in said
    assert f"left          {small.lost[1]}: in use or referred to by now" in said
    assert small.lost[1].is_dir()
    use_disk(QuickDisk())
    assert small.gc("--yes") == 0
    assert tree(small.lost[0]) == whole


def test_a_broken_record_that_comes_meanwhile_leaves_all(small, monkeypatch, capsys):
    found = find_garbage(small.store)
    monkeypatch.setattr(store_gc, "find_garbage", lambda store: found)
    (small.run() / "run.json").write_text("{")
    before = tree(small.store)
    assert small.gc("--yes") == CorruptError.exit_code
    assert tree(small.store) == before
    assert "run.json" in capsys.readouterr().out


def test_runs_are_read_a_few_times_for_all_removals(lab, use_disk, monkeypatch):
    use_disk(QuickDisk())
    for number in range(12):
        lab.stage("weights", of=number)
    lab.run()
    read, count = RunFolder.record, []
    monkeypatch.setattr(RunFolder, "record", lambda run: (count.append(run), read(run))[1])
    monkeypatch.setattr(garbage, "BATCH", 5)
    lab.gc("--yes")
    assert not lab.folders()
    assert len(count) == 1 + 3 * 2  # to find them, and twice for each batch


# --- a run that begins meanwhile -------------------------------------------------------------

HOOKS = ("survey_stage", "needed", "rename_away", "runs_of", "put_back", "delete")


class Beginning:
    """What a run does at its begin, one step at a time, at a stage that no run refers to."""

    def __init__(self, lab, folder, *, refresh):
        self.lab, self.folder, self.made, self.error = lab, folder, False, None
        self.inputs = inputs_of(CONDITIONING[1])
        self.mark = mark_of(CONDITIONING[1])
        first = self.set_aside if refresh else self.find_folder
        self.steps = [self.record, first, self.open, self.fill]

    def take(self, number):
        for step in self.steps[:number]:
            if self.error is None:
                try:
                    step()
                except StorageError as error:
                    self.error = error
        del self.steps[:number]

    def record(self):
        publish_run(self.folder, self.lab.store, {"conditioning": self.mark})

    def set_aside(self):
        Stage.set_aside(self.lab.store, "conditioning", self.mark)

    def find_folder(self):
        make_folder(self.lab.store / "conditioning" / self.mark[:12])

    def open(self):
        self.stage = Stage.open(
            self.lab.store, "conditioning", fingerprint=self.mark, inputs=self.inputs, backend={}
        )

    def fill(self):
        if not self.stage.valid([SHARD]):
            self.stage.admit({}, allow_change=False)
            self.lab.stage("conditioning", **self.inputs)
            self.made = True


def publish_run(folder, store, stages, run_id="0", **more):
    """Leave the record of a run, as one does at its begin."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {**RECORD, "store": os.path.relpath(store, folder), "run_id": run_id}
    document |= {"stages": stages, **more}
    publish_record(folder, document)
    publish_pointers(folder, store, document)


def hooked(monkeypatch, take, only=""):
    """Call `take(name)` before each thing that a removal does, to one of its folders if `only` is
    the name of one."""

    def before(name, real):
        def call(*arguments):
            if name in ("needed", "runs_of") or arguments[0].name.startswith(only):
                take(name)
            return real(*arguments)

        return call

    for name in HOOKS:
        monkeypatch.setattr(garbage, name, before(name, getattr(garbage, name)))


@pytest.mark.parametrize("refresh", [False, True])
@shows("P5", "a run begins while `store gc` removes its stage: steps of both in every order")
@pytest.mark.slow
def test_a_run_may_begin_at_any_moment_of_a_removal(tmp_path, use_disk, monkeypatch, refresh):
    """Its record, folder, stage.json and data at every order of moments: none is lost. A second
    stage is removed with it, and goes or comes back as a whole."""
    use_disk(QuickDisk())
    stopped = kept = anew = back = 0
    state = {}
    mark = mark_of(CONDITIONING[1])[:12]
    hooked(monkeypatch, lambda n: state["run"].take(state["plan"].count(HOOKS.index(n))), mark)
    for number, plan in enumerate(combinations_with_replacement(range(len(HOOKS) + 1), 4)):
        lab = Lab(tmp_path / str(number) / "outputs")
        folder = lab.stage("conditioning", **inputs_of(CONDITIONING[1])).folder
        other = lab.stage("weights", of=1).folder
        places = (folder, other) if number % 2 else (other, folder)
        found = [garbage.Garbage(place, 0, garbage.UNREFERRED) for place in places]
        whole_other = tree(other)
        before = (folder / SHARD).stat().st_ino, (folder / SHARD).read_bytes()
        place = lab.outputs.parent / ("elsewhere" if refresh else "outputs") / "x"
        run = Beginning(lab, place, refresh=refresh)
        state |= {"run": run, "plan": plan}
        remove_all(found, lab.store)
        assert tree(other) in ({}, whole_other), plan
        assert not list(lab.store.glob("*/*.removed-*")), plan
        back += other.exists()
        run.take(plan.count(len(HOOKS)))
        run.take(4)  # what hooks that were not come to left over
        if run.error is not None:
            stopped += 1
            again = Beginning(lab, place, refresh=False)
            again.take(4)
            assert again.error is None, plan
            run.made |= again.made
        stage = Stage.at(folder)
        assert stage.valid([SHARD]) == {SHARD}, plan
        assert stage.seal_list is not None, plan
        assert (folder / SHARD).read_bytes() == before[1], plan
        same = (folder / SHARD).stat().st_ino == before[0]
        assert same or run.made, plan
        kept, anew = kept + same, anew + run.made
        assert folder in [each.path for each in remove_all(found, lab.store)], plan
        assert not other.exists(), plan
    assert 10 < back < number - 10
    assert kept > 10
    assert anew > 10
    assert refresh or stopped < number / 4
    return number + 1


def test_a_repair_at_any_moment_of_a_removal_loses_nothing(tmp_path, use_disk, monkeypatch):
    use_disk(QuickDisk())
    for at in HOOKS:
        lab = Lab(tmp_path / at / "outputs")
        folder = lab.stage("conditioning", **inputs_of(CONDITIONING[1])).folder
        shard = (folder / SHARD).read_bytes()
        (folder / SHARD).write_bytes(shard[:-1])
        checked = list(verify([survey_stage(folder)]))

        def mend(name, at=at, checked=checked, done=[]):  # noqa: B006
            if name == at and at not in done:
                done.append(at)
                with suppress(StorageError):
                    list(repair_stages(checked, dry_run=False))

        with monkeypatch.context() as patch:
            hooked(patch, mend)
            assert not remove_all([garbage.Garbage(folder, 0, garbage.UNREFERRED)], lab.store)
        assert not folder.exists()
        lab.stage("conditioning", **inputs_of(CONDITIONING[1]))
        assert (folder / SHARD).read_bytes() == shard


def test_a_folder_is_put_back_over_an_empty_one_alone(tmp_path):
    away, folder = tmp_path / "x.removed-1", tmp_path / "x"
    (away / "inner").mkdir(parents=True)
    folder.mkdir()
    assert put_back(away, folder)
    assert (folder / "inner").is_dir()
    assert rename_away(folder, ".removed-") == away
    (folder / "made").mkdir(parents=True)
    assert not put_back(away, folder)
    assert (away / "inner").is_dir()
    assert (folder / "made").is_dir()


def test_half_of_a_stage_is_not_put_back(small):
    folder = small.store / "trajectories" / mark_of(TRAJECTORIES[0])[:12]
    away = folder.rename(folder.with_name(f"{folder.name}.removed-1"))
    (away / "stage.json").unlink()  # goes first
    small.gc("--yes")
    assert not folder.exists()
    assert not away.exists()


# --- runs with a folder elsewhere ------------------------------------------------------------


@pytest.fixture
def elsewhere(small, tmp_path):
    """What no run beside the store refers to, and the folder of a run elsewhere that does."""
    folder = tmp_path / "disk" / "mine" / "run"
    publish_run(folder, small.store, {"conditioning": mark_of(CONDITIONING[1])}, run_id="abc")
    return folder


def pointed(lab):
    return {path.name for path in lab.store.glob("runs/*")}


def test_a_run_with_a_folder_elsewhere_keeps_its_stages(small, elsewhere, capsys):
    small.gc("--yes")
    assert small.lost[0].is_dir()
    assert not small.lost[1].is_dir()
    assert "for 3 runs" in capsys.readouterr().out
    shutil.rmtree(elsewhere)
    small.gc("--yes")
    assert not small.lost[0].is_dir()
    assert pointed(small) == set()


def test_runs_below_the_output_folder_leave_no_pointer(small):
    for name in ("runs", "sweeps"):
        publish_run(small.outputs / name / "x", small.store, {"conditioning": "0" * 64})
    assert pointed(small) == set()
    publish_run(small.store / "x", small.store, {"conditioning": mark_of(CONDITIONING[1])})
    assert pointed(small) == {"0.json"}  # nobody looks for runs in the store


def test_a_run_beside_a_store_is_seen_from_a_link_to_it(small, tmp_path):
    """What lies there may be anybody's: all but `runs` and `sweeps` is not looked through."""
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "store").symlink_to(small.store)
    publish_run(small.outputs / "a" / "x", small.store, {"conditioning": mark_of(CONDITIONING[1])})
    (small.outputs / "others").mkdir()
    (small.outputs / "others" / "run.json").write_text("{")
    store_gc.gc([str(tmp_path / "linked"), "--yes"])
    assert len(small.folders() - {small.store / "runs"}) == 5 + 1
    assert small.lost[0].is_dir()
    with pytest.raises(CorruptError):
        small.gc("--yes")


@pytest.fixture
def reading(small, tmp_path):
    """Leave the record of a run over files of another store than its own."""

    def publish(kind, path, folder=None):
        more = {"path": str(path), "sha256": ""} if kind == "imported" else str(path)
        other = tmp_path / "other"
        folder = folder or other / "runs" / "x"
        publish_run(folder, other / "store", {}, **{kind: more})
        assert (folder / "run.json").is_file()
        assert not (other / "store").exists()  # it needs none
        return folder

    return publish


@pytest.mark.parametrize("kind", ["imported", "imported_statistics"])
def test_what_a_run_over_another_store_reads_is_kept(small, reading, kind):
    stage = small.stage("statistics", other=1).folder
    folder = reading(kind, stage / SHARD if kind == "imported" else stage)
    small.gc("--yes")
    assert stage.is_dir()
    assert pointed(small) == {"0.json"}
    shutil.rmtree(folder)
    small.gc("--yes")
    assert not stage.exists()
    assert pointed(small) == set()


def test_runs_over_files_that_are_always_kept_leave_no_pointer(small, reading, tmp_path):
    reading("imported", small.stage("imported", kind="images").path(SHARD))
    (tmp_path / "x.npz").touch()
    reading("imported", tmp_path / "x.npz")
    reading("imported_statistics", small.lost[0], small.outputs / "runs" / "x")
    assert pointed(small) == set()


def test_a_run_without_stages_needs_no_store(tmp_path):
    (tmp_path / "other").write_text("no folder can be made here")
    publish_run(tmp_path / "x", tmp_path / "other" / "store", {}, imported_statistics="/none")
    with pytest.raises(StorageError):
        publish_run(tmp_path / "x", tmp_path / "other" / "store", {"conditioning": "0" * 64})


def test_a_store_of_others_that_cannot_be_written_is_a_warning(small, reading, caplog):
    (small.store / "runs").write_text("no folder can be made here")
    reading("imported_statistics", small.lost[0])
    (told,) = caplog.messages
    assert f"gc` of {small.store} will not know of this run" in told


def unmount(folder, monkeypatch=None):
    folder.parent.rename(folder.parent.with_name("away"))


def unmount_at_the_root(folder, monkeypatch):
    unmount(folder)
    folder.parent.mkdir()  # an empty mount point


def other_host(folder, monkeypatch):
    shutil.rmtree(folder)
    monkeypatch.setattr("socket.gethostname", lambda: "other")


def mount_another(folder, monkeypatch):
    """A disk whose first folder has the number that that of the run's disk had."""
    shutil.rmtree(folder)
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == folder.parent)


@pytest.mark.parametrize("change", [unmount, unmount_at_the_root, other_host, mount_another])
def test_a_run_that_cannot_be_reached_keeps_its_stages(
    small, elsewhere, capsys, monkeypatch, change
):
    change(elsewhere, monkeypatch)
    small.gc("--yes")
    look = Survey.of(small.store)
    assert small.lost[0].is_dir()
    said = capsys.readouterr().out
    assert f"{elsewhere} cannot be reached: what it refers to is kept" in said
    assert f"delete {small.store / 'runs' / 'abc.json'}" in said
    (stage,) = look.chosen(small.lost[0].name)
    (run,) = look.references(stage)
    assert run.folder == elsewhere
    assert not commands(look, [stage])[0].startswith("taqdit rerun")
    (small.store / "runs" / "abc.json").unlink()  # as it says
    small.gc("--yes")
    assert not small.lost[0].exists()


def test_two_runs_of_a_folder_that_cannot_be_reached_keep_theirs(small, elsewhere, monkeypatch):
    publish_run(elsewhere, small.store, {"conditioning": mark_of(CONDITIONING[0])}, run_id="zz")
    unmount(elsewhere, monkeypatch)
    small.gc("--yes")
    assert small.lost[0].is_dir()
    assert pointed(small) == {"abc.json", "zz.json"}
    look = Survey.of(small.store)
    assert [each.stages["conditioning"] for each in look.beside if each.pointer] == [
        mark_of(CONDITIONING[1]),
        mark_of(CONDITIONING[0]),
    ]


@pytest.mark.parametrize("text", [b"", b"{}", b'{"folder": "/x"}'])
def test_a_damaged_pointer_stops_everything(small, elsewhere, text):
    (small.store / "runs" / "abc.json").write_bytes(text)
    before = tree(small.outputs)
    with pytest.raises(CorruptError, match=r"abc\.json is corrupt.*run abc.*taqdit rerun") as told:
        small.gc("--yes")
    assert tree(small.outputs) == before
    assert "\n" not in str(told.value)
    assert "repair" not in str(told.value)  # it looks after stages alone
    (small.store / "runs" / "abc.json").unlink()  # as it says, if the run is gone
    assert small.gc("--yes") == 0


def test_a_broken_record_elsewhere_stops_everything(small, elsewhere):
    (elsewhere / "run.json").write_text("{")
    with pytest.raises(CorruptError, match=r"run\.json"):
        small.gc("--yes")


def test_a_run_beside_the_link_to_a_store_is_seen_from_the_store(small, tmp_path):
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "store").symlink_to(small.store)
    conditioning = {"conditioning": mark_of(CONDITIONING[1])}
    publish_run(beside / "runs" / "x", beside / "store", conditioning)
    small.gc("--yes")
    assert small.lost[0].is_dir()


def test_ls_shows_a_run_with_a_folder_elsewhere(small, elsewhere, capsys):
    dispatch(["store", "ls", "--json", str(small.outputs)])
    stages = json.loads(capsys.readouterr().out)["stages"]
    (runs,) = (each["runs"] for each in stages if each["folder"].endswith(small.lost[0].name))
    assert runs == [str(elsewhere)]


def test_a_real_run_leaves_its_pointer_before_it_looks_for_a_stage(tmp_path, monkeypatch):
    seen = []
    opened = Stage.open.__func__

    def look(cls, root, *arguments, **more):
        seen.append(len(pointers(root)))
        return opened(cls, root, *arguments, **more)

    monkeypatch.setattr(Stage, "open", classmethod(look))
    common = (*ANALYTIC, "calibration.export=false", f"output_dir={tmp_path / 'outputs'}")
    monkeypatch.setattr("taqdit.run.new_folder", lambda *_: tmp_path / "elsewhere" / "run")
    launch([*common, "stages=[conditioning]"])
    assert seen
    assert set(seen) == {1}


def whole(folder):
    """What is in a folder but for what was moved aside."""
    return {name: data for name, data in tree(folder).items() if ".bad-" not in name}


def test_death_at_any_operation_of_a_removal(tmp_path, use_disk):
    use_disk(QuickDisk())
    made = Lab(tmp_path / "made")
    keys = (*TRAJECTORIES[:2], CONDITIONING[0], STATISTICS[2], ANALYSES[2])
    folders = [made.stage(key[0], **inputs_of(key)).folder for key in keys]
    made.run(("trajectories", mark_of(TRAJECTORIES[0])))
    (folders[0] / f"{SHARD}.bad-1").write_bytes(b"12345")
    for at in count(1):
        outputs = tmp_path / str(at)
        shutil.copytree(made.outputs, outputs)
        lab = Lab(outputs)
        use_disk(DyingDisk(at))
        died = True
        with suppress(Death):
            lab.gc("--yes")
            died = False
        use_disk(QuickDisk())
        under_way = [f for f in lab.folders() if ".removed-" not in f.name]
        for folder in under_way:
            original = made.store / folder.relative_to(lab.store)
            assert whole(folder) == whole(original), f"died at operation {at}"
        lab.gc("--yes")
        kept = {lab.store / each.relative_to(made.store) for each in (folders[0], folders[2])}
        assert lab.folders() == kept
        assert not list(lab.store.glob("*/*.claim")) + list(lab.store.glob("*/*/*.bad-*"))
        if not died:
            break
    assert at > 10


class FailingOnce(FaultyDisk):
    """One operation fails."""

    def __init__(self, at, number):
        super().__init__(at)
        self.number = number

    def step(self):
        if self.count == self.at:
            raise OSError(self.number, "injected")


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_an_error_of_the_disk_is_one_line_and_loses_nothing(tmp_path, use_disk, number):
    use_disk(QuickDisk())
    made = Lab(tmp_path / "made")
    for key in (*CONDITIONING, TRAJECTORIES[0]):
        made.stage(key[0], **inputs_of(key))
    made.run(("trajectories", mark_of(TRAJECTORIES[0])))
    for at in count(1):
        shutil.copytree(made.outputs, tmp_path / str(at))
        lab = Lab(tmp_path / str(at))
        use_disk(failing := FailingOnce(at, number))
        message = ""
        try:
            lab.gc("--yes")
        except StorageError as error:
            message = str(error)
        assert "\n" not in message
        if failing.count < at:
            break
        use_disk(QuickDisk())
        lab.gc("--yes")
        assert len(lab.folders()) == 2
    assert at > 3


# --- real runs -------------------------------------------------------------------------------


def test_real_runs_lose_nothing_and_go_with_their_data(tmp_path):
    outputs = tmp_path / "outputs"
    common = (*ANALYTIC, "calibration.export=false", "prompts.num=2", f"output_dir={outputs}")
    shown = ("plots=minimal", "stages=[conditioning,trajectories,figures]")
    first, second = (launch([*common, *more]) for more in (shown, (*shown, "sampler.seed=1")))
    before = tree(outputs / "store")
    assert store_gc.gc([str(outputs), "--yes"]) == 0
    assert tree(outputs / "store") == before  # two runs, nothing to remove
    assert list((outputs / "store").glob("figures/*"))
    shutil.rmtree(first.folder)
    store_gc.gc([str(outputs), "--yes"])
    after = tree(outputs / "store")
    assert after.items() < before.items()
    mark = second.record["stages"]["trajectories"]
    assert [path.name for path in outputs.glob("store/trajectories/*")] == [mark[:12]]
    run = open_run(second.folder)
    assert len([run.trajectories().latents(index) for index in range(6)]) == 6
    assert len(run.calibration()) == 18
    launch([*common, *shown, "sampler.seed=1"])
    assert tree(outputs / "store") == after  # all of it is reused
