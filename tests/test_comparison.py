"""Several runs side by side: what differs, who is told apart, and that no bad run stops it."""

import csv
import itertools
import json
import math
import random
import shutil

import numpy as np
import pytest
from conftest import tree

import taqdit as package
from taqdit.errors import InputError
from taqdit.report import comparison
from taqdit.report.comparison import drawings, side_by_side
from taqdit.report.comparison.pairs import Pair
from taqdit.report.comparison.side_by_side import compare, read
from taqdit.report.comparison.table import table

GRID = ("schedule.num_steps=4", "sampler.num_trajectories=4", "sampler.batch_size=2")
QUIET = ("plots=none", "tracking=none", "preflight=off")
FEW = (
    "tracer=post_gelu",
    "tracer.blocks=[mm_00,mm_03]",
    "tracer.folds=4",
    "analysis.compare=[paper_uniform,dense_middle]",
)


def selection(rule, loss=0.1, half=0.02, points=12.0, **others):
    found = {
        "rule": rule,
        "points": points,
        "steps": [0, 1],
        "loss_db": [loss, loss / 2, loss / 4],
        "half_width_db": [half] * 3,
        "fitted": False,
        "exact": True,
    }
    return found | others


def made(folder, *, rule="paper_uniform", cfg=2.0, steps=30, loss=0.1, half=0.02, points=12.0,
         status="ok", error=None, overrides=None, seconds=1.5, run_id="r", **others):  # fmt: skip
    """A run's folder, with the files that a comparison reads."""
    (folder / ".hydra").mkdir(parents=True)
    if overrides is None:
        overrides = [f"sampler.cfg_scale={cfg}", f"timestep_selection={rule}", "output_dir=/x/y"]
    config = {
        "sampler": {"cfg_scale": cfg, "num_trajectories": 4, "images": False},
        "schedule": {"num_steps": steps},
        "timestep_selection": {"_target_": f"taqdit.timestep_selection.{rule}", "count": None},
        "output_dir": "/x/y",
        "analysis": {"weighting": "dt"},
    }
    record = {
        "config": config,
        "choices": {"model": "tiny", "timestep_selection": rule},
        "stages": {"trajectories": f"t{cfg}{steps}", "statistics": f"s{cfg}{steps}"},
        "run_id": run_id,
        "store": "../store",
        "prompts": ["p"] * 4,
        "prompt_seeds": [None] * 4,
    }
    scores = {f"selection/loss_{b}bit_db": loss / n for b, n in ((8, 1), (6, 2), (4, 4))}
    summary = {
        "status": status,
        "error": error,
        "seconds": seconds,
        "analysis": {"scores": {**scores, "selection/w1": 0.25}},
        "calibration": {"steps": [0, 7]},
        "statistics": {"trajectories": 4},
    }
    own = [selection("midpoint", 0.3), selection(rule, loss, half, points, **others)]
    files = {
        "summary": summary,
        "run": record,
        "analysis": {"comparison": {"own": 1, "selections": own}},
    }
    if status != "ok":
        files = {"summary": {"status": status, "error": error, "seconds": seconds}, "run": record}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    text = "".join(f"- {each}\n" for each in overrides) or "[]\n"
    (folder / ".hydra" / "overrides.yaml").write_text(text)
    return folder


@pytest.fixture
def four(tmp_path):
    """Two guidance scales by two selections, which differ clearly at 4 and not at 1.5."""
    cells = [("paper_uniform", 1.5, 0.10), ("dense_middle", 1.5, 0.11)]
    cells += [("paper_uniform", 4.0, 0.50), ("dense_middle", 4.0, 0.10)]
    return [
        made(tmp_path / "jobs" / str(i), rule=rule, cfg=cfg, loss=loss, run_id=f"id{i}")
        for i, (rule, cfg, loss) in enumerate(cells)
    ]


@pytest.fixture
def undrawn(monkeypatch):
    """No figures, where nothing is asked of them."""
    monkeypatch.setattr(side_by_side, "save_all", lambda *_, **__: [])


def compared(into):
    return json.loads((into / "comparison.json").read_text())["compared"]


def test_a_run_is_read_whole(tmp_path):
    run = read(made(tmp_path / "a", rule="dense_middle", loss=0.4))
    assert (run.status, run.error, run.seconds, run.extent) == ("ok", None, 1.5, 4)
    assert run.choices["timestep_selection"] == "dense_middle"
    assert run.config["sampler"]["cfg_scale"] == 2.0
    assert run.numbers["selection/loss_8bit_db"] == 0.4
    assert run.steps == (0, 7)
    assert [each.rule for each in run.selections] == ["midpoint", "dense_middle"]
    assert run.own.loss_db == (0.4, 0.2, 0.1)
    assert run.overrides[0] == "sampler.cfg_scale=2.0"


FILES = ("summary.json", "run.json", "analysis.json", ".hydra/overrides.yaml")
WRONG = (
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b"[" * 100_000,
    b'{"status": 5}',
    b'{"status": "ok", "seconds": "long"}',
    b'{"status": "ok", "analysis": {"scores": {"a": [1]}}}',
    b'{"status": "ok", "calibration": {"steps": 1e999}}',
    b'{"comparison": {"own": 0, "selections": [{}]}}',
    b"a: [b\n- c: }",
    b"- {a: ${b}}\n- 5",
)
CASES = [
    (name, data)
    for name, data in itertools.product(FILES, WRONG)
    if (name, data) != (FILES[-1], b"[]")  # no override
]


@pytest.mark.parametrize(("name", "data"), CASES)
def test_a_damaged_file_is_a_status(tmp_path, name, data):
    run = made(tmp_path / "a")
    (run / name).write_bytes(data)
    found = read(run)
    assert found.status == "damaged"
    assert name in found.error
    assert "\n" not in found.error


@pytest.mark.parametrize("name", FILES[:3])
def test_a_missing_file_is_a_status(tmp_path, name):
    run = made(tmp_path / "a")
    (run / name).unlink()
    found = read(run)
    assert found.status == "missing"
    assert name in found.error


def test_a_folder_that_is_not_there_is_missing_and_one_of_a_file_too(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nothing", "file"):
        assert read(tmp_path / name).status in ("missing", "damaged")


def test_a_failed_run_keeps_its_error(tmp_path):
    found = read(made(tmp_path / "a", status="failed", error="the disk is full"))
    assert (found.status, found.error) == ("failed", "the disk is full")
    assert found.own is None


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    run = made(tmp_path / "a", half=math.nan)
    summary = json.loads((run / "summary.json").read_text())
    summary["analysis"]["scores"]["selection/js"] = math.inf
    (run / "summary.json").write_text(json.dumps(summary))
    found = read(run)
    assert found.status == "ok"
    assert "selection/js" not in found.numbers
    assert found.own.half_width_db == (None, None, None)


@pytest.mark.usefixtures("undrawn")
def test_the_table_has_what_differs_and_nothing_else(four, tmp_path):
    found = compare(four, tmp_path / "into")
    assert found.keys == ("sampler.cfg_scale", "timestep_selection")
    assert [tuple(row.varied.values()) for row in found.rows] == [
        (1.5, "dense_middle"),
        (1.5, "paper_uniform"),
        (4, "dense_middle"),
        (4, "paper_uniform"),
    ]
    with (tmp_path / "into" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["Loss 8"] for row in rows] == ["0.11", "0.1", "0.1", "0.5"]
    assert [row["Loss 4"] for row in rows] == ["0.0275", "0.025", "0.025", "0.125"]
    assert {row["+- 8"] for row in rows} == {"0.02"}
    assert {row["W1"] for row in rows} == {"0.25"}
    assert {row["Points"] for row in rows} == {"12"}
    assert {row["%Range"] for row in rows} == {""}
    assert [row["Folder"] for row in rows] == [f"../jobs/{i}" for i in (1, 0, 3, 2)]


@pytest.mark.usefixtures("undrawn")
def test_a_setting_of_an_experiment_differs_though_no_override_names_it(tmp_path):
    runs = [made(tmp_path / str(n), steps=n, overrides=[]) for n in (20, 100, 50)]
    found = compare(runs, tmp_path / "into")
    assert found.keys == ("schedule.num_steps",)
    assert [row.varied["schedule.num_steps"] for row in found.rows] == [20, 50, 100]


@pytest.mark.usefixtures("undrawn")
def test_numbers_are_compared_as_numbers(tmp_path):
    runs = [
        made(tmp_path / "a", overrides=["sampler.cfg_scale=2"]),
        made(tmp_path / "b", overrides=["sampler.cfg_scale=2.0", "output_dir=/elsewhere"]),
    ]
    assert compare(runs, tmp_path / "into").keys == ()


@pytest.mark.usefixtures("undrawn")
def test_selections_that_differ_are_told_apart_by_the_root_of_the_squares(four, tmp_path):
    found = compare(four, tmp_path / "into")
    first, second = found.pairs
    assert first.half_width == pytest.approx(math.sqrt(2) * 0.02)
    assert (first.differ, second.differ) == (False, True)
    assert second.difference == pytest.approx(-0.4)
    assert found.verdict["cfg_scale=1.5"][1] == (
        "dense_middle and paper_uniform do not differ beyond their interval at k = 12:"
        " 0.010 dB +- 0.028"
    )
    assert found.verdict["cfg_scale=4"][1] == (
        "dense_middle is better than paper_uniform at k = 12 by 0.400 dB +- 0.028"
    )
    assert "lowest loss at 8 bits: dense_middle" in found.verdict["cfg_scale=4"][0]
    page = found.page.read_text()
    assert "Runs are told apart without pairing" in page
    assert "† the steps were chosen from the same statistics" in page


@pytest.mark.parametrize(
    ("difference", "half", "differ"),
    [(0.03, 0.02, True), (-0.03, 0.02, True), (0.02, 0.02, False), (5.0, None, False)],
)
def test_a_pair_differs_beyond_its_interval_only(difference, half, differ):
    pair = Pair("", "a", "b", (8.0, 12.0), 8, difference, half)
    assert pair.differ is differ
    better = "a (k = 8)" if difference < 0 else "b (k = 12)"
    assert str(pair).startswith(f"{better} is better") is differ
    assert ("too few folds" in str(pair)) is (half is None)


@pytest.mark.usefixtures("undrawn")
def test_many_selections_are_set_against_the_best(tmp_path):
    losses = {"a": 0.1, "b": 0.11, "c": 0.5, "d": 0.2}
    runs = [made(tmp_path / name, rule=name, loss=loss) for name, loss in losses.items()]
    found = compare(runs, tmp_path / "into")
    (lines,) = found.verdict.values()
    assert lines[0].startswith("lowest loss at 8 bits: a")
    assert lines[1] == "do not differ from it beyond the interval: b 0.110"
    assert lines[2] == "worse: d 0.200, c 0.500"
    assert lines[3] == "of all 6 pairs 5 differ beyond their interval"


@pytest.mark.usefixtures("undrawn")
def test_all_sets_together_are_judged_first_at_every_width(four, tmp_path):
    found = compare(four, tmp_path / "into")
    assert list(found.verdict) == ["all together", "cfg_scale=1.5", "cfg_scale=4"]
    names = "dense_middle and paper_uniform"
    assert found.verdict["all together"] == [
        "lowest loss at 8 bits: paper_uniform in 1, dense_middle in 1 of 2 sets of trajectories",
        *(
            f"{bits} bits: {names} differ beyond their interval in 1 of 2 sets;"
            " dense_middle is better at cfg_scale=4"
            for bits in (8, 6, 4)
        ),
    ]


@pytest.mark.usefixtures("undrawn")
def test_all_sets_together_say_where_nobody_is_told_apart_and_count_ties(tmp_path):
    cells = [(rule, cfg, 0.1) for cfg in (1.0, 2.0, 3.0) for rule in ("a", "b")]
    cells[-1] = ("b", 3.0, 0.11)
    runs = [made(tmp_path / f"{rule}{cfg}", rule=rule, cfg=cfg, loss=loss)
            for rule, cfg, loss in cells]  # fmt: skip
    verdict = compare(runs, tmp_path / "into").verdict
    first, second, *_ = verdict["all together"]
    assert first.endswith(": a in 3, b in 2 of 3 sets of trajectories; a tie counts for each")
    assert second == "8 bits: a and b do not differ beyond their interval in any of 3 sets"
    assert "loses 0.100 dB [0.080, 0.120] at k = 12, and so does b" in verdict["cfg_scale=1"][0]
    assert "and so" not in verdict["cfg_scale=3"][0]


@pytest.mark.usefixtures("undrawn")
def test_many_pairs_on_several_sets_are_counted(tmp_path):
    runs = [made(tmp_path / f"{rule}{cfg}", rule=rule, cfg=cfg, loss=0.1 + place)
            for cfg in (1.0, 2.0) for place, rule in enumerate("abcd")]  # fmt: skip
    lines = compare(runs, tmp_path / "into").verdict["all together"]
    assert lines[1:] == [
        f"{bits} bits: of all 12 pairs 12 differ beyond their interval" for bits in (8, 6, 4)
    ]


@pytest.mark.usefixtures("undrawn")
def test_budgets_that_differ_are_said(tmp_path):
    runs = [made(tmp_path / "a", rule="a", points=8.0), made(tmp_path / "b", rule="b", points=12.0)]
    (lines,) = compare(runs, tmp_path / "into").verdict.values()
    assert "the budgets differ" in lines[0]
    assert "a (k = 8)" in lines[1]
    assert "b (k = 12)" in lines[1]


@pytest.mark.usefixtures("undrawn")
def test_runs_on_other_trajectories_are_not_paired(tmp_path):
    runs = [made(tmp_path / "a", rule="a", cfg=1.0), made(tmp_path / "b", rule="b", cfg=2.0)]
    assert compare(runs, tmp_path / "into").pairs == ()


@pytest.mark.usefixtures("undrawn")
def test_runs_whose_trajectories_are_not_known_are_not_paired(tmp_path):
    runs = [made(tmp_path / name, rule=name, cfg=cfg) for name, cfg in (("a", 1.0), ("b", 2.0))]
    for run in runs:
        (run / "run.json").write_text("{")
    assert compare(runs, tmp_path / "into").pairs == ()


@pytest.mark.usefixtures("undrawn")
def test_the_order_and_the_place_of_the_runs_change_nothing(four, tmp_path):
    compare(four, tmp_path / "one")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    others = [shutil.copytree(path, moved / f"job_{i}") for i, path in enumerate(four)]
    for path in others:
        summary = json.loads((path / "summary.json").read_text())
        (path / "summary.json").write_text(json.dumps(summary | {"seconds": random.random()}))
        record = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps(record | {"run_id": "another"}))
    random.Random(3).shuffle(others)
    compare([*others, others[0]], tmp_path / "two")
    one, two = (json.dumps(compared(tmp_path / name)) for name in ("one", "two"))
    assert one == two
    assert str(tmp_path) not in one
    assert "/x/y" not in one
    where = json.loads((tmp_path / "one" / "comparison.json").read_text())["where"]
    assert [entry["run_id"] for entry in where] == ["id1", "id0", "id3", "id2"]


@pytest.mark.usefixtures("undrawn")
def test_a_change_of_a_score_changes_what_is_compared(four, tmp_path):
    compare(four, tmp_path / "one")
    shutil.rmtree(four[0])
    made(four[0], cfg=1.5, loss=0.12)
    compare(four, tmp_path / "two")
    assert compared(tmp_path / "one") != compared(tmp_path / "two")


@pytest.mark.usefixtures("undrawn")
def test_runs_that_failed_are_rows_and_named_on_top(four, tmp_path):
    bad = made(tmp_path / "jobs" / "bad", cfg=7.0, status="failed", error="<b>full</b> disk")
    (four[0] / "analysis.json").write_text("{")
    found = compare([*four, bad, tmp_path / "jobs" / "gone"], tmp_path / "into")
    assert [row.run.status for row in found.rows] == [
        "ok",
        "damaged",
        "ok",
        "ok",
        "failed",
        "missing",
    ]
    assert [line.partition(":")[0] for line in found.failures] == ["damaged", "failed", "missing"]
    assert "<b>full</b> disk" in found.failures[1]
    assert "settings unknown" in found.failures[2]
    page = found.page.read_text()
    assert "<b>full" not in page
    assert page.index("&lt;b&gt;full&lt;/b&gt; disk") < page.index('id="findings"')
    assert [run["status"] for run in compared(tmp_path / "into")["runs"]][4] == "failed"


@pytest.mark.usefixtures("undrawn")
def test_failed_runs_alone_still_make_a_page(tmp_path):
    bad = made(tmp_path / "bad", status="failed", error="no")
    found = compare([bad], tmp_path / "into")
    assert found.verdict == {}
    assert "no" in found.page.read_text()


def test_no_runs_are_an_error(tmp_path):
    with pytest.raises(InputError, match="no run to compare"):
        compare([], tmp_path / "into")
    assert not (tmp_path / "into").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_store_that_is_gone_is_a_note(four, tmp_path):
    found = compare(four, tmp_path / "into")
    assert "no ranges of cfg_scale=1.5: the store holds no statistics" in found.page.read_text()
    assert not (tmp_path / "into" / "figures" / "comparison_ranges.png").exists()


def test_loss_is_drawn_against_guidance_only_where_it_varies(four, tmp_path):
    compare(four, tmp_path / "into")
    assert (tmp_path / "into" / "figures" / "comparison_loss_cfg_scale.png").exists()
    assert not (tmp_path / "into" / "figures" / "comparison_loss_num_steps.png").exists()
    with (tmp_path / "into" / "figures" / "comparison_loss_cfg_scale.csv").open() as file:
        widths = [(r["loss_6bit_db"], r["loss_4bit_db"]) for r in csv.DictReader(file)]
        assert widths[-1] == ("0.25", "0.125")
        file.seek(0)
        rows = [(r["selection"], r["CFG scale"], r["loss_8bit_db"]) for r in csv.DictReader(file)]
    assert rows == [
        ("dense_middle", "1.5", "0.11"),
        ("dense_middle", "4.0", "0.1"),
        ("paper_uniform", "1.5", "0.1"),
        ("paper_uniform", "4.0", "0.5"),
    ]


@pytest.mark.parametrize(
    ("sets", "shown", "said"),
    [(3, [0, 1, 2], "all 3 sets"), (9, [0, 2, 3, 5, 6, 8], "6 of 9 sets")],
)
def test_of_many_sets_pictures_are_shown_from_first_to_last(
    tmp_path, monkeypatch, sets, shown, said
):
    """Or the sets of the last CFG scale would not be seen at all."""
    runs = [made(tmp_path / str(cfg), cfg=float(cfg)) for cfg in range(1, sets + 1)]
    for run in runs:
        record = json.loads((run / "run.json").read_text())
        record["config"]["sampler"]["images"] = True
        (run / "run.json").write_text(json.dumps(record))
    grey = np.full((4, 4, 3), 128, np.uint8)
    monkeypatch.setattr(drawings, "_column", lambda row: drawings._Column(row.name, ["p"], [grey]))
    _, rows = table([read(run) for run in runs])
    drawn = {each.name: each for each in drawings.store_drawings([], rows, [])}
    pictures = drawn["comparison_pictures"]
    assert said in pictures.title
    _, numbers = pictures.draw()
    assert numbers["set"] == [rows[place].name for place in shown]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Runs of the embedded model: two selections on one set of trajectories, one on another."""
    output = f"output_dir={tmp_path_factory.mktemp('compared')}"
    every = (*GRID, *QUIET, *FEW, output)
    return [
        package.launch((*every, "sampler.cfg_scale=1.5", "timestep_selection.count=2")),
        package.launch((*every, "sampler.cfg_scale=1.5", "timestep_selection=dense_middle")),
        package.launch((*every, "sampler.cfg_scale=4", "timestep_selection.count=2")),
    ]


@pytest.mark.slow
def test_real_runs_are_compared_whole(real, tmp_path):
    found = compare([run.folder for run in real], tmp_path)
    assert found.keys == ("sampler.cfg_scale", "timestep_selection", "timestep_selection.count")
    assert not found.failures
    names = {path.name.partition(".")[0] for path in (tmp_path / "figures").iterdir()}
    assert names == {
        f"comparison_{name}" for name in ("losses", "loss_cfg_scale", "ranges", "pictures")
    }
    (pair,) = found.pairs
    assert (pair.group, {pair.one, pair.other}) == (
        "cfg_scale=1.5",
        {"dense_middle", "paper_uniform, count=2"},
    )
    losses = {row.name: row.run.own.loss_db[0] for row in found.rows}
    for run in real:
        assert run.summary["analysis"]["scores"]["selection/loss_8bit_db"] in losses.values()
    page = found.page.read_text()
    assert page.count("<img") == 4
    assert "Notes" not in page


@pytest.mark.slow
def test_ranges_are_those_of_the_stored_statistics(real, tmp_path):
    compare([run.folder for run in real], tmp_path)
    with (tmp_path / "figures" / "comparison_ranges.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "range"]
    for run, name in ((real[0], "cfg_scale=1.5"), (real[2], "cfg_scale=4")):
        ranges = sorted(run.statistics().overview().median_range[:, 1])
        middle = (ranges[(len(ranges) - 1) // 2] + ranges[len(ranges) // 2]) / 2
        drawn = [float(row["median_range"]) for row in rows if row["name"] == name]
        assert drawn[1] == pytest.approx(middle, rel=1e-12)


@pytest.mark.slow
def test_comparing_real_runs_again_gives_the_same_bytes(real, tmp_path):
    folders = [run.folder for run in real]
    compare(folders, tmp_path / "one")
    compare(folders[::-1], tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_comparison_is_what_others_import():
    assert comparison.__all__ == ["Comparison", "RunResult", "compare", "read", "track"]
