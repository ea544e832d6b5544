"""Every way to start the program: each runs a whole run, and tells a mistake in one line."""

import json
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest
from conftest import ANALYTIC, ROOT, command, slow_unless

PACKAGE = ROOT / "taqdit"
ENTRIES = {
    "python -m taqdit": ["-m", "taqdit"],
    "python -m taqdit.cli": ["-m", "taqdit.cli"],
    "python -m taqdit.run": ["-m", "taqdit.run"],
    "python taqdit/run.py": [str(PACKAGE / "run.py")],
}
QUICK = ("python -m taqdit", "python taqdit/run.py")  # the others begin in the same two ways


def started(entry, folder, *arguments):
    """A process, ended, that began this way."""
    _, env = command()
    return subprocess.run(
        [sys.executable, *ENTRIES[entry], *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("entry", slow_unless(QUICK, ENTRIES))
def test_a_run_can_be_started(entry, tmp_path):
    done = started(entry, tmp_path, *ANALYTIC, "stages=[conditioning,trajectories]")
    assert done.returncode == 0, done.stderr
    (summary,) = tmp_path.glob("outputs/runs/*/*/summary.json")
    assert json.loads(summary.read_text())["status"] == "ok"
    assert "trajectories  6 made, 0 reused" in done.stdout


@pytest.mark.parametrize("entry", slow_unless(QUICK, ENTRIES))
def test_a_mistake_is_told_in_one_line(entry, tmp_path):
    """The command checks before there is a job; the application's job finds it itself."""
    done = started(entry, tmp_path, *ANALYTIC, "sampler.batch_size=0")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("BLAS of")]
    assert lines == ["taqdit: sampler.batch_size=0 must lie in [1, 1024]"]


def test_a_verb_can_be_started(tmp_path):
    done = started("python -m taqdit", tmp_path, "check", *ANALYTIC)
    assert (done.returncode, done.stdout) == (0, "the configuration is sound\n")


def test_no_module_hides_another_one():
    """`python taqdit/run.py` puts the package's folder in front of all others, where `import name`
    of the standard library, or of any package, looks first."""
    ours = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    ours -= {"__init__", "__main__", "__pycache__"}
    assert not ours & sys.stdlib_module_names
    assert not ours & set(packages_distributions())
