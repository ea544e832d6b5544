"""Run the tests that promises rest on and write what they showed into README.md beside this file.

    uv run python tests/faults/table.py [--slow | --long] [pytest's arguments]
    uv run python tests/faults/table.py --rows

With `--slow` the tests so marked run too, with `--long` all. The page is printed; README.md is
written anew where a whole tier ran (`--slow` or `--long`, nothing else). `--rows` runs nothing and
writes the page with the figures that it has: a check that is new, or worded anew, is *not run*.

Exit code 1 when a test failed, or one that was to run did not. As a plugin of pytest (`-p table`)
it leaves out every test that shows no promise.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
PAGE = Path(__file__).with_name("README.md")
TIERS = {"--slow": ["-m", "not long"], "--long": ["-m", ""]}
CLOSING = ("Made with ", "**Not passed: ")  # lines of a page about a measurement
WHAT = ("promise", "what was done", "trials", "failures")
PREAMBLE = """\
# Faults

What the promises about data rest on; nothing beyond it is claimed. A trial is a kill, a lost power,
a full disk, a damaged or hostile file, a changed key and the like. The last row takes out lines
that guard the store, one at a time, and each check must notice it. Digests show accident, not
malice. No Mac, no network file system and no real weights were at hand.

`uv run python tests/faults/table.py --slow` measures and writes this page (five to ten minutes on
two cores). What did *not run* then is left to `--long`, or is newer than the figures.

A test that a promise rests on is marked `@shows("P1", "what is done")`; the promises stand in
[ledger.py](../ledger.py). Where these words change, `uv run python tests/faults/table.py --rows`
brings the rows up to date and keeps the figures.
"""
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

from ledger import PROMISES, VARIABLE  # noqa: E402


def pytest_collection_modifyitems(config, items):
    """Keep the tests with `@shows` alone."""
    shown = [item for item in items if hasattr(item.function, "shows")]
    config.hook.pytest_deselected(items=[item for item in items if item not in shown])
    items[:] = shown


def files():
    """The test files that show promises."""
    return sorted(
        path for path in TESTS.rglob("test_*.py") if "from ledger import" in path.read_text()
    )


def run(arguments, ledger):
    """Run the tests, which append to the ledger; pytest's exit code."""
    folders = f"{Path(__file__).parent}{os.pathsep}{TESTS}"
    command = [sys.executable, "-m", "pytest", "-p", "table", *map(str, files()), *arguments]
    env = {**os.environ, VARIABLE: str(ledger), "PYTHONPATH": folders}
    return subprocess.run(command, cwd=TESTS.parent, env=env, check=False).returncode


def declared():
    """A ledger's lines of everything that is declared to be shown; nothing is run."""
    for path in files():
        module = importlib.import_module(path.stem)
        for test in vars(module).values():
            if hasattr(test, "shows") and test.__module__ == path.stem:
                yield test.shows


def measured(page):
    """A ledger's lines that say again what a page says of every check."""
    names, promise = {title(promise): promise for promise in PROMISES}, ""
    for row in page.partition(f"| {' | '.join(WHAT)} |\n")[2].splitlines()[1:]:
        name, what, trials, failures = [cell.strip() for cell in row[1:-1].split("|")]
        promise = names[name] if name else promise
        if failures:
            counts = {"trials": trials.replace(",", ""), "failures": failures.strip("* FAILED")}
            yield {"promise": promise, "what": what, **{k: int(n) for k, n in counts.items()}}


def known(lines):
    """A ledger's lines without results of what is declared no more."""
    names = {(line["promise"], line["what"]) for line in lines if "place" in line}
    return [line for line in lines if (line["promise"], line["what"]) in names]


def checks(lines):
    """(promise, what) -> its lines with results, for everything that was declared, as declared."""
    places = {(line["promise"], line["what"]): line["place"] for line in lines if "place" in line}
    found = {key: [] for key in sorted(places, key=places.get)}
    for line in lines:
        if "place" not in line:
            found[line["promise"], line["what"]].append(line)
    return found


def title(promise):
    """How the tables name a promise."""
    words = PROMISES[promise]
    return words if promise == "mutations" else f"{promise}: {words}"


def result(results):
    """Trials and failures, summed, as two cells."""
    trials, failures = (sum(line[key] for line in results) for key in ("trials", "failures"))
    return f"{trials:,}", f"**{failures} FAILED**" if failures else "0"


def rows(found):
    """The table's rows: promise, what was done, trials, failures."""
    for promise in PROMISES:
        mine = [(what, results) for (of, what), results in found.items() if of == promise]
        name = title(promise)
        if not any(results for _, results in mine):
            yield name, "*not shown*", "", ""
            continue
        for what, results in mine:
            yield name, what, *(result(results) if results else ("*not run*", ""))
            name = ""


def sums(found):
    """The rows of the short table: promise, checks that ran, trials, failures."""
    for promise in PROMISES:
        ran = [results for (of, _), results in found.items() if of == promise and results]
        shown = str(len(ran)) if ran else "*not shown*"
        yield title(promise), shown, *result([line for results in ran for line in results])


def table(found):
    """Markdown: a row for each promise, and one for everything that was done."""
    yield from markdown(("promise", "checks", "trials", "failures"), sums(found))
    yield from ("", "## What was done", "")
    yield from markdown(WHAT, rows(found))


def markdown(names, cells):
    """A table."""
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"
    for row in cells:
        yield f"| {' | '.join(row)} |"


def about(lines):
    """With what, and how long it took, in one line."""
    versions = {json.dumps(line["versions"]) for line in lines if "versions" in line}
    seconds = sum(line.get("seconds", 0) for line in lines)
    made_with = [
        ", ".join(f"{key} {value}" for key, value in json.loads(each).items())
        for each in sorted(versions)
    ]
    return f"Made with {' and '.join(made_with)}; {seconds:.0f} s of tests."


def page(lines, *closing):
    """The whole of README.md: what it is, how it was made, both tables."""
    return "\n".join([PREAMBLE, *closing, "", *table(checks(lines))]) + "\n"


def renewed(text):
    """A page with the rows of today and the figures that it has."""
    lines = known([*declared(), *measured(text)])
    return page(lines, *(line for line in text.splitlines() if line.startswith(CLOSING)))


def measure(arguments):
    """Run the tests; the page about them, and the exit code."""
    more = [word for each in arguments for word in TIERS.get(each, [each])]
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder, "ledger.jsonl")
        code = run(more, ledger)
        ledger.touch()
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    failed = sum(line.get("failures", 0) for line in lines)
    closing = [about(lines)]
    if code or failed:
        closing.append(f"**Not passed: {failed} trials failed, pytest ended with {code}.**")
    return page(lines, *closing), int(bool(code or failed))


def main(arguments):
    if arguments == ["--rows"]:
        text, code = renewed(PAGE.read_text()), 0
    else:
        text, code = measure(arguments)
    print("", text, sep="\n")
    if arguments in (["--rows"], *([tier] for tier in TIERS)):
        PAGE.write_text(text)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
