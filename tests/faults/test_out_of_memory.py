"""Memory runs out in mid-run: one line that says what to try for where it was, nothing is lost."""

import errno
import importlib.util
import json
import re
import resource
import subprocess
import tracemalloc
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from conftest import ANALYTIC, ROOT, command, slow_unless, tree
from ledger import shows

import taqdit as package
from taqdit.calibration import calibration_set as calibration
from taqdit.errors import ConfigError, ModelError
from taqdit.stages import out_of_memory as memory
from taqdit.stages.out_of_memory import out_of_memory

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


@pytest.mark.parametrize("how", slow_unless(["mlx"], OUT_OF_MEMORY))
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


def settings(**given):
    """A model's settings, all off but for those given."""
    return SimpleNamespace(
        **{"use_t5": False, "w16": False, "a16": False, "low_memory": False} | given
    )


ALL_SET = settings(w16=True, a16=True, low_memory=True)
ADVICE = {
    "half the batch": (
        lambda: memory.sampling(settings(), batch_size=7, traced=False),
        "sampler.batch_size=7",
        "sampler.batch_size=3 or model.low_memory=true",
    ),
    "low memory is on": (
        lambda: memory.sampling(settings(low_memory=True, a16=True), batch_size=2, traced=False),
        "sampler.batch_size=2",
        "sampler.batch_size=1 or model.w16=true",
    ),
    "one at a time, traced, everything set": (
        lambda: memory.sampling(ALL_SET, batch_size=1, traced=True),
        "sampler.batch_size=1",
        "a smaller model.latent_size or fewer tracer.blocks",
    ),
    "encoding": (
        lambda: memory.encoding(settings(use_t5=True)),
        "encoding the prompts",
        "model.use_t5=false or model.w16=true",
    ),
    "encoding, nothing to set": (
        lambda: memory.encoding(ALL_SET),
        "encoding the prompts",
        "closing other programs",
    ),
    "an image": (
        lambda: memory.decoding(ALL_SET),
        "decoding an image",
        "sampler.images=false",
    ),
    "figures": (
        lambda: memory.drawing(("png", "svg")),
        "drawing the figures",
        "plots=minimal or plots=none",
    ),
    "few figures": (lambda: memory.drawing(("png",)), "drawing the figures", "plots=none"),
    "the innermost has the word": (
        lambda: both(memory.told("this run"), memory.analysing()),
        "the analysis",
        "fewer tracer.blocks (they are traced anew) or analysis=none",
    ),
}


@contextmanager
def both(outer, inner):
    with outer, inner:
        yield


@pytest.mark.parametrize("case", ADVICE)
def test_the_advice_is_for_where_it_was_and_for_what_is_not_set(case):
    within, doing, advice = ADVICE[case]
    with pytest.raises(ConfigError) as caught, within():
        raise MemoryError
    begin = f"{doing} needs more memory than there is (MemoryError); try {advice}, and preflight="
    assert str(caught.value).startswith(begin)


STAGES = (  # what fails, how the line begins
    ("taqdit.run.encode_prompts", "encoding the prompts needs"),
    ("taqdit.stages.trajectories.decode", "decoding an image needs"),
    ("taqdit.runs.outputs.latent_figures", "drawing the figures needs"),
    ("taqdit.run.CalibrationSet", "this run needs"),
)


@pytest.mark.parametrize(("place", "begin"), STAGES)
@shows("P14", "memory runs out elsewhere in a run: the line says where", trials=1)
def test_each_stage_of_a_run_gives_its_own_advice(tmp_path, monkeypatch, place, begin):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(place, fail)
    with pytest.raises(ConfigError) as caught:
        package.launch([*ANALYTIC, f"output_dir={tmp_path}"])
    assert str(caught.value).startswith(begin)
    assert "batch_size" not in str(caught.value)


def test_what_an_error_came_from_counts():
    """Weights that do not fit are no damaged weights."""
    error = ModelError("mmdit.safetensors cannot be loaded")
    error.__cause__ = ERRORS["mlx"]
    assert out_of_memory(error) is ERRORS["mlx"]
    assert out_of_memory(ModelError("mmdit.safetensors is damaged")) is None
    assert out_of_memory(OSError(28, "No space left on device")) is None
    with pytest.raises(ModelError), memory.told("this run"):
        raise ModelError("mmdit.safetensors is damaged")


@shows(
    "P14", "a process whose memory is capped (RLIMIT_AS): exit 2, then a smaller batch", trials=1
)
@pytest.mark.slow
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
            env={**env, "TAQDIT_TEST_FREE_BYTES": str(10**12)},
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


@shows("P14", "exports of a few and of four times as many trajectories: the same peak", trials=2)
def test_an_export_needs_no_more_memory_for_more_trajectories(tmp_path, monkeypatch):
    """Held by Python and NumPy; benchmarks/export.py prints what the process holds."""
    monkeypatch.setattr(calibration, "BUFFER_BYTES", 2**22)
    path = ROOT / "tests" / "benchmarks" / "export.py"
    made = importlib.util.spec_from_file_location("export_benchmark", path)
    benchmark = importlib.util.module_from_spec(made)
    made.loader.exec_module(benchmark)
    peaks = []
    for count in (4, 16):
        benchmark.make(tmp_path / str(count), count)
        points = benchmark.points(tmp_path / str(count), count)
        tracemalloc.start()
        points.export_npz(tmp_path / f"{count}.npz")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "16.npz").stat().st_size > 16 * benchmark.STEPS * 65_536
    assert peaks[1] < 1.1 * peaks[0] < 2**25
