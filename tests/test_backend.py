"""The choice of a BLAS, in fresh processes: it must happen before MLX is first imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from taqdit import backend

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems bring a fast BLAS")

REPORT = """
import json, logging, sys
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
from taqdit import backend
product = backend.mx.ones((8, 8)) @ backend.mx.ones((8, 8))
torch = "torch" in sys.modules
print(json.dumps([backend.describe(), backend.threads(), product.sum().item(), torch]))
"""


def fresh(prelude="", **environment):
    """(describe(), threads, 8 x 8 x 8 product, torch imported?, log lines) of a new process."""
    env = {k: v for k, v in os.environ.items() if k != "TAQDIT_BLAS"}
    done = subprocess.run(
        [sys.executable, "-c", prelude + REPORT],
        env={**env, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return (*json.loads(done.stdout), done.stderr.splitlines())


def a_blas():
    """A real library with sgemm_: the one that MLX's CPU wheel brings."""
    found = [lib for entry in sys.path for lib in Path(entry).glob("mlx_cpu.libs/libblas-*.so*")]
    return found[0] if found else pytest.skip("no BLAS library at hand")


@linux
def test_zero_keeps_the_bundled_blas():
    described, threads, product, _, lines = fresh(TAQDIT_BLAS="0")
    assert described["blas"] == "bundled"
    assert (threads, product) == (1, 512)
    assert [line for line in lines if "BLAS" in line] == ["INFO BLAS of the CPU backend: bundled"]


@linux
@pytest.mark.parametrize(("gigabytes", "taken"), [(4, False), (40, True)])
def test_with_little_address_space_no_other_blas_is_looked_for(gigabytes, taken):
    """OpenBLAS asks for memory again and again, without end, where it is refused."""
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({gigabytes << 30},) * 2)\n"
    found = f"import ctypes\nctypes.util.find_library = lambda name: {str(a_blas())!r}\n"
    described, _, product, _, lines = fresh(limit + "import ctypes.util\n" + found)
    assert (described["blas"] != "bundled") is taken
    assert any("address space is limited" in line for line in lines) is not taken
    assert product == 512


@linux
@pytest.mark.parametrize("library", ["/nowhere/libnothing.so", "libm.so.6"])
def test_a_bad_library_is_one_warning(library):
    described, _, product, _, lines = fresh(TAQDIT_BLAS=library)
    warnings = [line for line in lines if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert f"TAQDIT_BLAS={library}" in warnings[0]
    assert Path(library).name not in described["blas"]
    assert product == 512


@linux
def test_the_named_library_is_taken_and_described_without_its_folder():
    library = a_blas()
    described, threads, product, _, lines = fresh(TAQDIT_BLAS=str(library))
    assert described["blas"] == f"other ({library.name})"
    assert lines == [f"INFO BLAS of the CPU backend: other ({library.name})"]
    assert threads >= 1
    assert product == 512


@linux
def test_the_order_is_openblas_then_mkl_then_torch(tmp_path):
    library = a_blas()
    (tmp_path / "lib").mkdir()
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('never imported')")
    openblas = tmp_path / "libopenblas.so.0"
    mkl = tmp_path / "lib" / "libmkl_rt.so.3"
    torch = tmp_path / "torch" / "lib" / "libtorch_cpu.so"
    for link in (openblas, mkl, torch):
        link.symlink_to(library)
    prelude = f"""
import ctypes.util, sys
from pathlib import Path
sys.prefix = {str(tmp_path)!r}
sys.path.insert(0, {str(tmp_path)!r})
found = Path({str(openblas)!r})
ctypes.util.find_library = lambda name: str(found) if found.exists() else None
"""
    expected = [(openblas, "openblas"), (mkl, "mkl"), (torch, "torch")]
    for link, kind in expected:
        described, _, _, imported, _ = fresh(prelude)
        assert described["blas"] == f"{kind} ({link.name})"
        assert not imported
        link.unlink()
    assert fresh(prelude)[0]["blas"] == "bundled"


@linux
def test_mlx_imported_first_is_left_alone():
    described = fresh("import mlx.core\n", TAQDIT_BLAS=str(a_blas()))[0]
    assert described["blas"].startswith("unknown")


def test_the_description_is_plain_and_names_no_folder():
    described = backend.describe()
    assert {"mlx", "device", "blas", "platform"} <= described.keys()
    assert all(isinstance(value, str) and value for value in described.values())
    assert "/" not in "".join(described.values())
    assert described == backend.describe()


def test_peak_memory_counts_and_resets():
    mx = backend.mx
    backend.reset_peak_memory()
    before = backend.peak_memory()
    big = mx.zeros((1024, 1024))
    mx.eval(big)
    assert backend.peak_memory() >= before + 4 * 1024 * 1024
    del big
    mx.clear_cache()
    backend.reset_peak_memory()
    assert backend.peak_memory() < before + 4 * 1024 * 1024
