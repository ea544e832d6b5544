"""Launchers: the same sweep gives the same result under each, and its failures are told alike."""

import importlib
import json
import os
import pickle
import signal
import subprocess
import time
from collections import Counter

import matplotlib
import pytest
import slurm_commands
from conftest import ANALYTIC, ROOT, command, slow_unless
from omegaconf import OmegaConf

from taqdit import config
from taqdit.config import schema
from taqdit.errors import ConfigError

LAUNCHERS = sorted((config.config_folder() / "hydra" / "launcher").glob("*.yaml"))
NEEDS = {"parallel": "joblib", "slurm": "submitit", "slurm_local": "submitit"}
TINY = (
    *("schedule.num_steps=3", "sampler.num_trajectories=2", "sampler.batch_size=2"),
    *("tracer=post_gelu", "tracer.blocks=[mm_00]", "sampler.images=false"),
    *("stages=[conditioning,trajectories,statistics,analysis]", "tracking=none", "plots=none"),
    *("analysis.compare=[paper_uniform,midpoint]", "analysis.budgets=[2]"),
    "timestep_selection=paper_uniform,dense_middle",
)
FONTS = matplotlib.get_cachedir()  # looked for once, not in every private home


def plugin(launcher):
    """The module of the plugin that a launcher needs."""
    return f"hydra_plugins.hydra_{NEEDS[launcher]}_launcher"


def needs(launcher):
    """Skip the test unless the launcher's plugin is installed."""
    reason = f"hydra/launcher={launcher} needs hydra-{NEEDS[launcher]}-launcher"
    pytest.importorskip(plugin(launcher), reason=reason)


def installed(launcher):
    """Whether the launcher's plugin is there."""
    try:
        importlib.import_module(plugin(launcher))
    except ImportError:
        return False
    return True


def start(folder, *arguments, **environment):
    """`taqdit -m *arguments` in a folder of its own, begun."""
    folder.mkdir(exist_ok=True)
    line, env = command("-m", *arguments)
    env |= {"HOME": str(folder), "MPLCONFIGDIR": FONTS, "OPENBLAS_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        line, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process):
    """Exit code, standard output, and the errors that the command ended with."""
    out, err = process.communicate(timeout=300)
    told = [text for text in err.splitlines() if text.startswith("taqdit: ")]
    return process.returncode, out, told


def read(folder, name):
    """The JSON files of this name in a sweep's folder or its jobs', in order."""
    return [
        json.loads(path.read_text()) for path in sorted(folder.glob(f"outputs/sweeps/*/*/{name}"))
    ]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Launcher -> (exit code, folder) of one small sweep of the embedded model."""
    here = filter(installed, ("parallel", "slurm_local"))
    folders = {name: tmp_path_factory.mktemp(name) for name in ("basic", *here)}
    begun = {
        name: start(folder, *TINY, f"hydra/launcher={name}") for name, folder in folders.items()
    }
    return {name: (*end(process), folders[name]) for name, process in begun.items()}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["parallel", "slurm_local"])
def test_a_sweep_gives_the_same_under_every_launcher(swept, launcher):
    needs(launcher)
    code, out, told, folder = swept[launcher]
    assert (code, told) == (0, [])
    assert "\ncomparison    " in out  # made by the command itself
    plain = swept["basic"][-1]
    (found,), (wanted,) = read(folder, "comparison.json"), read(plain, "comparison.json")
    assert found["compared"] == wanted["compared"]
    assert len(found["compared"]["runs"]) == 2
    assert read(folder, "*/analysis.json") == read(plain, "*/analysis.json")
    made = Counter()
    for job in read(folder, "*/summary.json"):
        made.update({stage["name"]: stage["made"] for stage in job["stages"]})
    assert (made["trajectories"], made["statistics"]) == (2, 3)  # of all jobs, each once


@pytest.mark.slow
def test_what_submitit_writes_lies_in_the_sweeps_folder(swept):
    needs("slurm_local")
    folder = swept["slurm_local"][-1]
    logs = list(folder.glob("outputs/sweeps/*/*/.submitit/*/*_log.err"))
    assert len(logs) == 2
    assert "loading tiny" in "".join(path.read_text() for path in logs)
    assert [path.name for path in folder.glob("[!.]*")] == ["outputs"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["parallel", "slurm_local"])
def test_a_job_that_fails_does_not_stop_the_others(tmp_path, launcher):
    needs(launcher)
    targets = "model._target_=analytic.poisoned,analytic.gaussian"
    code, out, told = end(start(tmp_path, *ANALYTIC, targets, f"hydra/launcher={launcher}"))
    assert code == 6
    (line,) = told
    assert line.startswith("taqdit: job 0 (model._target_=analytic.poisoned) failed: the latent")
    assert [each["status"] for each in read(tmp_path, "*/summary.json")] == ["failed", "ok"]
    assert "comparison.html" in out


NO_JOBS = ("parallel", "n_jobs=0", "n_jobs=0 must be at least 1, or -1 for one job per core")


@pytest.mark.parametrize(
    ("launcher", "knob", "words"),
    slow_unless(
        [NO_JOBS],
        [
            NO_JOBS,
            ("slurm_local", "nodes=2", "nodes=2 must be 1: a job is one process"),
            ("slurm", "timeout_min=0", "timeout_min=0 must be at least 1"),
        ],
    ),
)
def test_a_bad_configuration_stops_before_the_first_job(tmp_path, launcher, knob, words):
    needs(launcher)
    path = f"{slurm_commands.install(tmp_path / 'bin')}:{os.environ['PATH']}"
    asked = ("sampler.cfg_scale=0,2", f"hydra/launcher={launcher}", f"hydra.launcher.{knob}")
    code, _, told = end(start(tmp_path, *ANALYTIC, *asked, PATH=path))
    assert code == 2
    knob, scale = told
    assert knob == f"taqdit: hydra.launcher.{words}"
    assert scale.startswith("taqdit: sampler.cfg_scale=0.0 must lie in")
    assert scale.endswith(": job 0 (sampler.cfg_scale=0)")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_slurm_gets_one_array_of_the_jobs(tmp_path):
    """With stand-ins for Slurm's commands: what they are given, and that tasks run by it."""
    needs("slurm")
    folder = slurm_commands.install(tmp_path / "bin")
    asked = ("sampler.seed=0,1", "hydra/launcher=slurm", "hydra.launcher.partition=gpu")
    path = f"{folder}:{os.environ['PATH']}"
    code, _, told = end(start(tmp_path, *ANALYTIC, *asked, PATH=path))
    assert (code, told) == (0, [])
    assert [each["status"] for each in read(tmp_path, "*/summary.json")] == ["ok", "ok"]
    lines = (folder / "batch.sh").read_text().splitlines()
    for text in (
        *("array=0-1%2", "partition=gpu", "cpus-per-task=8", "mem=32GB", "time=240"),
        *("signal=USR2@120", "requeue", "open-mode=append"),
    ):
        assert f"#SBATCH --{text}" in lines
    assert "export OPENBLAS_NUM_THREADS=$SLURM_CPUS_PER_TASK" in lines


@pytest.mark.slow
def test_what_slurm_refuses_is_said_in_a_line(tmp_path):
    needs("slurm")
    path = f"{slurm_commands.install(tmp_path / 'bin', refusing=True)}:{os.environ['PATH']}"
    code, _, told = end(start(tmp_path, *ANALYTIC, "hydra/launcher=slurm", PATH=path))
    assert code == 1
    assert told[-1].startswith("taqdit: the launcher gave up, FailedJobError: sbatch: error: inv")
    assert told[-1].endswith("the same command again goes on from the store")


@pytest.mark.slow
def test_a_worker_that_is_killed_is_said_in_a_line(tmp_path):
    needs("parallel")
    slow = ("model._target_=analytic.slow", "sampler.num_trajectories=60", "sampler.seed=0,1")
    process = start(tmp_path, *ANALYTIC, *slow, "hydra/launcher=parallel")
    shards = tmp_path / "outputs" / "store" / "trajectories"
    while not list(shards.glob("*/*.safetensors")) and process.poll() is None:
        time.sleep(0.05)
    workers = ["pgrep", "-P", str(process.pid), "-f", "popen_loky"]
    worker = subprocess.run(workers, capture_output=True, text=True, check=True).stdout.split()[0]
    os.kill(int(worker), signal.SIGKILL)
    code, _, told = end(process)
    assert code == 1
    assert told[0].startswith("taqdit: job 0 (sampler.seed=0) failed: left no summary.json")
    assert told[-1].startswith("taqdit: the launcher gave up, TerminatedWorkerError: A worker pro")


@pytest.mark.parametrize(
    ("launcher", "extra"),
    slow_unless(
        [("slurm", "slurm")],
        [("parallel", "joblib"), ("slurm", "slurm"), ("submitit_local", "slurm")],
    ),
)
def test_a_plugin_that_is_missing_is_named_with_its_extra(tmp_path, launcher, extra):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "__init__.py").write_text("")  # hides every installed plugin
    path = f"{tmp_path}:{ROOT / 'tests' / 'plugins'}"
    asked = ("sampler.seed=0,1", f"hydra/launcher={launcher}")
    code, _, told = end(start(tmp_path, *ANALYTIC, *asked, PYTHONPATH=path))
    assert code == 2
    (line,) = told
    assert line.startswith("taqdit: hydra/launcher: the plugin that provides ")
    assert f"pip install 'taqdit[{extra}]' (in a checkout: uv sync --extra {extra})" in line
    assert not (tmp_path / "outputs").exists()


def test_a_launcher_that_is_none_is_refused_with_the_names_there_are(taqdit):
    done = taqdit("-m", *ANALYTIC, "sampler.seed=0,1", "hydra/launcher=slrum")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "taqdit: In 'hydra/config': Could not find 'hydra/launcher/slrum'"
    )
    assert "slurm_local" in done.stderr
    assert done.stderr.count("\n") == 1


def problems_of(*overrides):
    """The texts of what is wrong with a sweep's launcher."""
    composed = config.compose_config(overrides, with_hydra=True)
    return [problem.text for problem in config.launcher_problems(composed)]


def test_what_a_launcher_must_not_be_told(monkeypatch, tmp_path):
    assert problems_of() == []
    needs("parallel")
    assert problems_of("hydra/launcher=parallel", "hydra.launcher.n_jobs=-1") == []
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.n_jobs=two\. Value 'two'"):
        problems_of("hydra/launcher=parallel", "hydra.launcher.n_jobs=two")
    needs("slurm")
    (text,) = problems_of("hydra/launcher=slurm_local", "hydra.launcher.tasks_per_node=2")
    assert text == "hydra.launcher.tasks_per_node=2 must be 1: a job is one process"
    monkeypatch.setenv("PATH", str(slurm_commands.install(tmp_path / "bin")))
    (text,) = problems_of("hydra/launcher=slurm", "hydra.launcher.array_parallelism=0")
    assert text == "hydra.launcher.array_parallelism=0 must be at least 1"
    assert problems_of("hydra/launcher=slurm") == []
    monkeypatch.setenv("PATH", str(tmp_path))
    (text,) = problems_of("hydra/launcher=slurm")
    assert text.startswith("hydra/launcher=slurm: sbatch and srun are not found here; start the")


def test_every_launcher_is_known_to_these_tests():
    assert {path.stem for path in LAUNCHERS} == set(NEEDS)


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_a_preset_says_how_to_run_it_and_what_its_knobs_do(path):
    needs(path.stem)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#")
    assert "taqdit -m sweep=" in lines[0]
    assert f"hydra/launcher={path.stem}" in lines[0]
    settings = [line for line in lines if line and not line.startswith(("#", "defaults", "  - "))]
    assert all(" # " in line for line in settings)
    composed = config.compose_config([f"hydra/launcher={path.stem}"], with_hydra=True)
    told = OmegaConf.load(path)
    for key in set(told) - {"defaults"}:
        assert str(composed.hydra.launcher[key]) == str(told[key])


def test_two_jobs_at_a_time_unless_told_otherwise():
    needs("parallel")
    composed = config.compose_config(["hydra/launcher=parallel"], with_hydra=True)
    assert composed.hydra.launcher.n_jobs == 2


def test_other_errors_are_not_the_launchers():
    assert config.gave_up(RuntimeError("a fault of ours")) is None


@pytest.mark.parametrize("group", ["Model", "Schedule", "Sampler"])
def test_a_schema_is_the_same_in_a_launchers_process(group):
    """Else its missing values are no longer omegaconf's own, and no job composes."""
    kind = getattr(schema, f"{group}Config")
    assert pickle.loads(pickle.dumps(kind)) is kind
