"""What a run says about itself."""

from taqdit.runs import record, summary
from taqdit.store import disk


def test_a_missing_package_has_no_version():
    assert record.installed("no-such-package-anywhere") is None
    assert record.installed("numpy")


def test_a_path_is_told_from_the_runs_folder(tmp_path):
    folder = tmp_path / "outputs" / "runs" / "d" / "t"
    assert disk.relative(tmp_path / "outputs" / "store", folder) == "../../../store"


def test_the_backend_in_words():
    backend = {"mlx": "1", "device": "cpu", "chip": "c", "blas": "bundled"}
    assert summary.backend_words(backend).endswith("README, 'Speed on Linux'")
    assert "README" not in summary.backend_words({**backend, "blas": "mkl (libmkl_rt.so.3)"})
