"""How often a run of the command builds its options and reads files for them: once."""

import sys
from collections import Counter

import pytest

from taqdit import config
from taqdit.cli.verbs import dispatch
from taqdit.models import headers
from taqdit.prompts import options as prompts
from taqdit.sampler import Sampler

SMALL = (
    *("schedule.num_steps=2", "sampler.num_trajectories=1", "sampler.batch_size=1"),
    *("tracer=none", "analysis=none", "plots=none", "tracking=none", "sampler.images=false"),
    *("prompts=file", "prompts.path=p.txt"),
)
FILES = 4  # weights of the embedded model
COUNTED = 5  # headers read to count its parameters


@pytest.fixture
def calls(monkeypatch):
    """How often each function was called."""
    found = Counter()

    def count(owner, name):
        function = getattr(owner, name)

        def counted(*args):
            found[name] += 1
            return function(*args)

        monkeypatch.setattr(owner, name, counted)

    count(Sampler, "__post_init__")
    count(prompts, "read_prompts")
    count(headers, "read")
    return found


def test_a_run_builds_its_options_once(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a red circle\n")
    command = [*SMALL, f"output_dir={tmp_path / 'o'}"]
    monkeypatch.setattr(sys, "argv", ["taqdit", *command])
    assert dispatch(command) == 0
    assert calls["__post_init__"] == calls["read_prompts"] == 1
    assert calls["read"] == COUNTED + 2 * FILES  # for their digests, and when they are loaded


def test_what_was_checked_serves_no_other_configuration(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checked = config.check(config.compose_config(["sampler.seed=1"]))
    assert config.plan(config.compose_config(["sampler.seed=1"]), checked).sampler.seed == 1
    assert calls["__post_init__"] == 1
    assert config.plan(config.compose_config(["sampler.seed=2"]), checked).sampler.seed == 2
    assert calls["__post_init__"] == 2


def test_what_was_said_before_the_runs_log_was_open_stands_in_it(taqdit, tmp_path):
    done = taqdit("model.latent_size=[4,4]", "preflight=only", "output_dir=o", "tracking=none")
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("o/runs/*/*/taqdit.log")
    assert written.read_text().count("trained on (8, 8)") == 1
    assert (done.stdout + done.stderr).count("trained on (8, 8)") == 1
