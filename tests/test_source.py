"""What is kept of results names the code that made them."""

import os

import pytest

from taqdit.stages import source


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two files, not yet looked at."""
    monkeypatch.setattr(source, "_PACKAGE", tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "code.py").write_text("x = 1\n")
    (tmp_path / "paper.mplstyle").write_text("lines.linewidth: 1\n")
    (tmp_path / "notes.txt").write_text("no code\n")
    forget()
    yield tmp_path
    forget()


def forget():
    source.source_digest.cache_clear()
    source._first_stamps.cache_clear()


@pytest.mark.parametrize("name", ["inner/code.py", "paper.mplstyle"])
def test_other_code_is_another_digest(package, name):
    before = source.source_digest()
    (package / name).write_text("y = 1\n")
    forget()
    assert source.source_digest() != before


def test_what_is_no_code_makes_no_difference(package):
    before = source.source_digest()
    (package / "notes.txt").write_text("other\n")
    assert source.source_unchanged()
    forget()
    assert source.source_digest() == before


def test_code_that_is_written_meanwhile_is_noticed(package):
    """Also where its size stays; the digest stays that of the beginning."""
    before = source.source_digest()
    assert source.source_unchanged()
    file = package / "inner" / "code.py"
    file.write_text("x = 2\n")
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
    assert not source.source_unchanged()
    assert source.source_digest() == before


def test_a_file_that_is_new_is_noticed(package):
    source.source_digest()
    (package / "more.py").write_text("")
    assert not source.source_unchanged()
