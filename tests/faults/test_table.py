"""The table says what the tests showed, and nothing else."""

import json

import pytest
import table
from ledger import PROMISES, VARIABLE, shows


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """What was written so far."""
    path = tmp_path / "ledger.jsonl"
    monkeypatch.setenv(VARIABLE, str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


def printed(lines):
    return "\n".join(table.table(table.checks(lines)))


def test_trials_add_up_and_a_failure_shows(lines):
    @shows("P1", "a thing")
    def good():
        return 1200

    @shows("P1", "a thing", trials=1)
    def each():
        pass

    @shows("P2", "another")
    def bad():
        raise ValueError

    good()
    each()
    with pytest.raises(ValueError, match=r"^$"):
        bad()
    text = printed(lines())
    assert f"| P1: {PROMISES['P1']} | a thing | 1,201 | 0 |" in text
    assert f"| P2: {PROMISES['P2']} | another | 1 | **1 FAILED** |" in text
    assert f"| P3: {PROMISES['P3']} | *not shown* |  |  |" in text
    assert f"| P1: {PROMISES['P1']} | 1 | 1,201 | 0 |" in text
    assert f"| P2: {PROMISES['P2']} | 1 | 1 | **1 FAILED** |" in text
    assert f"| P3: {PROMISES['P3']} | *not shown* | 0 | 0 |" in text
    assert "taqdit 0" in table.about(lines())


def test_what_did_not_run_is_not_shown(lines):
    @shows("P1", "a thing")
    def skipped():
        pytest.skip("not here")

    @shows("P2", "another", trials=1)
    def ran():
        pass

    @shows("P2", "a third", trials=1)
    def never_called():
        pass

    with pytest.raises(pytest.skip.Exception):
        skipped()
    ran()
    text = printed(lines())
    assert f"| P1: {PROMISES['P1']} | *not shown* |  |  |" in text
    assert "|  | a third | *not run* |  |" in text


@pytest.mark.parametrize("made", [None, 0])
def test_a_test_without_trials_fails(lines, made):
    @shows("P1", "a thing")
    def nothing():
        return made

    with pytest.raises(AssertionError, match="shows nothing"):
        nothing()
    assert "**1 FAILED**" in printed(lines())


def test_an_unknown_promise_is_an_error():
    with pytest.raises(ValueError, match="no promise 'P99'"):
        shows("P99", "a thing")
