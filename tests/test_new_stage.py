"""A stage that is declared is a stage everywhere: run, planned, listed, verified, kept, compared.

The stage is tests/plugins/doubled.py; what it takes beside that file is what `doubled` below does.
"""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ANALYTIC, tree

import taqdit as package
import taqdit.run  # the course of a run
from taqdit import config
from taqdit.cli.differences import differences
from taqdit.cli.verbs import dispatch
from taqdit.errors import ConfigError, CorruptError, StorageError
from taqdit.stages import kinds
from taqdit.store import Stage, digest, publish_json

PACKAGE = Path(package.__file__).resolve().parent
COUNT = 6  # trajectories of ANALYTIC
STAGES = "stages=[conditioning,trajectories,doubled]"


@pytest.fixture
def doubled(monkeypatch):
    """The lines that the file of a stage needs elsewhere: of the table, of the course of a run."""
    import doubled

    two = kinds.KINDS[:2]
    monkeypatch.setattr(kinds, "KINDS", (*two, doubled.DOUBLED, *kinds.KINDS[2:]))
    course = next(
        module
        for name, module in sys.modules.items()
        if name.startswith("taqdit.r") and hasattr(module, "sample_and_trace")
    )
    sample = course.sample_and_trace

    def and_double(context, *arguments, **options):
        trajectories, statistics = sample(context, *arguments, **options)
        if "doubled" in context.plan.stages:
            doubled.double(context, trajectories)
        return trajectories, statistics

    monkeypatch.setattr(course, "sample_and_trace", and_double)
    return doubled


@pytest.fixture
def launched(doubled, tmp_path):
    """Runs the stage below a private folder."""

    def run(*overrides):
        return package.launch([*ANALYTIC, f"output_dir={tmp_path}", STAGES, *overrides])

    return run


@pytest.fixture
def run(launched):
    """One whole run."""
    return launched()


def folders(tmp_path):
    return sorted(path for path in (tmp_path / "store" / "doubled").iterdir())


def reported(run):
    return next(each for each in run.summary["stages"] if each["name"] == "doubled")


def test_it_runs_and_is_sealed_and_reused(run, launched, tmp_path):
    (folder,) = folders(tmp_path)
    stage = Stage.at(folder)
    assert set(stage.seal_list) == {f"{index:06d}.safetensors" for index in range(COUNT)}
    found = stage.read("000003.safetensors", kind="doubled", index=3).tensors["doubled"]
    np.testing.assert_array_equal(found, 2 * run.trajectories().latents(3))
    assert run.record["stages"]["doubled"] == stage.fingerprint
    assert (reported(run)["made"], reported(run)["reused"]) == (COUNT, 0)
    before = tree(folder)
    assert reported(launched())["reused"] == COUNT
    assert tree(folder) == before
    assert "doubled" not in launched("stages=[trajectories]").record["stages"]


def test_it_is_listed(run, tmp_path, capsys):
    dispatch(["store", "ls", str(tmp_path)])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "doubled/" in line]
    assert f"{COUNT} doubled trajectories" in line
    assert "sealed" in line


@pytest.mark.parametrize("at", [0.2, 0.9])
def test_it_is_verified_and_a_flipped_bit_is_found(run, tmp_path, capsys, at):
    assert dispatch(["store", "verify", str(tmp_path)]) == 0
    (folder,) = folders(tmp_path)
    path = folder / "000004.safetensors"
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    assert dispatch(["store", "verify", str(tmp_path)]) == CorruptError.exit_code
    assert f"doubled/{folder.name}/000004.safetensors" in capsys.readouterr().out


def test_its_own_check_is_asked(run, tmp_path, capsys):
    """A shard under another's name, and one with NaN, both with the right digests."""
    (folder,) = folders(tmp_path)
    stage = Stage.at(folder)
    stage.unseal()
    shard = stage.read("000001.safetensors", kind="doubled", index=1).tensors["doubled"]
    stage.write("000001.safetensors", {"doubled": shard}, kind="doubled", index=2, metadata={})
    odd = {"doubled": np.full_like(shard, np.nan)}
    stage.write("000002.safetensors", odd, kind="doubled", index=2, metadata={})
    assert dispatch(["store", "verify", str(tmp_path)]) == CorruptError.exit_code
    printed = capsys.readouterr().out
    assert "it holds doubled 2, its name says doubled 1" in printed
    assert "doubled holds 1792 NaN or Inf" in printed


def test_it_is_kept_while_a_run_refers_to_it(run, launched, tmp_path, capsys):
    other = launched("sampler.seed=9")
    mine, others = (each.record["stages"]["doubled"][:12] for each in (run, other))
    assert dispatch(["store", "gc", str(tmp_path), "--yes"]) == 0
    assert {path.name for path in folders(tmp_path)} == {mine, others}
    for path in sorted(other.folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    other.folder.rmdir()
    assert dispatch(["store", "gc", str(tmp_path), "--yes"]) == 0
    assert [path.name for path in folders(tmp_path)] == [mine]
    assert dispatch(["store", "verify", str(tmp_path)]) == 0


def test_what_it_is_made_from_is_kept_for_it(run, doubled, tmp_path):
    """Where a run names the doubled trajectories alone, the trajectories stay, and their rows."""
    named = digest.read_object(run.folder / "run.json")
    named["stages"] = {"doubled": named["stages"]["doubled"]}
    publish_json(run.folder / "run.json", named)
    assert dispatch(["store", "gc", str(tmp_path), "--yes"]) == 0
    assert all(any((tmp_path / "store" / name).iterdir()) for name in run.record["stages"])


def test_it_is_planned(launched, tmp_path):
    plan = launched("preflight=only").summary["preflight"]
    nbytes = COUNT * 7 * 4 * 4 * 16 * 4
    assert (plan["doubled_bytes"], plan["stored"]) == (
        nbytes,
        {
            "conditioning": [0, 7],
            "trajectories": [0, 6],
            "pictures": [0, 6],
            "doubled": [0, COUNT],
        },
    )
    assert plan["bytes_left"] == plan["total_bytes"]
    launched()
    (folder,) = folders(tmp_path)
    for name in ("000001.safetensors", "000005.safetensors"):
        (folder / name).unlink()
    plan = launched("preflight=only").summary["preflight"]
    assert plan["stored"]["doubled"] == [COUNT - 2, COUNT]
    assert plan["bytes_left"] == 2 * nbytes // COUNT
    assert reported(launched())["made"] == 2
    assert launched("preflight=only").summary["preflight"]["bytes_left"] == 0


def test_the_plan_says_its_size(launched, caplog):
    with caplog.at_level("INFO"):
        launched()
    assert "doubled 43.0 kB" in caplog.text


def test_it_can_be_asked_for_refreshed_and_left_out(run, launched, tmp_path):
    again = launched("refresh=[doubled]")
    assert reported(again)["made"] == COUNT
    assert len(folders(tmp_path)) == 2  # the former one was moved aside
    assert again.record["stages"] == run.record["stages"]
    with pytest.raises(ConfigError, match=r"refresh=.* does not run"):
        launched("refresh=[doubled]", "stages=[trajectories]")
    with pytest.raises(StorageError, match="the stage trajectories lacks 3 units"):
        launched("stages=[conditioning,doubled]", "sampler.seed=3")


def test_without_its_line_in_the_table_it_is_no_stage(tmp_path):
    with pytest.raises(ConfigError, match=r"stages=.* must be all or a list out of"):
        package.launch([*ANALYTIC, f"output_dir={tmp_path}", STAGES])


def test_all_stages_are_that_one_too(doubled):
    plan = config.plan(config.compose_config(ANALYTIC))
    assert "doubled" in plan.stages
    assert kinds.with_sources(["doubled"]) == {"doubled", "trajectories", "conditioning"}


def test_a_rerun_says_that_it_is_another(run, doubled, tmp_path):
    def told(*overrides):
        composed = config.compose_config([*ANALYTIC, f"output_dir={tmp_path}", STAGES, *overrides])
        return [
            line
            for line in differences(run.record, tmp_path / "store", config.plan(composed))
            if "doubled" in line
        ]

    assert told() == []
    assert told("sampler.seed=3") == ["  stage     doubled: other inputs (seed), so another folder"]
    (folder,) = folders(tmp_path)
    folder.rename(folder.with_name("elsewhere"))
    (line,) = told()
    assert line == f"  stage     doubled: {folder.name} is not in the store any more"


# --- the names of the stages stand in one place ------------------------------------------------

OTHERS = (  # what else is called so
    {"calibration", "statistics"},  # kinds of files that are imported
    {"trajectories", "statistics"},  # data that runs share which are compared
    {"figures", "report"},  # for which trajectories are drawn
)


def listings(source):
    """Every list, tuple, set or mapping of constants in which two stages are named."""
    names = set(kinds.stage_names())
    for node in ast.walk(ast.parse(source)):
        parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", ())
        found = {part.value for part in parts if isinstance(part, ast.Constant)} & names
        if len(found) > 1:
            yield found


@pytest.mark.parametrize(
    "text",
    [
        'A = ("weights", "figures")',
        'f({"report": 1, "analysis": 2})',
        'x = y & {"weights", "report"}',
    ],
)
def test_a_listing_is_seen(text):
    assert len(list(listings(text))) == 1


def test_the_stages_are_listed_in_their_table_alone():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] != "stages":
            for found in listings(path.read_text(encoding="utf-8")):
                assert found in OTHERS, f"{path}: {found}"


def test_each_key_is_of_one_stage():
    keys = [key for kind in kinds.KINDS for key in kind.keys]
    assert len(set(keys)) == len(keys)


def test_what_a_stage_is_made_from_comes_before_it():
    names = kinds.stage_names()
    for place, kind in enumerate(kinds.KINDS):
        assert set(kind.made_from) <= set(names[:place]), kind.name
