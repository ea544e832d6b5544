"""The documents: what they name is there, what they show parses, and README stays short."""

import re
import shlex
from contextlib import suppress

import pytest
import yaml
from conftest import ROOT
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from taqdit import config
from taqdit.cli.verbs import VERBS, dispatch
from taqdit.config.overrides import flatten

README = ROOT / "README.md"
FOLDERS = ("conf", "outputs", "taqdit", "tests")
PAGES = [README, *sorted(path for name in FOLDERS for path in (ROOT / name).rglob("README.md"))]
START = (
    "```bash\npython3 -m pip install uv && python3 -m uv run taqdit\n```\n",
    "```bash\npython3 -m pip install uv && python3 -m uv run pytest\n```\n",
)
UNLISTED = set()  # keys that no table names
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text(page):
    return page.read_text(encoding="utf-8")


def anchors(page):
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", text(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shown(page):
    """The command lines of taqdit that a page shows, in blocks and in sentences, as words."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text(page), flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`((?:[A-Z_]+=\S+ )*taqdit(?: [^`]*)?)`", text(page))
    for line in [line for block in blocks for line in block.splitlines()] + inline:
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words[:2] == ["uv", "run"]:
            words = words[words.index("taqdit") :] if "taqdit" in words else []
        if words[:1] == ["taqdit"]:
            yield [word for word in words[1:] if word not in ("..", "...", "<model>")]


def table(page):
    """Key -> default, as the table of a page has them; a default in italics is in words."""
    for names, defaults in re.findall(r"^\| (`.*`) \| (.*?) \| .* \|$", text(page), re.MULTILINE):
        keys = re.findall(r"`(.+?)`", names)
        group = keys[0].split(".")[0]
        keys = [group + key if key.startswith(".") else key for key in keys]
        values = [] if defaults.startswith("*") else yaml.safe_load(f"[{defaults}]")
        assert len(values) in (0, len(keys)), names
        yield from zip(keys, values or [...] * len(keys), strict=True)


def test_readme_is_read_in_one_sitting():
    assert README.stat().st_size <= 12_000


def test_readme_begins_with_the_two_commands():
    assert all(command in text(README) for command in START)


def test_the_map_has_every_room():
    names = re.findall(r"^\| \[?`([\w./]+)`", text(README).partition("## Map")[2], re.MULTILINE)
    paths = [path for path in (ROOT / "taqdit").iterdir() if not path.name.startswith("_")]
    rooms = {path.name for path in paths if path.suffix == ".py"}
    rooms |= {f"{path.name}/" for path in paths if (path / "__init__.py").is_file()}
    assert rooms <= set(names)
    assert len(names) == len(set(names))


@pages
def test_every_link_leads_to_a_file_and_a_heading_in_it(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.is_file(), target
            assert not anchor or anchor in anchors(file), target


@pages
def test_every_command_shown_parses(page, capsys):
    for words in shown(page):
        parse(words, capsys)


def parse(words, capsys):
    """Find the verb and its options, or compose the overrides, those of every job of a sweep."""
    verb, rest = (words[0], words[1:]) if words and words[0] in VERBS else ("", words)
    if verb in ("rerun", "compare", "sync", "store"):
        names = words[:2] if verb == "store" else words[:1]
        with suppress(SystemExit):
            dispatch([*names, "--help"])
        usage = capsys.readouterr().out
        assert all(word in usage for word in rest if word.startswith("--")), words
    elif words != ["--help"]:
        overrides = [word for word in rest if word not in ("-m", "push")]
        parsed = OverridesParser.create().parse_overrides(overrides)
        assert "-m" in words or not any(each.is_sweep_override() for each in parsed), words
        for job in BasicSweeper.split_arguments(parsed, None)[0]:
            config.compose_config(job, with_hydra=True)


@pytest.mark.parametrize("page", [README, ROOT / "conf" / "README.md"], ids=["README", "conf"])
def test_the_keys_named_are_there_with_their_defaults(page):
    composed = config.compose_config(with_hydra=True)
    choices = OmegaConf.to_container(composed.hydra.runtime.choices)
    from_file = config.compose_config(["prompts=file"])  # with the keys of that option alone
    for key, value in table(page):
        if key in choices:
            assert choices[key] == value, key
        else:
            given = OmegaConf.select(from_file, key, default="no such key")
            assert given == value or (value is ... and given != "no such key"), key


def test_every_key_is_in_the_table():
    composed = OmegaConf.to_container(config.compose_config())
    keys = {key for key in flatten(composed) if not key.rpartition(".")[2].startswith("_")}
    assert keys - {key for key, _ in table(ROOT / "conf" / "README.md")} <= UNLISTED


def test_every_option_of_a_group_is_named():
    for path in sorted((ROOT / "conf").glob("*/*.yaml")):
        group, room = path.parent.name, ROOT / "taqdit" / path.parent.name / "README.md"
        rows = [
            row for row in text(ROOT / "conf" / "README.md").splitlines() if f"`{group}`" in row
        ]
        rows += re.findall(r"^\|.*", text(room), re.MULTILINE) if room.is_file() else []
        assert group in ("local", "schedule") or re.search(rf"\b{path.stem}\b", "\n".join(rows)), (
            path
        )
