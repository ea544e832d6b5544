"""Memory runs out in mid-run: one line that names the batch size to try, and nothing is lost."""

import errno
import json
import re
import resource
import subprocess

import pytest
from conftest import ANALYTIC, command, tree
from ledger import shows

import taqdit as package
from taqdit.errors import ConfigError, ModelError
from taqdit.memory import out_of_memory, told_by_batch_size

HUNGRY = (*ANALYTIC, "model._target_=hungry.gaussian", "sampler.num_trajectories=4")
ERRORS = {
    "python": MemoryError(),
    "numpy": MemoryError("Unable to allocate 1.00 GiB for an array with shape (1024, 1001, 4)"),
    "bad_alloc": MemoryError("std::bad_alloc"),
    "system": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "mlx": RuntimeError("[malloc] Unable to allocate 68719476736 bytes."),
    "metal": RuntimeError(
        "[metal::malloc] Attempting to allocate 68719476736 bytes which is greater than the maximum"
        " allowed buffer size of 38654705664 bytes."
    ),
    "command buffer": RuntimeError(
        "[METAL] Command buffer execution failed: Insufficient Memory"
        " (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"
    ),
    "cuda": RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"),
    "no memory": RuntimeError("[matmul] Last dimension of first input with shape (2,3)"),
}
OUT_OF_MEMORY = sorted(set(ERRORS) - {"no memory"})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Launches the hungry model in a private folder, its memory running out as told."""
    import hungry

    monkeypatch.setenv("TAQDIT_PLUGINS", "hungry,analytic")

    def launch(how, *overrides):
        monkeypatch.setattr(hungry, "error", ERRORS[how])
        return package.launch([*HUNGRY, f"output_dir={tmp_path}", *overrides])

    return launch


@pytest.mark.parametrize("how", OUT_OF_MEMORY)
@shows("P14", "a forward fails as Python, NumPy, MLX, Metal, CUDA, the system say it", trials=1)
def test_the_batch_size_to_try_is_named_and_works(tmp_path, run, how):
    run(how)  # batches of 2 fit
    before = tree(tmp_path / "store")
    with pytest.raises(ConfigError) as caught:
        run(how, "sampler.batch_size=4")
    (text,) = caught.value.args
    assert text.startswith("sampler.batch_size=4 needs more memory than there is (")
    assert "; try sampler.batch_size=2 or model.low_memory=true" in text
    assert text.isprintable()
    assert caught.value.exit_code == 2
    after = tree(tmp_path / "store")
    assert {name: after[name] for name in before} == before
    assert not [name for name in set(after) - set(before) if name.endswith(".safetensors")]
    summaries = map(json.loads, (p.read_text() for p in tmp_path.glob("runs/*/*/summary.json")))
    assert sorted((s["status"], s["error"] or "") for s in summaries) == [
        ("failed", text),
        ("ok", ""),
    ]
    again = run(how, "sampler.batch_size=2", "sampler.cfg_scale=3")  # what was named
    assert again.summary["status"] == "ok"


def test_another_error_of_a_forward_stays_what_it_is(run):
    with pytest.raises(RuntimeError, match="Last dimension"):
        run("no memory", "sampler.batch_size=4")


def test_one_trajectory_at_a_time_cannot_be_halved():
    with pytest.raises(ConfigError) as caught, told_by_batch_size(1):
        raise MemoryError
    assert "sampler.batch_size=1 needs more memory than there is (MemoryError)" in str(caught.value)
    assert "try a smaller model.latent_size or model.low_memory=true" in str(caught.value)


@pytest.mark.parametrize(("size", "named"), [(1024, 512), (7, 3), (3, 1), (2, 1)])
def test_half_is_rounded_down(size, named):
    named = rf"try sampler\.batch_size={named} "
    with pytest.raises(ConfigError, match=named), told_by_batch_size(size):
        raise MemoryError


def test_what_an_error_came_from_counts():
    """Weights that do not fit are no damaged weights."""
    error = ModelError("mmdit.safetensors cannot be loaded")
    error.__cause__ = ERRORS["mlx"]
    assert out_of_memory(error) is ERRORS["mlx"]
    assert out_of_memory(ModelError("mmdit.safetensors is damaged")) is None
    assert out_of_memory(OSError(28, "No space left on device")) is None
    with pytest.raises(ModelError), told_by_batch_size(8):
        raise ModelError("mmdit.safetensors is damaged")


@shows(
    "P14", "a process whose memory is capped (RLIMIT_AS): exit 2, then a smaller batch", trials=1
)
def test_a_process_with_little_memory(tmp_path):
    """One array of four gigabytes in three."""
    large = (
        "model.latent_size=[8,8]",
        "schedule.num_steps=1000",
        "sampler.batch_size=1024",
        "sampler.num_trajectories=2",
    )
    small = "sampler.batch_size=2"
    cap = 3 * 2**30

    def capped(*overrides):
        line, env = command(*ANALYTIC, *large, "timestep_selection.count=3", *overrides)
        return subprocess.run(
            line,
            cwd=tmp_path,
            env={**env, "TAQDIT_BLAS": "0", "TAQDIT_TEST_FREE_BYTES": str(10**12)},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (cap, cap)),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = capped()
    assert done.returncode == 2, done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("taqdit: ")]
    assert re.search(r"batch_size=1024 .*\(Unable to allocate .*try sampler.batch_size=512", line)
    assert "Traceback" not in done.stderr
    kept = tree(tmp_path / "outputs" / "store" / "conditioning")
    assert len(kept) > 5
    done = capped(small)
    assert done.returncode == 0, done.stderr
    assert re.search(r"conditioning +0 made", done.stdout)
    assert re.search(r"trajectories +2 made", done.stdout)
