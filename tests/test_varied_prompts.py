"""The thousand prompts: different, balanced, short, plain English, varied from the first on."""

import functools
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from taqdit.prompts import options as prompts
from taqdit.prompts import varied
from taqdit.prompts.reading import refuse_characters

PARTS = tomllib.loads(Path(varied.__file__).with_suffix(".toml").read_text(encoding="utf-8"))
FAMILIES = PARTS["families"]
FAMILIES["counts"]["subjects"] = [f"{subject}s" for subject in FAMILIES["counts"]["subjects"]]
STYLES = [style.partition(" ")[2] for style in PARTS["styles"]]
TEXTS = prompts.varied_1000().texts
CARDINALS = {"two", "three", "four", "five", "six", "seven"}


@functools.cache
def holds(text: str, phrase: str) -> bool:
    """Whether a prompt has the phrase as whole words."""
    return re.search(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", text, re.IGNORECASE) is not None


@functools.cache
def style_of(text: str) -> str:
    """The style that a prompt begins or ends with."""
    found = [s for s in STYLES if re.match(rf"An? {s} of ", text) or text.endswith(f", {s}")]
    assert len(found) == 1, (text, found)
    return found[0]


def test_a_thousand_that_differ_in_more_than_their_commas():
    assert len(TEXTS) == len({re.sub(r"\W+", " ", text).lower() for text in TEXTS}) == 1000
    assert prompts.varied_1000().texts == TEXTS
    assert prompts.varied_1000(num=37).texts == TEXTS[:37]
    assert set(prompts.varied_1000().seeds) == {None}


def test_none_is_in_another_prompt_file():
    assert not set(TEXTS) & {*prompts.paper_20().texts, *prompts.shapes().texts}


def test_they_fit_clips_window():
    # CLIP takes 75 tokens; of plain words it makes 1.4 tokens at most on average (38 in all here).
    assert max(len(re.findall(r"\w+|[^\w\s]", text)) for text in TEXTS) <= 40


@pytest.mark.parametrize("name", FAMILIES)
def test_every_part_of_a_family_occurs_equally_often(name):
    texts = TEXTS[list(FAMILIES).index(name) :: 10]
    family = FAMILIES[name]
    for subject in family["subjects"]:
        assert sum(holds(text, subject) for text in texts) == 5, subject
    for scene in family["scenes"]:
        assert sum(holds(text, scene) for text in texts) == 5, scene
    for light in family["lights"]:  # three of four prompts name one
        assert 7 <= sum(holds(text, light) for text in texts) <= 8, light
    assert Counter(map(style_of, texts)) == dict.fromkeys(STYLES, 5)
    pairs = {
        (subject, scene)
        for text in texts
        for subject in family["subjects"]
        for scene in family["scenes"]
        if holds(text, subject) and holds(text, scene)
    }
    assert len(pairs) == 100
    for part in (*family["subjects"], *family["scenes"]):
        assert len({style_of(text) for text in texts if holds(text, part)}) == 5, part


def test_counts_colours_relations_and_views_are_balanced():
    counted, placed = (TEXTS[list(FAMILIES).index(name) :: 10] for name in ("counts", "places"))
    for number in PARTS["counts"]:
        assert sum(holds(text, number) for text in counted) == 20
    for relation in PARTS["relations"]:
        assert sum(f" {relation} a" in text for text in placed) == 20
    found = [
        re.search(rf"({'|'.join(PARTS['counts'])}) (\w+) .* and one (\w+) ", t.lower())
        for t in counted
    ]
    assert Counter(match[2] for match in found) == dict.fromkeys(PARTS["colours"], 10)
    assert all(5 <= n <= 15 for n in Counter(match[3] for match in found).values())
    assert {match[3] for match in found} == set(PARTS["colours"])
    assert all(match[2] != match[3] for match in found)
    for view in PARTS["views"]:  # half of the prompts name one
        assert sum(f", {view}" in text for text in TEXTS) == 50, view


@pytest.mark.parametrize(("num", "least"), [(20, 1), (100, 4), (500, 24)])
def test_the_first_ones_are_varied_already(num, least):
    texts = prompts.varied_1000(num=num).texts
    styles = Counter(map(style_of, texts))
    assert set(styles) == set(STYLES)
    assert min(styles.values()) >= least
    seen = [
        sum(any(holds(text, s) for text in texts[place::10]) for s in family["subjects"])
        for place, family in enumerate(FAMILIES.values())
    ]
    assert seen == [min(num // 10, 20)] * 10
    if num >= 100:
        for phrase in (*PARTS["counts"], *PARTS["relations"], *PARTS["colours"], *PARTS["views"]):
            assert any(holds(text, phrase) for text in texts), phrase


def test_the_parts_are_lists_of_different_phrases():
    assert len(FAMILIES) == 10
    for family in FAMILIES.values():
        sizes = {len(set(family["subjects"])), len(set(family["scenes"])), len(set(STYLES))}
        assert sizes == {20}
        assert len(set(family["lights"])) == len(set(PARTS["views"])) == 10


def test_articles_agree_with_what_follows():
    for text in TEXTS:
        for article, word in re.findall(r"\b(an?) \"?(\w+)", text, re.IGNORECASE):
            vowel = word[0] in "aeiouAEIOU" and not word.startswith(("one", "uni"))
            assert (article.lower() == "an") == vowel, (text, article, word)


def test_plurals_follow_counts_and_singulars_follow_articles():
    for text in TEXTS:
        words = re.findall(r"[\w-]+", text)
        for number, *rest in zip(words, words[1:], words[2:], words[3:], strict=False):
            if number.lower() in CARDINALS:
                assert any(w.endswith("s") or w in ("snowmen", "scoops") for w in rest), text
    for word in FAMILIES["counts"]["subjects"]:
        assert not word.endswith(("ss", "xs", "chs", "shs", "ys", "fs", "os")), word


def test_the_text_is_tidy():
    for text in TEXTS:
        refuse_characters(text, "here")
        assert text.isascii()
        assert text[0].isupper() or text[0].isdigit()
        assert not re.search(r"\s{2}|\s,|,,|^\s|[\s,]$|[{}]", text), text
        assert text.count('"') in (0, 2)
        assert not re.search(r"\b(\w+) \1\b", text, re.IGNORECASE), text
