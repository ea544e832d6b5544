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
    assert table.about(lines()).startswith("Made with python 3")
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


def test_a_page_is_read_as_it_was_written(lines):
    @shows("P1", "a thing", trials=1200)
    def good():
        pass

    @shows("P1", "another", trials=1)
    def bad():
        raise ValueError

    @shows("mutations", "a third", trials=1)
    def never_called():
        pass

    good()
    with pytest.raises(ValueError, match=r"^$"):
        bad()
    text = table.page(lines(), table.about(lines()))
    keys = ("promise", "what", "trials", "failures")
    again = [tuple(line[key] for key in keys) for line in table.measured(text)]
    assert again == [("P1", "a thing", 1200, 0), ("P1", "another", 1, 1)]


def test_the_committed_page_has_a_row_for_each_check_and_its_sums():
    """After a change of checks or their words: table.py --rows."""
    text = table.PAGE.read_text(encoding="utf-8")
    assert table.renewed(text) == text
    assert sum(line.startswith(table.CLOSING) for line in text.splitlines()) == 1


def test_a_check_that_is_gone_leaves_the_page_and_a_new_one_has_no_figure():
    text = table.PAGE.read_text(encoding="utf-8")
    what = next(line["what"] for line in table.measured(text))
    other = text.replace(f"| {what} |", "| what nobody does |")
    assert "what nobody does" in other
    assert "what nobody does" not in table.renewed(other)
    assert f"{what} | *not run* |" in table.renewed(other)


def test_an_unknown_promise_is_an_error():
    with pytest.raises(ValueError, match="no promise 'P99'"):
        shows("P99", "a thing")
