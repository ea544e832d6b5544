"""Run the tests that promises rest on and print what they showed, as a table for README.

    .venv/bin/python tests/faults/table.py [--slow | --long] [pytest's arguments]

With `--slow` the tests so marked run too, with `--long` all.

Exit code 1 when a test failed, or one that was to run did not. As a plugin of pytest (`-p table`)
it leaves out every test that shows no promise.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
TIERS = {"--slow": ["-m", "not long"], "--long": ["-m", ""]}
sys.path.insert(0, str(TESTS))

from ledger import PROMISES, VARIABLE  # noqa: E402


def pytest_collection_modifyitems(config, items):
    """Keep the tests with `@shows` alone."""
    shown = [item for item in items if hasattr(item.function, "shows")]
    config.hook.pytest_deselected(items=[item for item in items if item not in shown])
    items[:] = shown


def run(arguments, ledger):
    """Run the tests, which append to the ledger; pytest's exit code."""
    files = [path for path in TESTS.rglob("test_*.py") if "from ledger import" in path.read_text()]
    folders = f"{Path(__file__).parent}{os.pathsep}{TESTS}"
    command = [sys.executable, "-m", "pytest", "-p", "table", *map(str, sorted(files)), *arguments]
    env = {**os.environ, VARIABLE: str(ledger), "PYTHONPATH": folders}
    return subprocess.run(command, cwd=TESTS.parent, env=env, check=False).returncode


def checks(lines):
    """(promise, what) -> its lines with results, for everything that was declared, as declared."""
    places = {(line["promise"], line["what"]): line["place"] for line in lines if "place" in line}
    found = {key: [] for key in sorted(places, key=places.get)}
    for line in lines:
        if "place" not in line:
            found[line["promise"], line["what"]].append(line)
    return found


def rows(found):
    """The table's rows: promise, what was done, trials, failures."""
    for promise, words in PROMISES.items():
        mine = [(what, results) for (of, what), results in found.items() if of == promise]
        name = words if promise == "mutations" else f"{promise}: {words}"
        if not any(results for _, results in mine):
            yield name, "*not shown*", "", ""
            continue
        for what, results in mine:
            if results:
                trials, failures = (sum(r[key] for r in results) for key in ("trials", "failures"))
                yield name, what, f"{trials:,}", f"**{failures} FAILED**" if failures else "0"
            else:
                yield name, what, "*not run*", ""
            name = ""


def sums(found):
    """The rows of the short table: promise, checks that ran, trials, failures."""
    for promise, words in PROMISES.items():
        ran = [results for (of, _), results in found.items() if of == promise and results]
        trials, failures = (sum(r[k] for each in ran for r in each) for k in ("trials", "failures"))
        name = words if promise == "mutations" else f"{promise}: {words}"
        yield (
            name,
            str(len(ran)) if ran else "*not shown*",
            f"{trials:,}",
            f"**{failures} FAILED**" if failures else "0",
        )


def table(found):
    """Markdown: a row for each promise, and one for everything that was done."""
    yield from markdown(("promise", "checks", "trials", "failures"), sums(found))
    yield from ("", "<details><summary>What was done</summary>", "")
    yield from markdown(("promise", "what was done", "trials", "failures"), rows(found))
    yield from ("", "</details>")


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
    return f"{' and '.join(made_with)}; {seconds:.0f} s of tests."


def main(arguments):
    more = [word for each in arguments for word in TIERS.get(each, [each])]
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder, "ledger.jsonl")
        code = run(more, ledger)
        ledger.touch()
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    print("", *table(checks(lines)), "", about(lines), sep="\n")
    failed = sum(line.get("failures", 0) for line in lines)
    if code or failed:
        print(f"\n**These tests did not pass: {failed} failed, pytest ended with {code}.**")
    return int(bool(code or failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
