"""The choice of a BLAS, in fresh processes: it must happen before MLX is first imported."""

import json
import os
import subprocess
import sys
from importlib import metadata
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


def fresh(prelude="", after="", **environment):
    """(describe(), threads, 8 x 8 x 8 product, torch imported?, log lines) of a new process."""
    env = {k: v for k, v in os.environ.items() if k != "TAQDIT_BLAS"}
    done = subprocess.run(
        [sys.executable, "-c", prelude + REPORT + after],
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


NO_SYSTEM = """
import ctypes.util, os, sys
ctypes.util.find_library = lambda name: None
sys.prefix = "/nowhere"
"""
OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def only_in(folder):
    """A prelude: `folder` alone is where the packages' libraries, MKL and torch are found."""
    return f"""
import sys
from pathlib import Path
sys.prefix = {str(folder)!r}
sys.path.insert(0, sys.prefix)
whole_glob = Path.glob
Path.glob = lambda self, name: whole_glob(self, name) if sys.prefix in str(self) else iter(())
"""


def package(folder, **files):
    """The library folder of an installed package, with links to libraries: {name: file}."""
    folder = folder / "some_package.libs"
    folder.mkdir()
    for name, file in files.items():
        (folder / name).symlink_to(file)


@linux
def test_a_packages_openblas_is_taken_after_what_it_needs(tmp_path):
    """Its companions lie beside it, under names that the dynamic loader looks for elsewhere."""
    openblas, other = "libopenblaso-r0-d77a.3.15.so", "libzstd-40ad.so.1.5.7"
    needed = ["libquadmath-2284.so.0.0.0", "libgfortran-83c2.so.5.0.0", "libgomp-e985.so.1.0.0"]
    package(tmp_path, **dict.fromkeys([openblas, other, *needed], a_blas()))
    told = """
import ctypes, os
whole = ctypes.CDLL
def opening(name, *mode):
    print("opening", os.path.basename(name), file=sys.stderr)
    return whole(name, *mode)
ctypes.CDLL = opening
"""
    described, _, product, _, lines = fresh(NO_SYSTEM + only_in(tmp_path) + told)
    assert described["blas"] == f"openblas ({openblas})"
    opened = [line.split()[1] for line in lines if line.startswith("opening")]
    assert opened[:3] == needed
    assert set(opened[3:]) == {openblas}
    assert product == 512


@linux
def test_a_packages_openblas_with_changed_names_is_passed_over(tmp_path):
    """That of numpy and scipy: where older wheels have it, its file too is called libopenblas."""
    changed = [lib for e in sys.path for lib in Path(e).glob("numpy.libs/libscipy_openblas*.so")]
    if not changed:
        pytest.skip("this numpy brings no OpenBLAS")
    names = {file.name: file for file in changed[0].parent.iterdir()}
    package(tmp_path, **names, **{"libopenblas64_p-r0-0cf9.3.23.dev.so": changed[0]})
    described, _, product, _, lines = fresh(NO_SYSTEM + only_in(tmp_path))
    assert described["blas"] == "bundled"
    assert [line for line in lines if "has no sgemm_" in line] == [
        "INFO the BLAS found cannot be used: libopenblas64_p-r0-0cf9.3.23.dev.so has no sgemm_;"
        " looking further"
    ]
    assert product == 512


@linux
def test_a_packages_openblas_without_what_it_needs_is_one_line_that_names_no_folder(tmp_path):
    (tmp_path / "damaged").write_bytes(b"")
    files = {"libopenblas-0123.so": a_blas(), "libgomp-e985.so.1": tmp_path / "damaged"}
    package(tmp_path, **files)
    described, _, product, _, lines = fresh(NO_SYSTEM + only_in(tmp_path))
    assert described["blas"] == "bundled"
    assert lines == [
        "INFO the BLAS found cannot be used: libgomp-e985.so.1: file too short; looking further",
        "INFO BLAS of the CPU backend: bundled",
    ]
    assert product == 512


@linux
def test_an_openblas_of_64_bit_integers_is_passed_over(tmp_path):
    package(tmp_path, **{"libopenblas-0123.so": a_blas()})
    wide = """
import ctypes
def config(): return b"OpenBLAS 0.3.21 USE64BITINT DYNAMIC_ARCH"
class Wide(ctypes.CDLL):
    openblas_get_config = staticmethod(config)
ctypes.CDLL = Wide
"""
    described, _, product, _, lines = fresh(NO_SYSTEM + only_in(tmp_path) + wide)
    assert described["blas"] == "bundled"
    assert any("libopenblas-0123.so takes 64-bit integers" in line for line in lines)
    assert product == 512


def faiss_openblas():
    """The OpenBLAS that faiss-cpu's wheel brings."""
    try:
        files = metadata.files("faiss-cpu") or []
    except metadata.PackageNotFoundError:
        pytest.skip("faiss-cpu is not installed")
    return next(file.name for file in files if file.match("*.libs/libopenblas*"))


@linux
@pytest.mark.parametrize(
    ("settings", "spins", "threads"),
    [
        ({"OMP_NUM_THREADS": "2"}, "0", 2),
        ({"OPENBLAS_NUM_THREADS": "1"}, "0", 1),
        ({"GOMP_SPINCOUNT": "77", "OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "1"}, "77", 3),
        ({"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "2"}, "30000000000", 2),
    ],
)
def test_faiss_brings_an_openblas_whose_idle_threads_rest(settings, spins, threads):
    """OpenMP says on stderr what it read in the environment, which is left as it was."""
    name = faiss_openblas()
    unset = f"for name in {set(OPENMP) - settings.keys()}: os.environ.pop(name, None)\n"
    before, after = "before = dict(os.environ)\n", "assert os.environ == before\n"
    described, counted, product, _, lines = fresh(
        NO_SYSTEM + unset + before, after, **settings, OMP_DISPLAY_ENV="verbose"
    )
    assert described["blas"] == f"openblas ({name})"
    assert counted == threads
    assert product == 512
    assert any(f"GOMP_SPINCOUNT = '{spins}'" in line for line in lines)
    assert any(f"OMP_NUM_THREADS = '{threads}'" in line for line in lines)


@linux
def test_the_order_is_openblas_then_mkl_then_a_packages_then_torch(tmp_path):
    library = a_blas()
    (tmp_path / "lib").mkdir()
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('never imported')")
    openblas = tmp_path / "libopenblas.so.0"
    mkl = tmp_path / "lib" / "libmkl_rt.so.3"
    packages = tmp_path / "some_package.libs" / "libopenblas-0123abcd.so"
    packages.parent.mkdir()
    torch = tmp_path / "torch" / "lib" / "libtorch_cpu.so"
    for link in (openblas, mkl, packages, torch):
        link.symlink_to(library)
    prelude = f"""{only_in(tmp_path)}
import ctypes.util
found = Path({str(openblas)!r})
ctypes.util.find_library = lambda name: str(found) if found.exists() else None
"""
    expected = [(openblas, "openblas"), (mkl, "mkl"), (packages, "openblas"), (torch, "torch")]
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
