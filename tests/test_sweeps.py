"""Sweeps: all jobs are checked before the first, failures told at the end, jobs compared."""

import json
import pickle
import subprocess
import sys

import pytest
from conftest import ANALYTIC, command, slow_unless
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from taqdit import config, run
from taqdit.analysis.selections import default_budget
from taqdit.config import Problem, SweepJob
from taqdit.errors import ConfigError, NumericError, StorageError, TaqditError
from taqdit.runs import sweep as sweeping


def jobs_of(*arguments):
    """The jobs of `taqdit -m *arguments`."""
    with initialize_config_dir(config_dir=str(config.config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration(
            config_name="config", overrides=list(arguments), run_mode=RunMode.MULTIRUN
        )
        return config.sweep_jobs(master)


@pytest.mark.parametrize(
    ("subdir", "told"),
    [("${hydra:job.override_dirname}", True), ("x/${pair.password}", True), ("x", False)],
)
def test_no_folder_is_named_after_a_secret(subdir, told):
    secret = r"pair={password:'it\'s-a-secret'}"
    for job in jobs_of(secret, "sampler.seed=0,1", f"hydra.sweep.subdir={subdir}"):
        found = [problem.text for problem in job.problems]
        assert found == ["hydra.sweep.subdir names folders after a secret; leave it out"] * told


COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize("place", [f"{COMMIT}_", "${pair.at}_", f"snapshots/{COMMIT}/"])
def test_a_folder_may_be_named_after_a_commit(place):
    subdir = f"hydra.sweep.subdir={place}${{hydra:job.num}}"
    for job in jobs_of(f"pair={{at:{COMMIT}}}", "sampler.seed=0,1", subdir):
        assert COMMIT in str(job.folder)
        assert not job.problems


@pytest.mark.parametrize("place", ["${pair.api_key}", "x-correct horse battery"])
def test_no_folder_is_named_after_a_key_by_its_name_or_of_the_environment(place, monkeypatch):
    monkeypatch.setenv("MY_PASSWORD", "correct horse battery")
    for job in jobs_of(
        f"pair={{api_key:{COMMIT}}}", "sampler.seed=0,1", f"hydra.sweep.subdir='{place}'"
    ):
        (problem,) = job.problems
        assert "after a secret" in problem.text


def summaries(folder):
    """Job number -> summary.json of the only sweep below a folder."""
    paths = folder.glob("outputs/sweeps/*/*/*/summary.json")
    return {int(path.parent.name): json.loads(path.read_text()) for path in paths}


def told(done):
    """The errors that the command ended with."""
    return [text for text in done.stderr.splitlines() if text.startswith("taqdit: ")]


COMPARED = """
import sys, types
module = types.ModuleType("taqdit.report.comparison.side_by_side")
def compare(folders, into):
    print("COMPARED", *(folder.name for folder in folders), "INTO", into)
    {then}
module.compare, module.track = compare, lambda found: ""
sys.modules["taqdit.report.comparison.side_by_side"] = module
from taqdit.cli import main
main()
"""


def sweep(folder, *arguments, then="pass"):
    """`taqdit -m *ANALYTIC *arguments` with a comparison that only says what it was given."""
    (python, *_), env = command()
    line = [python, "-c", COMPARED.format(then=then), "-m", *ANALYTIC, *arguments]
    return subprocess.run(
        line, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_the_selection_preset_takes_seven_rules_at_one_budget():
    jobs = jobs_of("sweep=selection")
    assert [job.problems for job in jobs] == [()] * 7
    names = [job.overrides[0].partition("=")[2] for job in jobs]
    assert names == [
        *("paper_uniform", "paper_stride", "dense_middle", "midpoint", "interleaved"),
        *("sigma_uniform", "coverage_optimal"),
    ]
    for steps in (30, 50, 100):
        for name in names:
            chosen = [f"schedule.num_steps={steps}", f"timestep_selection={name}"]
            composed = config.compose_config(["sweep=selection", *chosen])
            assert composed.timestep_selection.count == default_budget(steps)
    assert default_budget(50) == 17


@pytest.mark.slow
def test_the_grid_preset_has_eighteen_jobs_and_keeps_selections_of_a_set_together():
    jobs = jobs_of("sweep=cfg_steps_selection")
    assert [job.problems for job in jobs] == [()] * 18
    sets = [job.overrides[:2] for job in jobs]
    assert len(set(sets)) == 9
    assert all(first == second for first, second in zip(sets[::2], sets[1::2], strict=True))


def counts_of(*arguments):
    return [int(job.overrides[-1].partition("=")[2]) for job in jobs_of(*arguments)]


@pytest.mark.slow
def test_the_budget_preset_ends_at_the_number_of_steps():
    assert counts_of("sweep=budget") == [3, 5, 8, 12, 17, 25]
    assert counts_of("sweep=budget", "schedule.num_steps=8") == [3, 5, 8]
    assert counts_of("sweep=budget", "schedule.num_steps=100")[-1] == 50
    with pytest.raises(ConfigError, match=r"timestep_selection\.count=.* the sweep has no job"):
        jobs_of("sweep=budget", "schedule.num_steps=2")


def test_the_command_line_replaces_what_a_preset_sweeps():
    jobs = jobs_of("sweep=selection", "timestep_selection=normal,midpoint", "sampler.seed=4")
    assert [job.overrides for job in jobs] == [
        ("timestep_selection=normal",),
        ("timestep_selection=midpoint",),
    ]
    (alone,) = jobs_of("sampler.seed=4")
    assert alone.overrides == ("sampler.seed=4",)


def test_a_sweep_refreshes_nothing():
    """Each job would set aside what the one before it has made anew; a single job may."""
    for job in jobs_of("refresh=[trajectories]", "sampler.seed=1,2"):
        (problem,) = job.problems
        assert problem.text.startswith("refresh=['trajectories'] would do it in every job; refresh")
    (alone,) = jobs_of("refresh=[trajectories]", "sampler.seed=1")
    assert alone.problems == ()


def test_a_job_knows_its_folder(tmp_path):
    where = [f"output_dir={tmp_path}", "sampler.seed=1,2"]
    first, second = jobs_of(*where)
    assert first.folder.parent == second.folder.parent
    assert [first.folder.name, second.folder.name] == ["0", "1"]
    assert first.folder.is_relative_to(tmp_path / "sweeps")
    named = jobs_of(*where, "hydra.sweep.subdir=seed_${sampler.seed}")
    assert [job.folder.name for job in named] == ["seed_1", "seed_2"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sweep=selection", "makes several runs; ask for them: taqdit -m ..."),
        ("hydra/launcher=parallel", "is for sweeps, and this is a single run; add -m"),
    ],
)
def test_what_is_for_a_sweep_is_no_single_run(taqdit, tmp_path, override, words):
    done = taqdit(override)
    assert done.returncode == 2
    assert told(done) == [f"taqdit: {override} {words}"]
    assert not (tmp_path / "outputs").exists()


def test_nothing_runs_if_a_job_has_a_problem(taqdit, tmp_path):
    asked = ("sampler.cfg_scale=0,2", "timestep_selection=midpoint,nonsense")
    done = taqdit("-m", *ANALYTIC, *asked)
    assert done.returncode == 2
    scale, nonsense = told(done)
    assert scale.startswith("taqdit: sampler.cfg_scale=0.0 must lie in")
    assert scale.endswith(": job 0 (sampler.cfg_scale=0 timestep_selection=midpoint)")
    assert "Could not find 'timestep_selection/nonsense'" in nonsense
    assert "job 1 (sampler.cfg_scale=0 timestep_selection=nonsense), job 3 (" in nonsense
    assert not (tmp_path / "outputs").exists()


NO_RULE = "timestep_selection=glob(zzz*)"


@pytest.mark.slow
def test_the_exit_code_of_a_refused_sweep_is_that_of_a_run(taqdit, tmp_path):
    files = "inputs.statistics=none.npz,missing.npz"
    assert taqdit("-m", *ANALYTIC, files).returncode == 3
    assert taqdit("-m", *ANALYTIC, files, "sampler.batch_size=0").returncode == 2
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("nothing", slow_unless([NO_RULE], [NO_RULE, "sampler.seed=range(0,0)"]))
def test_a_sweep_without_a_job_is_an_error(taqdit, tmp_path, nothing):
    done = taqdit("-m", *ANALYTIC, "sampler.cfg_scale=1.5,4", nothing)
    assert done.returncode == 2
    assert told(done) == [f"taqdit: {nothing} gives no value, so the sweep has no job"]
    assert not (tmp_path / "outputs").exists()


def test_what_hydra_cannot_parse_is_one_line(taqdit):
    done = taqdit("-m", *ANALYTIC, "sampler.seed=choice()")
    assert done.returncode == 2
    assert len(told(done)) == 1
    assert "Warning" not in done.stderr


def test_equal_problems_are_said_once():
    same, other = Problem("a=1 is wrong", 2), Problem("b=2 is wrong", 3)
    jobs = [SweepJob(i, (f"k={i}",), None, (same,)) for i in range(4)]
    (everywhere,) = sweeping.problems_of(jobs)
    assert everywhere == Problem("a=1 is wrong: all 4 jobs", 2)
    jobs.append(SweepJob(4, ("k=4",), None, (other,)))
    most, one = sweeping.problems_of(jobs)
    assert most.text == "a=1 is wrong: job 0 (k=0), job 1 (k=1), job 2 (k=2) and 1 more"
    assert one == Problem("b=2 is wrong: job 4 (k=4)", 3)


ONE_BY_ONE = pytest.param(("hydra.sweeper.max_batch_size=1",), marks=pytest.mark.slow)


@pytest.mark.parametrize("batches", [(), ONE_BY_ONE])
def test_failed_jobs_do_not_stop_the_rest_and_are_named(tmp_path, batches):
    targets = "model._target_=analytic.poisoned,analytic.gaussian"
    done = sweep(tmp_path, targets, "sampler.seed=0,1", *batches)
    assert done.returncode == 6
    first, second = told(done)
    start = "taqdit: job 0 (model._target_=analytic.poisoned sampler.seed=0) failed: the latent"
    assert first.startswith(start)
    assert "job 1 (model._target_=analytic.poisoned sampler.seed=1) failed: " in second
    found = summaries(tmp_path)
    assert [found[i]["status"] for i in range(4)] == ["failed", "failed", "ok", "ok"]
    assert found[0]["exit_code"] == 6
    assert found[0]["error"] in first
    assert found[0]["stages"][0]["made"] == 7  # what the run itself says is kept
    (log,) = tmp_path.glob("outputs/sweeps/*/*/0/taqdit.log")
    assert "NumericError" in log.read_text()
    (root,) = tmp_path.glob("outputs/sweeps/*/*")
    assert f"COMPARED 0 1 2 3 INTO {root}\n" in done.stdout


@pytest.mark.slow
def test_a_job_that_fails_before_its_run_begins_leaves_a_summary(tmp_path):
    done = sweep(tmp_path, "sampler.seed=0,1", "hydra.job.chdir=true")
    assert done.returncode == 2
    assert len(told(done)) == 2
    found = summaries(tmp_path)
    assert [found[i]["status"] for i in range(2)] == ["failed", "failed"]
    assert "hydra.job.chdir=true" in found[1]["error"]
    assert "COMPARED" not in done.stdout  # there is nothing to compare


@pytest.mark.slow
def test_a_sweep_says_where_its_comparison_lies(tmp_path):
    done = sweep(tmp_path, "sampler.seed=0,1")
    assert done.returncode == 0, done.stderr
    (root,) = tmp_path.glob("outputs/sweeps/*/*")
    lines = done.stdout.splitlines()
    assert lines[-1] == f"comparison    {root / 'comparison.html'}"
    assert lines[-2] == f"COMPARED 0 1 INTO {root}"


@pytest.mark.slow
def test_a_plan_is_not_compared(tmp_path):
    done = sweep(tmp_path, "sampler.seed=0,1", "preflight=only")
    assert done.returncode == 0, done.stderr
    assert [each["status"] for each in summaries(tmp_path).values()] == ["preflight"] * 2
    assert "COMPARED" not in done.stdout


@pytest.mark.slow
def test_a_comparison_that_fails_hides_no_result(tmp_path):
    broken = "raise ValueError('no page')"
    done = sweep(tmp_path, "sampler.seed=0,1", then=broken)
    assert done.returncode == 1
    assert told(done) == ["taqdit: the jobs are not compared: no page"]
    assert "Traceback" in done.stderr
    assert [each["status"] for each in summaries(tmp_path).values()] == ["ok", "ok"]


@pytest.mark.slow
def test_failed_jobs_come_before_a_failed_comparison(tmp_path):
    targets = "model._target_=analytic.poisoned,analytic.gaussian"
    broken = "from taqdit.errors import StorageError; raise StorageError('no space')"
    done = sweep(tmp_path, targets, then=broken)
    assert done.returncode == 6
    job, page = told(done)
    assert job.startswith("taqdit: job 0 (model._target_=analytic.poisoned) failed: ")
    assert page == "taqdit: the jobs are not compared: no space"
    assert "Traceback" not in done.stderr


def ended(folder, number, **summary):
    """A job whose folder holds this summary."""
    where = folder / str(number)
    where.mkdir()
    if summary:
        (where / "summary.json").write_text(json.dumps(summary))
    return SweepJob(number, (f"k={number}",), where)


def test_the_first_failure_gives_the_kind(tmp_path):
    jobs = [
        ended(tmp_path, 0, status="ok"),
        ended(tmp_path, 1, status="failed", error="the disk is full", exit_code=4),
        ended(tmp_path, 2, status="failed", error="NaN", exit_code=6),
        ended(tmp_path, 3, status="interrupted", error=None),
        ended(tmp_path, 4),
    ]
    error = sweeping.failures(jobs)
    assert type(error) is StorageError
    assert error.args == (
        "job 1 (k=1) failed: the disk is full",
        "job 2 (k=2) failed: NaN",
        "job 3 (k=3) failed: interrupted",
        "job 4 (k=4) failed: left no summary.json: it was not run to its end",
    )
    assert type(sweeping.failures(jobs[4:])) is TaqditError
    assert sweeping.failures(jobs[:1]) is None


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_summary_is_a_failure(tmp_path, text):
    job = ended(tmp_path, 0, status="ok")
    (job.folder / "summary.json").write_text(text)
    assert "left no summary.json" in str(sweeping.failures([job]))


def test_a_fault_of_ours_is_a_failure_too(tmp_path):
    sweeping.fail(tmp_path / "new", KeyError("name"))
    found = json.loads((tmp_path / "new" / "summary.json").read_text())
    assert found == {"status": "failed", "error": "KeyError: 'name'", "exit_code": 1}
    sweeping.fail(tmp_path / "new", NumericError("a", "b"))
    found = json.loads((tmp_path / "new" / "summary.json").read_text())
    assert (found["error"], found["exit_code"]) == ("a; b", 6)


def test_a_launcher_that_breaks_leaves_word_of_the_jobs(tmp_path, monkeypatch, capsys):
    """A worker that was killed: the launcher raises, and no callback is called at the end."""

    def main(**_):
        def launch():
            sweeping.report = sweeping.SweepReport()
            sweeping.report.jobs = [ended(tmp_path, 0, status="ok"), ended(tmp_path, 1)]
            raise RuntimeError("a worker was killed")

        return lambda task: launch

    monkeypatch.setattr(run.hydra, "main", main)
    with pytest.raises(RuntimeError, match="a worker was killed"):
        run.application()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("taqdit: job 1 (k=1) failed: left no summary.json")


def test_jobs_of_another_sweeper_are_found_by_their_folders(tmp_path):
    for name, status in (("a", "ok"), ("b", "failed")):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text("[]")
        (tmp_path / name / "summary.json").write_text(json.dumps({"status": status}))
    (tmp_path / "figures").mkdir()
    assert [job.folder.name for job in sweeping._found(tmp_path)] == ["a", "b"]
    assert sweeping.failures(sweeping._found(tmp_path)).args == ("job 1 (b) failed: failed",)


def test_what_launchers_send_to_other_processes_can_be_pickled():
    report = sweeping.SweepReport()
    report.jobs = jobs_of("sampler.seed=1,2")
    again = pickle.loads(pickle.dumps(report))
    assert again.jobs == report.jobs
    assert pickle.loads(pickle.dumps(run.job)) is run.job
    error = pickle.loads(pickle.dumps(NumericError("a", "b")))
    assert error.args == ("a", "b")


@pytest.mark.slow
def test_a_sweep_without_the_callback_still_fails(taqdit):
    targets = "model._target_=analytic.poisoned,analytic.gaussian"
    done = taqdit("-m", *ANALYTIC, targets, "~hydra.callbacks.sweep")
    assert done.returncode == 6
    assert len(told(done)) == 1


@pytest.mark.slow
def test_the_application_module_sweeps_too(tmp_path):
    _, env = command()
    line = [sys.executable, "-m", "taqdit.run", "-m", *ANALYTIC]
    line.append("model._target_=analytic.poisoned,analytic.gaussian")
    done = subprocess.run(
        line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 6
    assert told(done)[0].startswith("taqdit: job 0 (model._target_=analytic.poisoned) failed: ")


def test_keys_that_vary_together():
    """A zipped sweep: two jobs, not four."""
    jobs = jobs_of(
        "pair={cfg:1.5,steps:3},{cfg:4,steps:4}",
        "sampler.cfg_scale=${pair.cfg}",
        "schedule.num_steps=${pair.steps}",
    )
    assert [job.overrides for job in jobs] == [
        ("pair={cfg:1.5,steps:3}",),
        ("pair={cfg:4,steps:4}",),
    ]
    assert [job.problems for job in jobs] == [(), ()]
    composed = config.compose_config(["pair={cfg:4,steps:7}", "schedule.num_steps=${pair.steps}"])
    assert config.plan(composed).schedule.num_steps == 7
    (poor,) = jobs_of("pair={steps:0}", "schedule.num_steps=${pair.steps}")
    assert next(problem.text for problem in poor.problems).startswith("schedule.num_steps=0")
