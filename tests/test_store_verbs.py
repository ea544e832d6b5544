"""`taqdit store ls | du | verify | repair`, on small stores that runs have made."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from conftest import ANALYTIC, tree
from hypothesis import example, given, settings
from hypothesis import strategies as st

import taqdit as package
from taqdit.cli import rerun
from taqdit.errors import ConfigError, CorruptError, InputError
from taqdit.stages.fingerprints import fingerprint
from taqdit.stages.kinds import stored
from taqdit.store import (
    Stage,
    canonical_json,
    publish_json,
    read_shard,
    sha256_file,
    sha256_hex,
    write_shard,
)
from taqdit.store.digest import read_stamped, stamp
from taqdit.store.disk import guarded, identity_at
from taqdit.store.lock import is_held
from taqdit.store_tools import Survey
from taqdit.store_tools import repair as store_repair
from taqdit.store_tools import verify as verify_stages
from taqdit.store_tools.listing import as_json
from taqdit.store_tools.settings import _brief, _differences
from taqdit.store_tools.stage_folder import survey_stage
from taqdit.store_tools.verbs import SUBVERBS, store
from taqdit.trajectories import pictures as images

KINDS = tuple(stored())
TRACED = (
    "schedule.num_steps=3",
    "sampler.num_trajectories=4",
    "sampler.batch_size=2",
    "tracer.blocks=[mm_00]",
    "tracer.folds=2",
    "timestep_selection.count=2",
    "analysis.compare=[paper_uniform,coverage_optimal]",
    "analysis.budget=2",
    "analysis.budgets=[2,3]",
    "plots=minimal",
    "tracking=none",
    "calibration.export=false",
)


def made(home, overrides):
    """The output folder of a run."""
    package.launch([*overrides, f"output_dir={home / 'outputs'}"])
    return home / "outputs"


@pytest.fixture(scope="module")
def traced_once(tmp_path_factory):
    """Every kind of stage, of the embedded model; not to be changed."""
    return made(tmp_path_factory.mktemp("traced"), TRACED)


@pytest.fixture(scope="module")
def sampled_once(tmp_path_factory):
    """Conditioning and trajectories of the analytic model; not to be changed."""
    home = tmp_path_factory.mktemp("sampled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAQDIT_PLUGINS", "analytic")
        patch.syspath_prepend(str(Path(__file__).parent / "plugins"))
        return made(home, ANALYTIC)


@pytest.fixture
def traced(traced_once, tmp_path):
    return shutil.copytree(traced_once, tmp_path / "outputs")


@pytest.fixture
def sampled(sampled_once, tmp_path):
    return shutil.copytree(sampled_once, tmp_path / "outputs")


@pytest.fixture
def call(capsys):
    """Runs `taqdit store ...` here: exit code and what it printed."""

    def run(*arguments):
        capsys.readouterr()
        return store([str(each) for each in arguments]), capsys.readouterr().out

    return run


@pytest.fixture
def verified(call):
    """The findings of `verify --json`, and its exit code."""

    def run(*arguments):
        code, text = call("verify", "--json", *arguments)
        return code, json.loads(text)["findings"]

    return run


def stage_of(outputs, kind="trajectories"):
    (folder,) = (outputs / "store" / kind).iterdir()
    return Stage.at(folder)


def rewrite(stage, name, **tensors):
    """A shard with other tensors and a right digest; sealed again."""
    shard = read_shard(stage.path(name))
    own = {k: v for k, v in shard.metadata.items() if k not in ("schema", "sha256")}
    kind, index = own.pop("kind"), own.pop("index")
    changed = {key: np.array(each) for key, each in shard.tensors.items()} | tensors
    changed = {key: each for key, each in changed.items() if each is not None}
    write_shard(stage.path(name), changed, kind=kind, index=index, metadata=own)
    stage.seal()


def latents_of(stage, name):
    return np.array(read_shard(stage.path(name)).tensors["latents"])


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def stamps(folder):
    """Contents and times of everything below a folder."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def kinds(findings):
    return [(each["severity"], each["kind"], each["file"]) for each in findings]


# --- looking ----------------------------------------------------------------------------------


def test_a_sound_store_is_told_so_and_not_touched(traced, call):
    before = stamps(traced)
    code, text = call("verify", traced)
    assert code == 0
    assert text.splitlines()[-1].endswith(": 0 corrupt, 0 warnings")
    for word in ("ls", "du"):
        assert call(word, traced)[0] == 0
        assert call(word, "--json", traced / "store")[0] == 0
    assert call("repair", traced) == (0, "nothing is corrupt; nothing was changed\n")
    assert stamps(traced) == before


def test_ls_says_what_each_stage_is(traced, call):
    found = json.loads(call("ls", "--json", traced)[1])
    assert [each["stage"] for each in found["stages"]] == [*stored(), "figures"]
    by_kind = {each["stage"]: each for each in found["stages"]}
    units = {kind: (each["units"], each["unit"]) for kind, each in by_kind.items()}
    assert units == {
        "conditioning": (5, "text"),
        "trajectories": (4, "trajectory"),
        "statistics": (3, "step"),
        "weights": (1, "table"),
        "analysis": (3, "table"),
        "figures": (2, "figure"),
    }
    (run,) = traced.glob("runs/*/*")
    for each in found["stages"]:
        assert (each["state"], each["problem"]) == ("sealed", None)
        assert each["runs"] == [run.relative_to(traced).as_posix()], each["folder"]
    settings = by_kind["statistics"]["made_of"]
    expected = {"model": "tiny", "num_steps": 3, "cfg_scale": 2.0, "seed": 0, "num_prompts": 16}
    assert expected.items() <= settings.items()
    assert settings["num_sites"] == 8
    backends = stage_of(traced).backends
    assert by_kind["trajectories"]["backends"] == backends
    text = call("ls", traced)[1]
    assert "tiny, 16 prompts, 3 steps, euler, CFG 2, seed 0" in text
    assert "4 trajectories" in text
    assert f"made on blas {backends[0]['blas']}" in text


def test_the_keys_of_the_json_are_a_promise(sampled, call):
    listed, spent, checked = (
        json.loads(call(word, "--json", sampled)[1]) for word in ("ls", "du", "verify")
    )
    assert list(listed) == ["schema", "store", "runs", "unreadable_runs", "stages", "replaced"]
    assert list(listed["stages"][0]) == [
        *("stage", "folder", "fingerprint", "state", "problem", "units", "unit", "files", "bytes"),
        *("made_of", "backends", "runs", "held", "working", "aside", "leftovers"),
        *("beyond_seal", "differs"),
    ]
    assert list(spent) == [
        *("schema", "store", "bytes", "stages", "folders", "working", "beside"),
    ]
    assert list(spent["beside"]) == ["aside", "leftovers", "replaced", "other"]
    assert list(spent["beside"]["aside"]) == ["folders", "files", "bytes"]
    assert list(checked) == [
        *("schema", "store", "files", "bytes", "corrupt", "warnings", "stages", "findings"),
    ]
    assert list(checked["stages"][0]) == [
        *("folder", "state", "files", "bytes", "corrupt", "warnings"),
    ]
    flip(stage_of(sampled).path("000001.safetensors"), 9000)
    (finding,) = json.loads(call("verify", "--json", sampled)[1])["findings"]
    assert list(finding) == ["severity", "folder", "file", "kind", "words", "bytes"]
    assert {listed["schema"], spent["schema"], checked["schema"]} == {1}


def bare(store, kind, /, **inputs):
    """A sealed stage of these inputs, with one shard."""
    stage = Stage.open(
        store, kind, fingerprint=fingerprint(inputs), inputs=inputs, backend={"mlx": "1"}
    )
    stage.write("000000.safetensors", {"x": np.ones(2)}, kind=kind, index="000000", metadata={})
    stage.seal()
    return stage


def aside(stage, name):
    """Move a file aside that is not corrupt."""
    assert stage.quarantine(name, "a test", judged=identity_at(stage.path(name)))


@pytest.fixture
def shut_out(monkeypatch):
    """Let the listing of a folder be refused."""
    real = os.scandir

    def shut_out(folder):
        def scandir(path="."):
            if Path(os.fsdecode(path)) == folder:
                raise PermissionError(errno.EACCES, "Permission denied")
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)

    return shut_out


SITES = [
    *(f"mm_{block:02}_{stream}.{place}" for block in range(3) for stream in ("img", "txt")
      for place in ("qkv_in", "post_gelu")),
    "final.linear_in",
]  # fmt: skip
OPTIONS = {"a16": False, "w16": False, "use_t5": False}
BASE = {
    "model": "tiny",
    "options": OPTIONS,
    "prompts": ["a", "b"],
    "num_steps": 3,
    "cfg_scale": 2.0,
}
GELU = [name for name in SITES if name.endswith("gelu")]


def digest(value):
    """The digits by which a long value is told."""
    return sha256_hex(canonical_json(value).encode())[:6]


def test_ls_says_how_the_stages_of_a_kind_differ(tmp_path, call):
    store = tmp_path / "outputs" / "store"
    marks = [
        bare(store, "statistics", **{**BASE, "folds": folds, "sites": sites}).fingerprint
        for folds, sites in ((8, SITES), (8, GELU), (4, GELU[:4]), (4, SITES[:3]))
    ]
    odd = {"num_steps": 7, "prompts": ["a", "c"], "options": {**OPTIONS, "use_t5": True}}
    odd["selection"] = {"_target_": "taqdit.timestep_selection.dense_middle", "count": 2}
    bare(store, "trajectories", **BASE)
    bare(store, "trajectories", **{**BASE, **odd, "sampler_option": "taqdit.sampler.heun"})
    bare(store, "conditioning", model="tiny", options=OPTIONS)
    for mark, selected in ((marks[0], "a"), (marks[1], "b"), (marks[1], "c")):
        shown = {"statistics": [mark, 8], "trajectories": "a" * 64, "selected": selected * 64}
        bare(store, "figures", **shown)
    text = call("ls", tmp_path / "outputs")[1]
    for words in (
        "tiny, 2 prompts, 3 steps, CFG 2, 13 sites, 8 folds differs in tracer.folds=8, sites=13 (",
        "sites=13 (linear_in post_gelu qkv_in, ",
        "differs in tracer.folds=8, sites=6 (post_gelu, ",
        "differs in tracer.folds=4, sites=4 (post_gelu, ",
        "differs in schedule.num_steps=3, model.use_t5=false, prompts=2 (0473ef) 0 runs",
        "sampler=heun, timestep_selection=dense_middle, timestep_selection.count=2",
        f"of trajectories aaaaaaaaaaaa differs in statistics=[{marks[0][:12]}, 8] 0 runs",
        f"differs in statistics=[{marks[1][:12]}, 8], selected=bbbbbbbbbbbb 0 runs",  # that tells
    ):
        assert words in " ".join(text.split()), words
    assert max(map(len, text.splitlines())) <= 100
    (conditioning,) = (line for line in text.splitlines() if line.startswith("conditioning"))
    assert conditioning.endswith("  tiny")
    listed = json.loads(call("ls", "--json", tmp_path / "outputs")[1])["stages"]
    told = {each["fingerprint"]: each["differs"] for each in listed}
    assert told[marks[2]] == {"folds": "4", "sites": f"4 (post_gelu, {digest(GELU[:4])})"}
    assert listed[0]["differs"] == {}


subsets = st.sets(st.sampled_from(SITES), min_size=1)


@settings(max_examples=40)
@given(st.lists(subsets, min_size=2, max_size=4, unique_by=frozenset))
@example([{*SITES}, {*GELU}, {*GELU[:2]}])
def test_stages_with_other_sites_read_otherwise(listed):
    words = [_brief("sites", sorted(names)) for names in listed]
    assert len({*words}) == len(listed)
    assert [int(each.split()[0]) for each in words] == [len(names) for names in listed]
    assert max(map(len, words)) <= 50


class Counted(str):
    """A text whose comparisons a profiler sees: those that the interpreter makes itself, too."""

    def __eq__(self, other):
        return str(self) == str(other)

    __hash__ = str.__hash__


def test_what_tells_many_stages_apart_is_found_in_steps_by_their_number():
    """Counted are calls, of Python and of C: a time would be another one on a busy machine."""

    def calls(number):
        digests = {f"weights.{j}": "ab" * 32 for j in range(4)}
        known = {
            i: {"k": i % 2, "rule": Counted("midpoint"), "seed": i} | digests | {"source": i % 3}
            for i in range(number)
        } | {"other": {"rule": Counted("normal")}}
        events = Counter()
        sys.setprofile(lambda frame, event, what: events.update([event]))
        try:
            _differences(known)
        finally:
            sys.setprofile(None)
        return events["call"] + events["c_call"]

    assert calls(400) < 5 * calls(100)


@pytest.mark.parametrize("path", ["weights.a", "backends"])
def test_digests_are_told_of_those_that_nothing_else_tells_apart(path):
    told = _differences(
        {name: {"seed": seed, path: mark * 64} for name, seed, mark in ("A1a", "B1b", "C2a")}
    )
    apart = {name: each.get(path) for name, each in told.items()}
    assert apart == {"A": "a" * 12, "B": "b" * 12, "C": None}


def test_an_analysis_is_told_by_its_statistics(tmp_path, call):
    store = tmp_path / "outputs" / "store"
    marks = []
    for folds in (2, 4):
        stage = bare(store, "statistics", folds=folds)
        marks.append(stage.fingerprint[:12])
        digest = read_shard(stage.path("000000.safetensors")).metadata["sha256"]
        bare(store, "analysis", statistics=[digest], weighting="dt")
    text = call("ls", tmp_path / "outputs")[1]
    for mark in marks:
        assert f"  weighting dt\n    differs in statistics={mark}\n" in text


def test_files_that_the_seal_does_not_list_are_told_and_not_counted(sampled, call, verified):
    stage = stage_of(sampled)
    shutil.copy(stage.path("000003.safetensors"), stage.path("000999.safetensors"))
    (listed,) = json.loads(call("ls", "--json", sampled)[1])["stages"][1:]
    assert (listed["units"], listed["files"], listed["state"]) == (6, 13, "unfinished")
    assert listed["beyond_seal"] == ["000999.safetensors"]
    assert "as the seal does not list it: 000999.safetensors\n" in call("ls", sampled)[1]
    assert kinds(verified(sampled)[1]) == [("corrupt", "place", "000999.safetensors")]
    with stage.claim("batch-000500"):  # somebody is at work
        assert survey_stage(stage.folder).units == 7


@pytest.mark.parametrize("kind", ["weights", "figures"])
def test_what_was_moved_aside_and_is_missing_is_told(tmp_path, call, kind):
    stage = bare(tmp_path / "outputs" / "store", kind, model="tiny", kind="images")
    aside(stage, "000000.safetensors")
    code, text = call("verify", tmp_path / "outputs")
    (line,) = (each for each in text.splitlines() if each.startswith("warning"))
    assert code == 0
    assert (
        f"{stage.folder.name}: missing since moved aside: 000000.safetensors; a run makes again"
        in line
    )
    assert "\nmake what is missing: " in text
    stage.write("000000.safetensors", {"x": np.ones(2)}, kind=kind, index="000000", metadata={})
    assert "warning " not in call("verify", tmp_path / "outputs")[1]
    stage.path("000000.safetensors").unlink()
    stage.seal()  # a run that did not need it
    assert "warning " not in call("verify", tmp_path / "outputs")[1]


def test_imported_data_are_told_by_their_kind_and_file(tmp_path, call):
    stage = bare(tmp_path / "store", "imported", kind="calibration", file="c.npz", cfg_scale=1.5)
    assert "  calibration, c.npz, CFG 1.5\n" in call("ls", tmp_path)[1]
    flip(stage.path("000000.safetensors"), 9)
    code, text = call("verify", tmp_path)
    assert code == 5
    assert "bytes): it is not the file that was sealed\n" in text


def test_prompts_and_pictures_that_were_moved_aside_are_told(sampled, call, verified):
    conditioning, stage = stage_of(sampled, "conditioning"), stage_of(sampled)
    first, second = conditioning.names()[:2]
    for name in (first, second):
        aside(conditioning, name)
    aside(stage, "000002.png")
    shutil.copy(stage.path("000001.safetensors"), stage.path("000999.safetensors"))
    aside(stage, "000999.safetensors")
    found = verified(sampled)[1]
    assert kinds(found) == [("warning", "gap", None)] * 2
    assert f"moved aside: {first} and 1 more; a run makes" in found[0]["words"]
    assert "moved aside: 000002.png; a run makes" in found[1]["words"]
    (run,) = sampled.glob("runs/*/*")
    text = call("verify", sampled)[1]
    assert text.splitlines()[-1] == f"make what is missing: taqdit rerun {run}"


def test_a_folder_that_cannot_be_listed_hides_no_other(tmp_path, call, shut_out):
    store = tmp_path / "outputs" / "store"
    stages = [bare(store, "figures", count=number) for number in range(3)]
    shut_out(stages[1].folder)
    code, text = call("ls", tmp_path / "outputs")
    assert code == 0
    assert text.count("sealed") == 2
    name = f"figures/{stages[1].folder.name}"
    assert f"{name:<28}not listable\n" in text
    assert f"    not listable: cannot list {stages[1].folder}: Permission denied" in text
    assert f"{name}: cannot list" in call("du", tmp_path / "outputs")[1]
    code, text = call("verify", "--json", tmp_path / "outputs")
    (finding,) = json.loads(text)["findings"]
    assert (code, finding["kind"], finding["folder"]) == (5, "unreadable", name)
    code, text = call("repair", tmp_path / "outputs")
    assert code == 4
    assert text.startswith(f"left alone  {name}")
    assert stages[1].folder.is_dir()


def test_du_adds_up_to_the_bytes_on_the_disk(sampled, call):
    stage = stage_of(sampled)
    aside(stage, "000001.png")
    stage.path(".x.1.tmp").write_bytes(b"12345")
    stage.path("batch-000000.claim").write_bytes(b"{}")
    Stage.set_aside(
        sampled / "store", "conditioning", stage_of(sampled, "conditioning").fingerprint
    )
    (sampled / "store" / "notes.txt").write_bytes(b"123")
    spent = json.loads(call("du", "--json", sampled)[1])
    sizes = {path: path.stat().st_size for path in (sampled / "store").rglob("*") if path.is_file()}
    assert spent["bytes"] == sum(sizes.values())
    parts = [*spent["stages"].values(), *spent["beside"].values()]
    assert sum(part["bytes"] for part in parts) == spent["bytes"]
    assert sum(part["files"] for part in parts) == len(sizes)
    assert spent["beside"]["leftovers"] == {"folders": 1, "files": 2, "bytes": 7}
    assert spent["beside"]["other"]["bytes"] == 3
    assert spent["beside"]["aside"]["bytes"] == stage.path("000001.png.bad-1").stat().st_size
    assert spent["beside"]["replaced"]["files"] == 9  # six texts, the negative, what describes
    assert (
        spent["folders"][f"trajectories/{stage.folder.name}"]["files"] == 12
    )  # the seal was taken off
    text = call("du", sampled)[1]
    assert "leftovers, 2 files" in text
    assert "replaced, 9 files" in text


def test_an_empty_store_and_folders_that_are_none(tmp_path, call):
    (tmp_path / "outputs" / "store").mkdir(parents=True)
    assert call("ls", tmp_path / "outputs") == (
        0,
        f"the store {tmp_path / 'outputs' / 'store'} is empty\n",
    )
    for word in SUBVERBS:
        if word in ("du", "verify", "repair"):
            assert call(word, tmp_path / "outputs")[0] == 0
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="give an output folder"):
            store(["verify", str(folder)])
    with pytest.raises(ConfigError, match="there are: ls, du, verify, repair"):
        store(["mend"])
    code, text = call()
    assert code == 2
    assert "repair    Move what is corrupt aside" in text


def test_an_unfinished_stage_is_no_corrupt_one(sampled, call, verified):
    stage = stage_of(sampled)
    for name in ("SEALED.json", "000004.safetensors", "000004.png"):
        stage.path(name).unlink()
    stage.path("000002.safetensors.claim").write_bytes(b"{}")
    code, findings = verified(sampled)
    assert code == 0
    assert kinds(findings) == [("warning", "gap", None)]
    assert "1 trajectory missing, the first is 4" in findings[0]["words"]
    listed = json.loads(call("ls", "--json", sampled)[1])["stages"]
    assert [each["state"] for each in listed] == ["sealed", "unfinished"]
    assert listed[1]["leftovers"] == {"000002.safetensors.claim": 2}
    text = call("ls", sampled)[1]
    assert "unfinished      5 trajectories" in text
    assert "; 1 leftover" in text


def test_a_stage_of_another_version_is_not_judged(sampled, verified, call):
    stage = stage_of(sampled)
    document = read_stamped(stage.path("stage.json"))
    publish_json(stage.path("stage.json"), stamp({**document, "schema": 7}))
    flip(stage.path("000001.safetensors"), 9000)
    code, findings = verified(sampled)
    assert (code, kinds(findings)) == (0, [("warning", "version", "stage.json")])
    assert "foreign schema" in call("ls", sampled)[1]


def test_runs_are_found_wherever_they_are_below_the_outputs(sampled):
    (run,) = sampled.glob("runs/*/*")
    job = sampled / "sweeps" / "2020-01-01" / "1" / "0"
    job.mkdir(parents=True)
    record = json.loads((run / "run.json").read_text())
    (job / "run.json").write_text(json.dumps({**record, "store": "../../../../store"}))
    broken = sampled / "runs" / "2020-01-01" / "0"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text('{"store": ')
    elsewhere = sampled / "runs" / "2020-01-01" / "1"
    elsewhere.mkdir()
    (elsewhere / "run.json").write_text(json.dumps({**record, "store": "../../../other"}))
    survey = Survey.of(sampled / "store")
    assert [each.folder.name for each in survey.runs] == ["0", "0", run.name]
    assert [each.folder.name for each in survey.runs if each.problem] == ["0"]
    (stage,) = survey.chosen("trajectories")
    assert [each.folder for each in survey.references(stage)] == [job, run]


def test_stages_are_chosen_by_kind_or_by_folder(sampled, call):
    folder = stage_of(sampled).folder.name
    for name in ("trajectories", f"trajectories/{folder}", folder[:6]):
        found = json.loads(call("verify", "--json", "--stage", name, sampled)[1])
        assert [each["folder"] for each in found["stages"]] == [f"trajectories/{folder}"]
    with pytest.raises(InputError, match="has no stage 'figures'; it holds conditioning/"):
        store(["verify", "--stage", "figures", str(sampled)])
    for number in range(4):
        bare(sampled / "store", "weights", number=number)
    with pytest.raises(InputError, match=r"weights/\w+ and 2 more$"):
        store(["verify", "--stage", "figures", str(sampled)])


@pytest.mark.parametrize("kept", ["all", "selected", "final"])
def test_stores_that_keep_fewer_latents_or_half_precision_are_sound(tmp_path, call, kept):
    settings = (f"sampler.latents={kept}", "sampler.latents_dtype=float16")
    outputs = made(tmp_path, [*ANALYTIC, *settings])
    code, text = call("verify", outputs)
    assert (code, text.splitlines()[-1].split(": ")[-1]) == (0, "0 corrupt, 0 warnings")
    assert "float16" in call("ls", outputs)[1]
    stage = stage_of(outputs)
    found = latents_of(stage, "000003.safetensors")
    rewrite(stage, "000003.safetensors", latents=np.repeat(found, 2, axis=0))
    assert call("verify", outputs)[0] == 5


# --- what is corrupt --------------------------------------------------------------------------


def test_a_flipped_bit_is_found_in_every_file(traced, call):
    """In a store with every kind of stage: the file is named, with its bytes."""
    rng = np.random.default_rng(5)
    files = [path for path in (traced / "store").rglob("*") if path.is_file()]
    assert {path.parent.parent.name for path in files} == set(stored())
    for path in files:
        whole = path.read_bytes()
        flip(path, int(rng.integers(8 * len(whole))))
        (checked,) = verify_stages([survey_stage(path.parent)])
        (finding,) = [each for each in checked.corrupt if each.file == path.name]
        assert finding.bytes == len(whole)
        assert finding.stage == f"{path.parent.parent.name}/{path.parent.name}"
        path.write_bytes(whole)
    assert call("verify", traced)[0] == 0


@pytest.mark.slow
def test_500_random_flips_and_truncations_are_found(sampled):
    rng = np.random.default_rng(6)
    folder = stage_of(sampled).folder
    files = sorted(folder.iterdir())
    found = 0
    for trial in range(500):
        path = files[rng.integers(len(files))]
        whole = path.read_bytes()
        if trial % 5:
            flip(path, int(rng.integers(8 * len(whole))))
        else:
            path.write_bytes(whole[: rng.integers(len(whole))])
        (checked,) = verify_stages([survey_stage(folder)])
        kind = {"stage.json": "stage", "SEALED.json": "seal"}.get(path.name, "digest")
        found += (path.name, kind) in {(each.file, each.kind) for each in checked.corrupt}
        path.write_bytes(whole)
    assert found == 500
    (checked,) = verify_stages([survey_stage(folder)])
    assert checked.findings == ()


def test_a_shard_that_is_gone_or_swapped_is_found(sampled, call, verified):
    stage = stage_of(sampled)
    one, two = stage.path("000001.safetensors"), stage.path("000002.safetensors")
    one_bytes, two_bytes = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_bytes)
    two.write_bytes(one_bytes)
    code, findings = verified(sampled)
    assert code == 5
    assert kinds(findings) == [("corrupt", "place", one.name), ("corrupt", "place", two.name)]
    assert "it holds trajectory 2, its name says trajectory 1" in findings[0]["words"]
    two.write_bytes(two_bytes)
    one.unlink()
    code, findings = verified(sampled)
    assert code == 5
    assert ("corrupt", "missing", one.name) in kinds(findings)
    assert "damaged: 1 of 12 sealed files are missing" in call("ls", sampled)[1]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("nonfinite", lambda found: {"latents": np.where(found < 9, np.nan, found)}),
        ("nonfinite", lambda found: {"sigmas": np.full(7, np.inf, np.float32)}),
        ("shape", lambda found: {"latents": found[:-1]}),
        ("shape", lambda found: {"latents": found.astype(np.float16)}),
        ("shape", lambda found: {"latents": found[:, :2]}),
        ("shape", lambda found: {"timesteps": None}),
        ("shape", lambda found: {"latents": found[4:], "steps": np.array([4, 5, 6], np.int32)}),
        ("levels", lambda found: {"sigmas": np.linspace(1, 0, 7, dtype=np.float32)}),
        ("dead", lambda found: {"latents": 0 * found + np.float32(0.5)}),
        ("dead", lambda found: {"latents": found * np.float32(0.01)}),
        ("exploding", lambda found: {"latents": np.r_[found[:-1], 100 * found[-1:]]}),
        ("exploding", lambda found: {"latents": np.r_[found[:-1], 6 * found[-1:]]}),
        ("start", lambda found: {"latents": np.r_[1.5 * found[:1], found[1:]].astype(np.float32)}),
    ],
)
def test_numbers_that_cannot_be_are_found_behind_a_right_digest(sampled, verified, kind, change):
    stage = stage_of(sampled)
    rewrite(stage, "000003.safetensors", **change(latents_of(stage, "000003.safetensors")))
    code, findings = verified(sampled)
    warning = kind in ("dead", "exploding", "start")
    assert code == (0 if warning else 5)
    found = kinds(findings)
    assert ("warning" if warning else "corrupt", kind, "000003.safetensors") in found
    assert {file for _, _, file in found} == {"000003.safetensors"}


def test_latents_that_all_explode_are_told(sampled, verified):
    stage = stage_of(sampled)
    for name in stage.names(".safetensors"):
        rewrite(stage, name, latents=100 * latents_of(stage, name))
    code, findings = verified(sampled)
    assert code == 0
    assert [each["kind"] for each in findings].count("exploding") == 6


def test_the_odd_one_is_told_though_it_is_the_first(sampled, verified):
    stage, rows = stage_of(sampled), stage_of(sampled, "conditioning")
    rewrite(stage, "000000.safetensors", sigmas=np.linspace(1, 0, 7, dtype=np.float32))
    rewrite(rows, rows.names()[0], pooled=np.arange(9, dtype=np.float32))
    owner = images.picture_owner(stage.fingerprint, 0)
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    images.write_picture(stage.path("000000.png"), picture, owner=owner)
    stage.seal()
    code, findings = verified(sampled)
    assert code == 5
    assert kinds(findings) == [
        ("corrupt", "shape", rows.names()[0]),
        ("corrupt", "levels", "000000.safetensors"),
        ("corrupt", "shape", "000000.png"),
    ]


def test_a_dead_channel_and_a_blank_picture_are_suspicious(sampled, verified):
    stage = stage_of(sampled)
    found = latents_of(stage, "000003.safetensors")
    found[:, :, :, 7] = 0.25
    rewrite(stage, "000003.safetensors", latents=found)
    size = images.read_picture(
        stage.path("000001.png"), owner=images.picture_owner(stage.fingerprint, 1)
    ).shape
    blank, owner = np.full(size, 128, np.uint8), images.picture_owner(stage.fingerprint, 1)
    images.write_picture(stage.path("000001.png"), blank, owner=owner)
    stage.seal()
    code, findings = verified(sampled)
    assert code == 0
    assert kinds(findings) == [
        ("warning", "blank", "000001.png"),
        ("warning", "dead", "000003.safetensors"),
    ]
    assert "channel 7 of step 0" in findings[1]["words"]


def test_an_intact_file_that_was_not_sealed_so_is_found(sampled, verified):
    stage = stage_of(sampled)
    sealed = stage.path("SEALED.json").read_bytes()
    rewrite(
        stage,
        "000003.safetensors",
        latents=latents_of(stage, "000003.safetensors") * np.float32(1.01),
    )
    stage.path("SEALED.json").write_bytes(sealed)
    code, findings = verified(sampled)
    assert (code, kinds(findings)) == (5, [("corrupt", "seal", "000003.safetensors")])


def test_what_belongs_elsewhere_is_found(sampled, verified):
    stage, rows = stage_of(sampled), stage_of(sampled, "conditioning")
    first, second, *_ = rows.names()
    shutil.copy(rows.path(first), rows.path(second))
    shutil.copy(stage.path("000001.png"), stage.path("000002.png"))
    shutil.copy(rows.path(first), stage.path("000003.safetensors"))
    found = read_shard(stage.path("000004.safetensors"))
    other = Stage(stage.folder, stage.name, "f" * 64)
    prompt = {"prompt_sha256": found.metadata["prompt_sha256"]}
    other.write(
        "000004.safetensors", dict(found.tensors), kind="trajectory", index=4, metadata=prompt
    )
    rewrite(stage, "000000.safetensors")
    shard = read_shard(stage.path("000005.safetensors"))
    own = {**shard.metadata, "prompt_sha256": "0" * 64}
    for key in ("schema", "sha256", "kind", "index"):
        own.pop(key)
    write_shard(
        stage.path("000005.safetensors"), shard.tensors, kind="trajectory", index=5, metadata=own
    )
    stage.seal()
    rows.seal()
    code, findings = verified(sampled)
    assert code == 5
    assert kinds(findings) == [
        ("corrupt", "place", second),
        ("corrupt", "digest", "000002.png"),
        ("corrupt", "place", "000003.safetensors"),
        ("corrupt", "place", "000004.safetensors"),
        ("corrupt", "prompt", "000005.safetensors"),
    ]


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("nonfinite", lambda t: {"mean": np.where(np.arange(len(t["mean"])) == 3, np.nan, 0.0)}),
        ("nonfinite", lambda t: {"m2": t["m2"] - 1e9}),
        ("nonfinite", lambda t: {"low": t["high"] + 1}),
        ("shape", lambda t: {"mean": t["mean"][1:]}),
        ("dead", lambda t: {"low": 0 * t["low"], "high": 0 * t["high"], "m2": 0 * t["m2"]}),
    ],
)
def test_statistics_that_cannot_be_are_found(traced, kind, tensors):
    stage = stage_of(traced, "statistics")
    name = stage.names()[1]
    rewrite(stage, name, **tensors(read_shard(stage.path(name)).tensors))
    (checked,) = verify_stages([survey_stage(stage.folder)])
    assert {(each.kind, each.file) for each in checked.findings} == {(kind, name)}
    assert bool(checked.corrupt) == (kind != "dead")


def test_a_stage_json_whose_inputs_are_others_is_found(sampled, verified):
    stage = stage_of(sampled)
    document = read_stamped(stage.path("stage.json"))
    document["inputs"]["seed"] = 99
    publish_json(stage.path("stage.json"), stamp(document))
    code, findings = verified(sampled)
    assert (code, kinds(findings)) == (5, [("corrupt", "stage", "stage.json")])


def test_a_stage_json_that_lacks_what_a_check_needs_is_no_crash(sampled):
    stage = stage_of(sampled)
    document = read_stamped(stage.path("stage.json"))
    del document["inputs"]["batch_size"], document["inputs"]["prompts"]
    publish_json(stage.path("stage.json"), stamp(document))
    (checked,) = verify_stages([survey_stage(stage.folder)])
    assert {each.kind for each in checked.corrupt} == {"stage", "shape"}


# --- at work ----------------------------------------------------------------------------------


def test_a_claim_is_looked_at_without_being_touched(tmp_path):
    stage = Stage.open(tmp_path, "x", fingerprint="a" * 64, inputs={}, backend={})
    path = stage.path("unit.claim")
    with stage.claim("unit") as mine:
        assert mine
        said = path.read_bytes()
        assert is_held(path)
        assert is_held(path)  # one who looks is not taken for an owner
        assert path.read_bytes() == said
    assert not is_held(path)
    path.write_bytes(b"{}")  # of an owner that died
    assert not is_held(path)
    assert path.exists()


def test_who_cannot_be_asked_may_live(sampled, call, monkeypatch):
    """On a file system without locks a claim that somebody left is taken for a living one's."""
    stage = stage_of(sampled)
    flip(stage.path("000001.safetensors"), 9000)
    claim = stage.path("batch-000000.claim")
    claim.write_bytes(b"{}")
    before = tree(sampled)

    def no_locks(file, operation):
        raise OSError(errno.ENOTSUP, "no locks here")

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", no_locks)
        assert is_held(claim)
        assert not is_held(stage.path("none.claim"))
        code, text = call("repair", sampled)
        shutil.rmtree(sampled / "runs")
        assert call("gc", "--yes", sampled)[0] == 0  # of it, nothing is removed
    assert code == 4
    assert "or delete that file if there is none" in text
    assert (
        tree(stage.folder).items()
        <= {
            name.rpartition("/")[2]: data
            for name, data in before.items()
            if stage.folder.name in name
        }.items()
    )
    assert call("repair", sampled)[0] == 0


def test_a_pipe_that_is_called_a_claim_is_no_reason_to_wait(tmp_path):
    os.mkfifo(tmp_path / "x.claim")
    assert not is_held(tmp_path / "x.claim")


def test_a_stage_that_another_process_works_on_is_left_alone(sampled, call):
    stage = stage_of(sampled)
    flip(stage.path("000001.safetensors"), 9000)
    flip(stage_of(sampled, "conditioning").path("SEALED.json"), 400)
    script = (
        "import sys, pathlib; from taqdit.store import Stage\n"
        "with Stage.at(pathlib.Path(sys.argv[1])).claim('batch-000001') as mine:\n"
        "    print(mine, flush=True); sys.stdin.read()"
    )
    line = [sys.executable, "-c", script, str(stage.folder)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        try:
            assert worker.stdout.readline() == b"True\n"
            listed = json.loads(call("ls", "--json", sampled)[1])["stages"]
            assert [each["state"] for each in listed] == ["damaged", "at work"]
            assert listed[1]["held"] == ["batch-000001.claim"]
            assert listed[1]["leftovers"] == {}
            before = tree(stage.folder)
            code, text = call("repair", sampled)
            assert code == 4
            assert "another process works on it (batch-000001.claim)" in text
            assert "1 of 2 dealt with" in text
            assert tree(stage.folder) == before
        finally:
            worker.kill()
    code, text = call("repair", sampled)  # its claim is that of a dead process now
    assert code == 0
    assert "000001.safetensors.bad-1" in text


# --- repair -----------------------------------------------------------------------------------


def without_aside(folder):
    return {name: data for name, data in tree(folder).items() if ".bad-" not in name}


def test_after_repair_the_next_run_makes_just_what_was_corrupt(traced, call):
    """One file of every kind of stage at once; the printed command is run."""
    store_folder = traced / "store"
    before = tree(store_folder)
    damaged = []
    for folder in sorted(store_folder.glob("*/*")):
        name = Stage.at(folder).names(".safetensors")[0]
        flip(folder / name, 8 * (folder / name).stat().st_size - 3)
        damaged.append(folder / name)
    picture = stage_of(traced).path("000003.png")
    picture.write_bytes(picture.read_bytes()[:100])
    damaged.append(picture)
    code, text = call("repair", "--dry-run", traced)
    assert code == 0
    assert text.count("would be moved aside") == len(damaged) == 8
    assert "nothing was changed; repair would deal with 8 of 8" in text
    assert call("verify", traced)[0] == 5
    code, text = call("repair", traced)
    assert code == 0
    assert not any(path.exists() for path in damaged)
    assert all(path.with_name(f"{path.name}.bad-1").exists() for path in damaged)
    assert call("verify", traced)[0] == 0
    (command,) = [line for line in text.splitlines() if line.startswith("go on with: ")]
    word, verb, run = command.removeprefix("go on with: ").split()
    assert (word, verb) == ("taqdit", "rerun")
    stages = package.launch(rerun.prepare([run]).overrides).summary["stages"]
    assert {each["name"]: (each["made"], each["reused"]) for each in stages} == {
        "conditioning": (1, 4),
        "trajectories": (1, 3),
        "statistics": (1, 2),
        "weights": (89, 0),
    }
    assert without_aside(store_folder) == before
    assert call("verify", traced)[0] == 0


@pytest.mark.parametrize("name", ["000001.safetensors", "stage.json", "SEALED.json"])
def test_what_is_made_anew_while_repair_reads_stays(tmp_path, call, monkeypatch, name):
    stage = bare(tmp_path / "outputs" / "store", "trajectories")
    stage.write("000001.safetensors", {"x": np.ones(2)}, kind="x", index=1, metadata={})
    stage.seal()
    path = stage.path(name)
    good = path.read_bytes()
    flip(path, 150)
    reads = []

    looked = []

    def mended_meanwhile(stages):
        found = list(verify_stages(stages))
        looked.append(found)
        if len(looked) == 1:  # the verb's own look, before the repair
            return found
        path.rename(path.with_name(f"{name}.bad-1"))
        path.write_bytes(good)
        reads.append(path)
        return found

    monkeypatch.setattr("taqdit.store_tools.repair.verify", mended_meanwhile)
    code, text = call("repair", tmp_path / "outputs")
    assert (code, len(reads)) == (4, 1)
    assert "it has changed since it was read" in text
    assert path.read_bytes() == good
    assert sorted(each.name for each in stage.folder.iterdir()) == sorted(
        ["000000.safetensors", "000001.safetensors", "SEALED.json", "stage.json", f"{name}.bad-1"]
    )


def test_a_run_that_begins_while_repair_reads_is_left_alone(tmp_path, call, monkeypatch):
    stage = bare(tmp_path / "outputs" / "store", "trajectories")
    flip(stage.path("000000.safetensors"), 150)
    before = tree(stage.folder)
    with ExitStack() as began:

        def begun_meanwhile(stages):
            found = list(verify_stages(stages))
            began.enter_context(stage.claim("batch-000000"))
            return found

        monkeypatch.setattr("taqdit.store_tools.repair.verify", begun_meanwhile)
        code, text = call("repair", tmp_path / "outputs")
    assert (code, tree(stage.folder)) == (4, before)
    assert "another process works on it (batch-000000.claim)" in text


def test_shards_with_nan_and_missing_ones_are_made_again(sampled, call):
    before = tree(sampled / "store")
    stage = stage_of(sampled)
    found = latents_of(stage, "000002.safetensors")
    found[3, 0, 0, 0] = np.nan
    rewrite(stage, "000002.safetensors", latents=found, sigmas=np.full(7, np.nan, np.float32))
    stage.path("000005.safetensors").unlink()
    stage_of(sampled, "conditioning").path("SEALED.json").write_bytes(b"{}")
    code, text = call("repair", sampled)
    assert code == 0
    assert text.count("moved aside") == 1  # all that is wrong with a file is one line
    assert text.count("unsealed") == 2
    assert call("verify", sampled)[0] == 0
    run = package.launch([*ANALYTIC, f"output_dir={sampled}"])
    stages = {each["name"]: each for each in run.summary["stages"]}
    assert (stages["conditioning"]["made"], stages["trajectories"]["made"]) == (0, 2)
    assert without_aside(sampled / "store") == before


def test_a_folder_without_its_stage_json_is_set_aside_whole(sampled, call):
    before = tree(sampled / "store")
    stage = stage_of(sampled)
    flip(stage.path("stage.json"), 800)
    flip(stage.path("000001.safetensors"), 9000)
    code, text = call("repair", sampled)
    assert code == 0
    assert f"set aside  trajectories/{stage.folder.name}/stage.json" in text
    assert "all of it, 6 trajectories, is made again; to keep them, rename it back" in text
    assert not stage.folder.exists()
    assert "replaced" in call("ls", sampled)[1]
    assert call("verify", sampled)[0] == 0  # what is set aside is not judged
    package.launch([*ANALYTIC, f"output_dir={sampled}"])
    after = tree(sampled / "store")
    assert {name: data for name, data in after.items() if ".replaced-" not in name} == before


def runs(sampled, *overrides):
    """A run over the same data: its stages by name."""
    run = package.launch([*ANALYTIC, f"output_dir={sampled}", *overrides])
    return {each["name"]: each for each in run.summary["stages"]}


@pytest.mark.parametrize("repaired", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_may_go_on_without_the_stage_json(sampled, call, repaired):
    """As the error says, or in the way that repair names: nothing that is whole is made again."""
    stage, before = stage_of(sampled), without_aside(sampled / "store")
    flip(stage.path("stage.json"), 800)
    if repaired:
        text = call("repair", sampled)[1]
        assert "rename it back without its stage.json and run with allow_backend_change" in text
        (aside,) = stage.folder.parent.iterdir()
        aside.rename(stage.folder)
        stage.path("stage.json").unlink()
    with pytest.raises(CorruptError, match="allow_backend_change=true"):
        runs(sampled)
    found = runs(sampled, "allow_backend_change=true")["trajectories"]
    assert (found["made"], found["reused"]) == (0, 6)
    assert found["note"] == "made on an unknown backend"
    after = without_aside(sampled / "store")
    changed = f"trajectories/{stage.folder.name}/stage.json"
    assert after.pop(changed) != before.pop(changed)
    assert after == before
    assert call("verify", sampled)[0] == 0
    assert "made on an unknown backend" in call("ls", sampled)[1]


def test_a_run_that_goes_on_without_the_stage_json_makes_what_is_damaged(sampled):
    stage, before = stage_of(sampled), without_aside(sampled / "store")
    stage.path("stage.json").unlink()
    flip(stage.path("000001.safetensors"), 9000)
    flip(stage.path("000005.png"), 900)
    found = runs(sampled, "allow_backend_change=true")["trajectories"]
    assert {name for name, _ in found["moved_aside"]} == {"000001.safetensors", "000005.png"}
    after = without_aside(sampled / "store")
    changed = [name for name in before if before[name] != after[name]]
    assert changed == [f"trajectories/{stage.folder.name}/stage.json"]
    assert [b.get("backend") for b in stage.backends] == ["unknown", None]


@pytest.mark.slow
def test_every_kind_of_stage_goes_on_without_its_stage_json(traced, call):
    """Where no backend changes the data, or the folder's name knows it, always and without a
    trace; elsewhere if one may change it."""
    kinds_stored = tuple(stored())
    always, asked = kinds_stored[4:], kinds_stored[:4]
    before = without_aside(traced / "store")
    for kinds_lost, more in ((always, ()), (asked, ("allow_backend_change=true",))):
        lost = [path for kind in kinds_lost for path in (traced / "store" / kind).glob("*/*.json")]
        lost = [path for path in lost if path.name == "stage.json"]
        for path in lost:
            flip(path, 800)
        run = package.launch([*TRACED, f"output_dir={traced}", *more])
        assert {each["made"] for each in run.summary["stages"]} == {0}
        after = without_aside(traced / "store")
        changed = {traced / "store" / name for name in before if before[name] != after[name]}
        assert changed == ({*lost} if more else set())
        assert call("verify", traced)[0] == 0


def test_the_command_that_goes_on_is_the_one_that_makes_most(sampled):
    (run,) = sampled.glob("runs/*/*")
    record = json.loads((run / "run.json").read_text())
    for name, count in (("1", 60), ("2", 60), ("3", 2)):
        folder = run.parent / name
        folder.mkdir()
        config = record["config"]
        changed = {**config, "sampler": {**config["sampler"], "num_trajectories": count}}
        (folder / "run.json").write_text(json.dumps({**record, "config": changed}))
    survey = Survey.of(sampled / "store")
    (command,) = store_repair.commands(survey, survey.stages)
    assert command == f"taqdit rerun {run.parent / '2'}"
    shutil.rmtree(sampled / "runs")
    survey = Survey.of(sampled / "store")
    assert "no run refers to it" in store_repair.commands(survey, survey.stages)[0]


@pytest.mark.parametrize(("number", "moved"), [(errno.EACCES, False), (errno.EIO, True)])
def test_a_failing_disk_is_corruption_a_locked_file_is_not(
    sampled, call, verified, monkeypatch, number, moved
):
    path = stage_of(sampled).path("000001.safetensors")

    def read(file):
        with guarded("read", file):
            if file.name == path.name:
                raise OSError(number, os.strerror(number))
        return sha256_file(file)

    monkeypatch.setattr("taqdit.store_tools.verification.sha256_file", read)
    code, findings = verified(sampled)
    assert (code, kinds(findings)) == (
        5,
        [("corrupt", "digest" if moved else "unreadable", path.name)],
    )
    assert os.strerror(number) in findings[0]["words"]
    assert call("repair", sampled)[0] == (0 if moved else 4)
    assert path.exists() != moved


def test_names_of_files_are_not_written_raw_to_the_terminal(sampled, call):
    folder = stage_of(sampled).folder
    name = os.fsdecode(b"\x1b[2J\n\xff.safetensors")
    (folder / name).write_bytes(b"nothing")
    (folder.parent / f"x{name}").mkdir()
    for word in ("ls", "du", "verify", "repair"):
        code, text = call(word, sampled)
        assert code == (5 if word == "verify" else 0)
        assert all(line.isprintable() for line in text.splitlines())
    assert "\\x1b[2J\\n\\udcff.safetensors" in text
    for word in ("ls", "du", "verify"):
        text = call(word, "--json", sampled)[1]
        assert json.loads(text)
        assert text.isascii()


STRANGE = (None, 10**15, "text", [], [[1]], {"a": [1]})


@pytest.mark.parametrize("kind", ["conditioning", "trajectories"])
@pytest.mark.slow
def test_a_stage_json_may_say_anything(sampled, call, kind):
    """Intact by its digest, but of contents that nobody would write."""
    stage = stage_of(sampled, kind)
    document = read_stamped(stage.path("stage.json"))
    places = [*document["inputs"], "statistics", "rule", "trajectories", "sites", "sampler"]
    for key in places:
        for value in STRANGE:
            changed = {**document, "inputs": {**document["inputs"], key: value}}
            publish_json(stage.path("stage.json"), stamp(changed))
            survey = Survey.of(sampled / "store")
            assert as_json(survey)["stages"]
            list(verify_stages(survey.chosen(kind)))
    for key in ("inputs", "backends", "stage", "fingerprint", "schema"):
        for value in STRANGE:
            publish_json(stage.path("stage.json"), stamp({**document, key: value}))
            assert call("ls", sampled)[0] == 0
            assert call("verify", sampled)[0] in (0, 5)


def test_the_command_line_passes_the_exit_code_on(sampled, taqdit):
    flip(stage_of(sampled).path("000001.safetensors"), 9000)
    done = taqdit("store", "verify", str(sampled))
    assert (done.returncode, done.stderr) == (5, "")
    assert "000001.safetensors (" in done.stdout
    assert "its contents do not fit its sha256" in done.stdout
