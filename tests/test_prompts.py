"""Prompt sets and prompt files: what they hold, how they are read, what is refused."""

import os
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger import shows

from taqdit.errors import ConfigError, InputError
from taqdit.prompts import options as prompts

SHAPES = ["circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart"]
COLOURS = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
BACKGROUNDS = ["black", "white", "gray", "navy", "brown", "mint"]
ROWS = ("top left", "top", "top right"), ("left", "center", "right")
POSITIONS = [*ROWS[0], *ROWS[1], "bottom left", "bottom", "bottom right"]
HELD_OUT = {(SHAPES[s], COLOURS[(3 * s + 1) % 8]) for s in range(8)}
ANY = "|".join
OBJECT = rf"({ANY(COLOURS)}) ({ANY(SHAPES)})"
ON = rf"({ANY(BACKGROUNDS)})"
AT = rf"({ANY(sorted(POSITIONS, key=len, reverse=True))})"
ONE = (
    rf"a (small|large) {OBJECT} at the {AT} on a {ON} background",
    rf"(small|large) {OBJECT}, {AT}, {ON} background",
    rf"on {ON}, a {OBJECT}, (small|large), {AT}",
)
BESIDE = "(?:left of|right of|above|over|below|under)"
TWO = (
    rf"a {OBJECT} {BESIDE} a {OBJECT} on a {ON} background",
    rf"on {ON}, a {OBJECT} {BESIDE} a {OBJECT}",
    rf"{ON} background with a {OBJECT} {BESIDE} a {OBJECT}",
    rf"{OBJECT} {BESIDE} {OBJECT}, {ON} background",
)


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    """The files of a test lie where it works."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path):
    def make(content: str | bytes, name: str = "p.txt") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return make


def test_shapes_speak_the_embedded_grammar_and_cover_it():
    texts = prompts.shapes().texts
    words: set[str] = set()
    pairs = set()
    for text in texts:
        match = next(m for p in ONE + TWO if (m := re.fullmatch(p, text)))
        words.update(match.groups())
        pairs.update(re.findall(OBJECT, text))
        assert len(re.findall(r"\w+|[,:]", text)) <= 14  # of 16 tokens, two are markers
    assert len(texts) == len(set(texts)) == 16
    assert words >= {*SHAPES, *COLOURS, *BACKGROUNDS, *POSITIONS, "small", "large"}
    assert {(shape, colour) for colour, shape in pairs}.isdisjoint(HELD_OUT)
    assert sum(bool(re.search(BESIDE, t)) for t in texts) >= 4


def test_paper_20_is_twenty_different_prompts_within_clips_window():
    texts = prompts.paper_20().texts
    assert len(set(texts)) == 20
    for text in texts:
        assert len(re.findall(r"\w+|[^\w\s]", text)) <= 40  # CLIP takes 75 tokens
    first_words = {t.split()[0] + t.split()[1] for t in texts}
    assert len(first_words) == 20


def test_num_keeps_the_first_ones_and_names_its_range():
    assert prompts.shapes(num=3).texts == prompts.shapes().texts[:3]
    assert prompts.shapes(num=16).texts == prompts.shapes().texts
    for num in (0, 17, -1, True, 2.0):
        with pytest.raises(ConfigError, match=r"num=.*\[1, 16\]"):
            prompts.shapes(num=num)


def test_trajectories_cycle_through_prompts_and_seeds():
    three = prompts.Prompts(("a", "b", "c"), (None, 7, 2**32 - 1))
    assert [three.text(i) for i in range(5)] == ["a", "b", "c", "a", "b"]
    assert [three.seed(i, 100) for i in range(8)] == [
        *(100, 7, 2**32 - 1),
        *(103, 8, 0),  # seeds stay in NumPy's range
        *(106, 9),
    ]
    assert len(three) == 3


def test_a_text_file(write):
    path = write("\ufeffein Fuchs \r\n\r\n42\tzwei Füchse\n  \n\t\t\n0042\tzwei Füchse")
    found = prompts.file(path=path)
    assert found.texts == ("ein Fuchs", "zwei Füchse", "zwei Füchse")
    assert found.seeds == (None, 42, 42)
    assert prompts.file(path=path, num=1).texts == ("ein Fuchs",)
    with pytest.raises(ConfigError, match=r"\[1, 3\]"):
        prompts.file(path=path, num=4)


def test_a_csv_file(write):
    content = 'id,Seed, prompt \n1,5,"a cat, a dog"\n2,,"say ""hi"""\n\n,,\n3, 7 ,plain\n'
    found = prompts.file(path=write(content, "p.CSV"))
    assert found.texts == ("a cat, a dog", 'say "hi"', "plain")
    assert found.seeds == (5, None, 7)


def test_prompts_are_composed_to_nfc(write):
    found = prompts.file(path=write(unicodedata.normalize("NFD", "crème brûlée")))
    assert found.texts == ("crème brûlée",)


def test_other_scripts_and_emoji_are_prompts(write):
    texts = ("猫が窓辺で眠る", "قطة على النافذة", "👩‍🚀 on the moon", "can\u200cnot")
    assert prompts.file(path=write("\n".join(texts))).texts == texts


@given(
    st.lists(
        st.text(
            st.characters(categories=["L", "N", "P", "S", "Zs"], codec="utf-8"), min_size=1
        ).filter(lambda t: t.strip() and "\t" not in t),
        min_size=1,
        max_size=20,
    )
)
def test_what_is_written_is_read(tmp_path_factory, texts):
    path = tmp_path_factory.getbasetemp() / "round.txt"
    path.write_text("\n".join(texts), encoding="utf-8", newline="\n")
    expected = tuple(unicodedata.normalize("NFC", text).strip() for text in texts)
    assert prompts.file(path=str(path), allow_outside=True).texts == expected


def test_relative_paths_start_at_the_working_directory(write, monkeypatch):
    monkeypatch.chdir(Path(write("here")).parent)
    assert prompts.file(path="p.txt").texts == ("here",)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert prompts.file(path="~/p.txt").texts == ("here",)


def test_limits_are_inclusive(write):
    line = "x" * 99
    assert len(prompts.file(path=write(f"{line}\n" * 10_000))) == 10_000  # also exactly 1 MB
    assert len(prompts.file(path=write("y" * 2000))) == 1
    assert prompts.file(path=write("4294967295\tlast")).seeds == (2**32 - 1,)


REFUSED = {
    "empty": ("", "holds no prompt"),
    "blank": ("\n \n\t\n", "holds no prompt"),
    "only a byte order mark": ("\ufeff", "holds no prompt"),
    "latin-1": ("ok\ncaf\xe9\n".encode("latin-1"), r"line 2: byte 0xe9 is not UTF-8"),
    "utf-16": ("a cat".encode("utf-16"), r"line 1: byte 0xff is not UTF-8"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "line 1: byte 0x89"),
    "surrogate": (b"a\nb\xed\xa0\x80", "line 2: byte 0xed"),
    "overlong": (b"\xc0\xaf", "byte 0xc0"),
    "nul": ("a\nb\0c", r"line 2: U\+0000"),
    "escape": ("\x1b[2Jcleared", r"line 1: U\+001B"),
    "carriage return": ("harmless\rhidden", r"U\+000D"),
    "next line": ("a\x85b", r"U\+0085"),
    "line separator": ("a\u2028b", r"U\+2028 \(LINE SEPARATOR\)"),
    "bidi override": ("ok\nok\nabc \u202etxt.exe", r"line 3: U\+202E \(RIGHT-TO-LEFT OVERRIDE\)"),
    "bidi isolate": ("a\u2066b", r"U\+2066"),
    "left-to-right mark": ("a\u200eb", r"U\+200E"),
    "right-to-left mark": ("a\u200fb", r"U\+200F"),
    "arabic letter mark": ("a\u061cb", r"U\+061C"),
    "separator at the end": ("ok\na cat\x1f", r"line 2: U\+001F"),
    "nothing but a separator": ("ok\n\x1c\n", r"line 2: U\+001C"),
    "too long": ("ok\n" + "x" * 2001, "line 2: the prompt has 2,001 characters"),
    "too many lines": ("x\n" * 10_001, "10,001 lines"),
    "too large": ("x" * 99 + "\n" + ("x" * 99 + "\n") * 9_999 + "x", "larger than 1,000,000"),
    "seed is a word": ("1\tok\nseven\ta cat", "line 2: 'seven' before the tab"),
    "negative seed": ("-1\ta cat", "'-1'"),
    "large seed": ("4294967296\ta cat", r"\[0, 4294967295\]"),
    "superscript seed": ("²\ta cat", "'²'"),
    "seed alone": ("1\t ", "line 1: the prompt is empty"),
    "second tab": ("1\ta\tcat", r"line 1: U\+0009"),
}
REFUSED_CSV = {
    "empty": ("", "column named prompt"),
    "no prompt column": ("id,text\n1,a cat", "line 1: .*column named prompt"),
    "two prompt columns": ("prompt,prompt\na,b", "one column"),
    "header alone": ("prompt\n", "holds no prompt"),
    "unquoted comma": ("prompt\na cat, a dog", "line 2: 2 fields under a header of 1"),
    "missing field": ("id,prompt\n1", "line 2: 1 fields"),
    "open quote": ('prompt\n"a cat\nb\n', "line 3: not CSV"),
    "text after a quote": ('prompt\n"a" cat\n', "line 2: not CSV"),
    "line break in a prompt": ('prompt\n"a\ncat"\n', r"line 3: U\+000A"),
    "escape in another column": ("id,prompt\n\x1b[2J,a cat", r"line 2: U\+001B"),
    "tab in a prompt": ("prompt\na\tcat\n", r"line 2: U\+0009"),
    "empty prompt": ("id,prompt\n1,\n", "line 2: the prompt is empty"),
    "bad seed": ("prompt,seed\na,x\n", "line 2: 'x'"),
    "binary": (b"prompt\n\x00\x01\x02", r"line 2: U\+0000"),
    "huge field": ('prompt\n"' + "x" * 200_000 + '"', "line 2: not CSV"),
}


@pytest.mark.parametrize("name", REFUSED)
@shows("P19", "hostile text files: refused by the line, in one line", trials=1)
def test_refused_text_files(write, name):
    content, message = REFUSED[name]
    _assert_refused(write(content), message)


@pytest.mark.parametrize("name", REFUSED_CSV)
@shows("P19", "hostile CSV files: refused by the line, in one line", trials=1)
def test_refused_csv_files(write, name):
    content, message = REFUSED_CSV[name]
    _assert_refused(write(content, "p.csv"), message)


def _assert_refused(path: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        prompts.file(path=path)
    text = str(caught.value)
    assert re.search(message, text.replace(path, "")), text  # the path holds the test's name
    assert text.isprintable(), "one line, nothing that could move a terminal's cursor"
    assert text.startswith(f"path={path}")
    assert caught.value.exit_code == 3


@shows("P19", "a pipe, two folders, nothing there, NUL in the path: refused in one line", trials=5)
def test_things_that_are_not_prompt_files(tmp_path):
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    _assert_refused(str(pipe), "not a regular file")
    _assert_refused(str(tmp_path), "must end in .txt or .csv")
    folder = tmp_path / "folder.txt"
    folder.mkdir()
    _assert_refused(str(folder), "not a regular file")
    _assert_refused(str(tmp_path / "none.txt"), "No such file")
    with pytest.raises(InputError, match="null"):
        prompts.file(path="a\0.txt")
    for path in (None, ""):
        with pytest.raises(ConfigError, match=r"prompts\.path"):
            prompts.file(path=path)


SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----"


def outside(kind, elsewhere):
    """A path to the secret file elsewhere/key.txt, from a working directory beside it."""
    if kind == "absolute":
        return str(elsewhere / "key.txt")
    if kind == "upwards":
        return "../elsewhere/key.txt"
    if kind == "home":
        return "~/key.txt"
    if kind == "link":
        Path("mine.txt").symlink_to(elsewhere / "key.txt")
        return "mine.txt"
    if kind == "link to a link":
        Path("one.txt").symlink_to("two.txt")
        Path("two.txt").symlink_to("../elsewhere/key.txt")
        return "one.txt"
    if kind == "linked folder":
        Path("folder").symlink_to(elsewhere)
        return "folder/key.txt"
    return str(Path.cwd()) + "/../elsewhere/key.txt"  # begins like the working directory


@pytest.mark.parametrize(
    "kind", ["absolute", "upwards", "home", "link", "link to a link", "linked folder", "prefix"]
)
@shows("P19", "files outside the working directory, also behind links: only when told to", trials=1)
def test_a_file_outside_needs_to_be_allowed(tmp_path, monkeypatch, kind):
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (here := tmp_path / "here").mkdir()
    (elsewhere / "key.txt").write_text(SECRET)
    monkeypatch.setenv("HOME", str(elsewhere))
    monkeypatch.chdir(here)
    path = outside(kind, elsewhere)
    with pytest.raises(InputError) as caught:
        prompts.file(path=path)
    text = str(caught.value)
    assert "lies outside the working directory" in text
    assert text.endswith("or set prompts.allow_outside=true")
    assert SECRET not in text
    assert text.isprintable()
    assert prompts.file(path=path, allow_outside=True).texts == (SECRET,)


def test_a_folder_whose_name_begins_like_the_working_directory_is_outside(tmp_path, monkeypatch):
    for name in ("here", "here_too"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.txt").write_text(name)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="outside"):
        prompts.file(path=str(tmp_path / "here_too" / "p.txt"))
    assert prompts.file(path=str(tmp_path / "here" / "p.txt")).texts == ("here",)


def test_a_working_directory_behind_a_link_is_itself(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "p.txt").write_text("here")
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "link")
    for path in ("p.txt", "../link/p.txt", str(tmp_path / "real" / "p.txt")):
        assert prompts.file(path=path).texts == ("here",)


def test_a_loop_of_links_is_no_file(tmp_path):
    (tmp_path / "a.txt").symlink_to("b.txt")
    (tmp_path / "b.txt").symlink_to("a.txt")
    _assert_refused(str(tmp_path / "a.txt"), "cannot be read")
