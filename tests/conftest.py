"""Shared by all tests: no network, no credentials, a private folder to write into."""

import atexit
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "TAQDIT_PLUGINS"):
    os.environ.pop(name, None)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_ERROR_REPORTING"] = "false"

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("taqdit", deadline=None)  # a busy machine is no reason to fail
settings.load_profile("taqdit")

if sys.dont_write_bytecode:
    # Hundreds of processes would compile every module anew, each for longer than the rest of its
    # start takes. Nothing is written beside the modules.
    sys.dont_write_bytecode, sys.pycache_prefix = False, tempfile.mkdtemp(prefix="taqdit-bytecode-")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    atexit.register(shutil.rmtree, sys.pycache_prefix, ignore_errors=True)

# Tests that run side by side (pytest -n) share the processors: their matrix products too.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _workers > 1:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """What a test printed may hold halves of characters; the workers' channel cannot."""
    outcome = yield
    report = outcome.get_result()
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """A connection that leaves the machine is an error."""
    connect = socket.socket.connect

    def guarded(self, address):
        host = address[0] if isinstance(address, tuple) else ""
        if host and host not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _private_home(monkeypatch, tmp_path):
    """No netrc, W&B settings or Hugging Face cache of the person who runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))


@pytest.fixture(autouse=True)
def _plugins(monkeypatch):
    """The analytic model of tests/plugins can be named in a configuration."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "plugins"))
    monkeypatch.setenv("TAQDIT_PLUGINS", "analytic")


def command(*arguments, plugins=True):
    """The `taqdit` command line as a list, and the environment it runs in."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests' / 'plugins'}{os.pathsep}{ROOT}"}
    if plugins:
        env["TAQDIT_PLUGINS"] = "analytic"
    return [sys.executable, "-m", "taqdit.cli", *arguments], env


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium (tests/browser.py); skips where there is none."""
    from browser import opened

    with opened(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def taqdit(tmp_path):
    """Runs the command in a private folder: `taqdit("check", "sampler.seed=1")`."""

    def run(*arguments, timeout=300, cwd=tmp_path, **environment):
        line, env = command(*arguments)
        return subprocess.run(
            line,
            cwd=cwd,
            env={**env, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


ANALYTIC = (
    "model._target_=analytic.gaussian",
    "model.latent_size=[4,4]",
    "schedule.num_steps=6",
    "sampler.num_trajectories=6",
    "sampler.batch_size=2",
    "timestep_selection.count=3",
    "tracking=none",
    "plots=none",
    "tracer=none",
)


def slow_unless(quick, cases):
    """The cases of a parametrised test (a tuple: its arguments), `slow` but for the quick ones."""
    split = [case if isinstance(case, tuple) else (case,) for case in cases]
    marks = [() if case in quick else pytest.mark.slow for case in cases]
    return [pytest.param(*case, marks=mark) for case, mark in zip(split, marks, strict=True)]


def made_once(tmp_path_factory, name, make):
    """A folder that `make(folder)` fills once for all processes that run these tests."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / name, shared / f"{name}.done"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def tree(folder):
    """File name -> bytes of everything below a folder."""
    folder = Path(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
