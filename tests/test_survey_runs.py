"""Records of runs that others wrote or that were damaged: a problem of one line, never more."""

import json

import pytest

from taqdit.errors import CorruptError
from taqdit.report.run_folder import RunFolder
from taqdit.store import publish_json
from taqdit.store.digest import stamp
from taqdit.store_tools.runs_found import RECORD, pointed_to, runs_of

GOOD = {
    **{"config": {}, "store": "../../../store", "stages": {}},
    **{"prompts": ["a"], "prompt_seeds": [None], "imported": None, "imported_statistics": None},
}
ODD = {
    "a NUL in the store": {"store": "a\0b"},
    "half a character in the store": {"store": "\ud800"},
    "a NUL in a file that was read": {"imported_statistics": "\0"},
    "half a character in a file that was read": {"imported": {"path": "\udfff", "sha256": "x"}},
    "no store": {"store": None},
}


def recorded(outputs, text):
    folder = outputs / "runs" / "a" / "b"
    folder.mkdir(parents=True)
    (outputs / "store").mkdir()
    (folder / RECORD).write_text(text)
    return runs_of(outputs / "store")


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_record_is_a_problem(tmp_path, odd):
    (run,) = recorded(tmp_path, json.dumps(GOOD | odd))
    assert isinstance(run.problem, CorruptError)
    assert RECORD in run.note
    assert "\n" not in run.note
    assert "repair" not in run.note  # it looks after stages alone


@pytest.mark.parametrize("lacks", [("imported",), ("imported", "imported_statistics")])
def test_a_record_from_before_imports_is_one(tmp_path, lacks):
    record = {key: value for key, value in GOOD.items() if key not in lacks}
    (run,) = recorded(tmp_path, json.dumps(record))
    assert run.problem is None
    assert RunFolder(run.folder).record() == GOOD


def test_a_record_that_would_fill_the_memory_is_a_problem(tmp_path):
    (run,) = recorded(tmp_path, '{"a": [' + "{}," * 2**20 + "{}]}")
    assert "more lists, objects and texts" in run.note


@pytest.mark.parametrize("odd", [{"folder": "\0"}, {"stages": {}, "imported_statistics": "\0"}])
def test_an_odd_pointer_is_a_problem(tmp_path, odd):
    left = {"folder": str(tmp_path), "host": "h", "parent": 1, "stages": {"trajectories": "ab"}}
    publish_json(tmp_path / "x.json", stamp(left | odd))
    assert isinstance(pointed_to(tmp_path / "x.json").problem, CorruptError)
