"""How far the formula lies below the command: what a stranger walks through to reach it."""

import subprocess
import sys

import pytest
from conftest import ANALYTIC, ROOT, command

FRAMES, FILES = 14, 6
WALK = f"""
import sys
from pathlib import Path
from taqdit import sampler
from taqdit.cli.verbs import main

def profile(frame, event, argument):
    if event == "call" and frame.f_code is sampler.euler_step.__code__:
        sys.setprofile(None)
        while frame:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to({str(ROOT / "taqdit")!r}):
                print("WALK", path.relative_to({str(ROOT)!r}), frame.f_code.co_name)
            frame = frame.f_back

sys.setprofile(profile)
main()
"""


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """(file, function) of every frame of the package from the command to the first Euler step."""
    _, env = command()
    folder = tmp_path_factory.mktemp("walk")
    done = subprocess.run(
        [sys.executable, "-c", WALK, *ANALYTIC, "preflight=off", f"output_dir={folder}"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("WALK ")]
    return [tuple(line) for line in reversed(lines)]


def test_the_walk_leads_from_the_command_to_the_formula(walk):
    assert walk[0] == ("taqdit/cli/verbs.py", "main")
    assert walk[-1] == ("taqdit/sampler.py", "euler_step")


def test_a_stage_and_a_generator_lie_above_the_formula(walk):
    below = [
        (file, name) for file, name in walk if file.split("/")[1] in ("stages", "trajectories")
    ]
    assert [file for file, _ in below] == [
        "taqdit/stages/sampling.py",
        "taqdit/stages/sampling.py",
        "taqdit/trajectories/sampling.py",
    ]


def test_the_formula_is_near(walk):
    assert len(walk) <= FRAMES, walk
    assert len({file for file, _ in walk}) <= FILES, walk
