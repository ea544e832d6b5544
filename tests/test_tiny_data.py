"""The embedded model's data: scenes and what is held out, drawings, captions, tokenizer."""

import json

import numpy as np
import pytest

from taqdit.models.tiny import WEIGHTS, config
from taqdit.models.tiny.captions import FIRST_WORDS, SECOND_WORDS, captions, describe, grammar_words
from taqdit.models.tiny.render import DISTANCES, render
from taqdit.models.tiny.scenes import (
    ATTRIBUTES,
    BACKGROUND_NAMES,
    BACKGROUNDS,
    COLOUR_NAMES,
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    pair_is_held_out,
    present,
    sample_scenes,
    tuple_is_held_out,
)
from taqdit.models.tiny.score import accuracy, frechet, read
from taqdit.models.tiny.tokenizer import END, MAX_LENGTH, START, Encoder, build, files


def scenes_of(split="all", count=400, seed=0):
    return sample_scenes(count, np.random.default_rng(seed), split)


def all_single_scenes():
    """Every tuple of one object."""
    names = ("shape", "colour", "size", "pos", "bg")
    grid = np.meshgrid(*(np.arange(ATTRIBUTES[name]) for name in names), indexing="ij")
    columns = {name: values.ravel() for name, values in zip(names, grid, strict=True)}
    zeros = np.zeros(len(columns["bg"]), np.int64)
    return {name: columns.get(name, zeros) for name in ATTRIBUTES}


def all_double_scenes():
    """Every tuple of two objects."""
    names = ("shape", "colour", "bg", "rel", "shape2", "colour2")
    sizes = [2 if name == "rel" else ATTRIBUTES[name] for name in names]
    grid = np.meshgrid(*(np.arange(size) for size in sizes), indexing="ij")
    columns = {name: values.ravel() for name, values in zip(names, grid, strict=True)}
    columns["rel"] = columns["rel"] + 1
    zeros = np.zeros(len(columns["bg"]), np.int64)
    return {name: columns.get(name, zeros) for name in ATTRIBUTES}


@pytest.mark.parametrize("everything", [all_single_scenes, all_double_scenes])
def test_each_value_of_each_attribute_loses_a_tenth_of_its_tuples(everything):
    scenes = everything()
    held_out, masks = tuple_is_held_out(scenes), present(scenes)
    assert abs(held_out.mean() - 0.1) < 0.01
    for name, mask in masks.items():
        for value in np.unique(scenes[name][mask]):
            share = held_out[mask & (scenes[name] == value)].mean()
            assert abs(share - 0.1) < 0.03, (name, value, share)


def test_what_a_scene_does_not_have_does_not_matter_for_what_is_held_out():
    scenes = scenes_of()
    two, rng = scenes["rel"] > 0, np.random.default_rng(1)
    changed = {name: column.copy() for name, column in scenes.items()}
    for name, mask in present(scenes).items():
        changed[name][~mask] = rng.integers(0, ATTRIBUTES[name], (~mask).sum())
    assert two.any()
    assert not two.all()
    np.testing.assert_array_equal(tuple_is_held_out(scenes), tuple_is_held_out(changed))


def test_one_pair_of_each_shape_and_colour_is_held_out():
    table = pair_is_held_out(*np.meshgrid(np.arange(8), np.arange(8), indexing="ij"))
    np.testing.assert_array_equal(table.sum(0), 1)
    np.testing.assert_array_equal(table.sum(1), 1)
    assert table[SHAPES.index("cross"), COLOUR_NAMES.index("red")]


def test_the_splits_hold_what_they_say():
    for split in ("train", "tuple", "pair"):
        scenes = scenes_of(split)
        two = scenes["rel"] > 0
        first = pair_is_held_out(scenes["shape"], scenes["colour"])
        second = two & pair_is_held_out(scenes["shape2"], scenes["colour2"])
        assert (first | second).any() == (split == "pair")
        assert first.all() == (split == "pair")
        if split != "pair":
            assert (tuple_is_held_out(scenes) == (split == "tuple")).all()


def test_scenes_come_from_the_seed_alone():
    first, again, other = scenes_of(seed=3), scenes_of(seed=3), scenes_of(seed=4)
    assert all((first[name] == again[name]).all() for name in ATTRIBUTES)
    assert any((first[name] != other[name]).any() for name in ATTRIBUTES)


def test_two_objects_are_never_alike_and_sizes_are_asked_for():
    scenes = scenes_of(count=3000)
    two = scenes["rel"] > 0
    alike = (scenes["shape"] == scenes["shape2"]) & (scenes["colour"] == scenes["colour2"])
    assert not (two & alike).any()
    assert abs(two.mean() - 0.3) < 0.03
    assert {len(column) for column in scenes.values()} == {3000}


def single(shape="circle", colour="red", size="large", pos="center", bg="black"):
    values = {
        "shape": SHAPES.index(shape),
        "colour": COLOUR_NAMES.index(colour),
        "size": SIZES.index(size),
        "pos": POSITIONS.index(pos),
        "bg": BACKGROUND_NAMES.index(bg),
    }
    return {name: np.array([values.get(name, 0)]) for name in ATTRIBUTES}


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("bg", BACKGROUNDS)
def test_a_square_has_its_colour_in_the_middle_and_its_background_in_the_corner(colour, bg):
    scenes = single("square", colour, "large", "center", bg)
    picture = render(scenes, np.random.default_rng(0))[0]
    assert np.abs(picture[32, 32] - COLOURS[colour]).max() < 0.12
    assert np.abs(picture[1, 1] - BACKGROUNDS[bg]).max() < 0.15


@pytest.mark.parametrize("pos", POSITIONS)
def test_an_object_stands_where_its_position_says(pos):
    scenes = single("circle", "yellow", "small", pos, "black")
    bright = render(scenes, np.random.default_rng(0))[0].sum(-1) > 1
    rows, columns = np.nonzero(bright)
    index = POSITIONS.index(pos)
    assert abs(rows.mean() - (20, 32, 44)[index // 3]) < 4
    assert abs(columns.mean() - (20, 32, 44)[index % 3]) < 4
    assert 7 < np.sqrt(bright.sum() / np.pi) < 10


def test_pictures_are_bounded_and_come_from_the_seed():
    scenes = scenes_of(count=32)
    first, again = (render(scenes, np.random.default_rng(5)) for _ in range(2))
    assert first.dtype == np.float32
    assert first.shape == (32, 64, 64, 3)
    assert first.min() >= 0
    assert first.max() <= 1
    np.testing.assert_array_equal(first, again)
    assert (first != render(scenes, np.random.default_rng(6))).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_solid_within_its_outline_and_nothing_outside(shape):
    radius = np.linspace(0, 2, 41, dtype=np.float32)
    angle = np.linspace(0, 2 * np.pi, 73, dtype=np.float32)[:, None]
    gap = DISTANCES[shape](radius * np.cos(angle), radius * np.sin(angle))
    assert (gap[:, radius > 1.25] > 0).all()
    inside = (gap < 0).mean()
    assert 0.1 < inside < 0.6
    assert (gap[:, 0] < 0).all() == (shape != "ring")


def words_of(text):
    return text.replace(",", "").replace(":", "").split()


def test_a_full_caption_names_every_attribute():
    scenes, rng = scenes_of(count=600), np.random.default_rng(0)
    for index, text in enumerate(captions(scenes, rng)):
        scene = {name: int(column[index]) for name, column in scenes.items()}
        named = [SHAPES[scene["shape"]], COLOUR_NAMES[scene["colour"]]]
        named.append(BACKGROUND_NAMES[scene["bg"]])
        if scene["rel"]:
            named += [SHAPES[scene["shape2"]], COLOUR_NAMES[scene["colour2"]]]
            relation = FIRST_WORDS[scene["rel"]] + SECOND_WORDS[scene["rel"]]
            assert any(f" {words} " in text for words in relation)
        else:
            named += [SIZES[scene["size"]], *POSITIONS[scene["pos"]].split()]
        assert set(named) <= set(words_of(text)), text


def test_two_objects_are_told_apart_by_their_relation():
    scenes = {name: np.array([0]) for name in ATTRIBUTES}
    scenes |= {"shape2": np.array([1]), "colour2": np.array([5])}
    for relation in (1, 2):
        scenes["rel"] = np.array([relation])
        for seed in range(30):
            text = describe(scenes, 0, np.random.default_rng(seed))
            first = text.index("red circle") < text.index("blue square")
            words = FIRST_WORDS[relation] if first else SECOND_WORDS[relation]
            assert any(f" {each} " in text for each in words), text


def test_left_out_attributes_leave_a_clean_caption():
    scenes, rng = scenes_of(count=600), np.random.default_rng(0)
    for index in range(600):
        text = describe(scenes, index, rng, drop=1.0)
        shape = SHAPES[scenes["shape"][index]]
        if scenes["rel"][index]:
            assert " and " in text
            assert COLOUR_NAMES[scenes["colour"][index]] in text
        else:
            assert text in {shape, f"a {shape}"}, text
        assert not set(words_of(text)) & {*SIZES, *BACKGROUND_NAMES, "background", "on", "at"}


def test_captions_without_a_generator_use_the_first_template():
    text = describe(single("star", "pink", "small", "top left", "navy"), 0)
    assert text == "a small pink star at the top left on a navy background"


def test_noise_adds_a_prefix_or_one_word():
    scenes = scenes_of(count=50)
    plain = [describe(scenes, i, np.random.default_rng(i)) for i in range(50)]
    noisy = [describe(scenes, i, np.random.default_rng(i), noise=1.0) for i in range(50)]
    longer = [len(b.split()) - len(a.split()) for a, b in zip(plain, noisy, strict=True)]
    assert set(longer) == {1, 3}


def test_every_word_of_the_grammar_is_one_token():
    encode = Encoder()
    for word in grammar_words():
        ids = encode([word])[0][0]
        assert list(ids[:1]) + list(ids[2:3]) == [encode.vocab[START], encode.vocab[END]], word
    assert {*SHAPES, *COLOUR_NAMES, *BACKGROUND_NAMES, *SIZES, "left", "and"} <= set(
        grammar_words()
    )


def test_the_tokenizer_files_are_what_the_grammar_gives():
    for name, text in files().items():
        assert (WEIGHTS / name).read_text(encoding="utf-8") == text
    assert config()["vocab_size"] == len(build()[0])
    assert json.loads(files()["vocab.json"])[END] == len(build()[0]) - 1


def test_long_and_strange_texts_keep_their_ends():
    encode = Encoder()
    first, second = encode(["x" * 200, "", "a 7% <!> b"])
    assert first.shape == second.shape == (3, MAX_LENGTH)
    assert (first[:, 0] == encode.vocab[START]).all()
    assert first[0, -1] == second[0, -1] == encode.vocab[END]
    assert (first[1, 1:] == encode.vocab[END]).all()
    assert (second[1, 2:] == 0).all()


def test_the_fast_encoder_gives_the_ids_of_diffusionkits_tokenizers():
    options = pytest.importorskip("taqdit.models.options")
    pipeline = options.tiny().load().pipeline
    pipeline.load_text_encoders()
    scenes, rng = scenes_of(count=40), np.random.default_rng(2)
    texts = [describe(scenes, i, rng, drop=0.2, noise=0.5) for i in range(40)]
    texts += ["", "HELLO Star", "a!?b 12"]
    tokenizers = (pipeline.tokenizer_l, pipeline.tokenizer_g)
    for tokenizer, ours in zip(tokenizers, Encoder()(texts), strict=True):
        for text, row in zip(texts, ours, strict=True):
            assert np.array(pipeline._tokenize(tokenizer, text)[0]).tolist() == row.tolist(), text


def test_accuracy_counts_only_what_a_scene_has():
    scenes = scenes_of(count=200)
    two = scenes["rel"] > 0
    guess = {name: column.copy() for name, column in scenes.items()}
    guess["size"][two] += 1
    guess["shape2"][~two] += 1
    assert set(accuracy(guess, scenes).values()) == {100.0}
    wrong = np.flatnonzero(two)[0]
    guess["colour2"][wrong] += 1
    found = accuracy(guess, scenes)
    assert found["all"] == pytest.approx(100 * 199 / 200)
    assert found["colour2"] == found["all_two"] == pytest.approx(100 * (1 - 1 / two.sum()))
    assert found["all_one"] == found["shape"] == 100


def test_logits_are_read_head_by_head():
    logits = np.zeros((1, sum(ATTRIBUTES.values())), np.float32)
    start = 0
    for number, size in enumerate(ATTRIBUTES.values()):
        logits[0, start + number % size] = 1
        start += size
    expected = [number % size for number, size in enumerate(ATTRIBUTES.values())]
    assert [int(value[0]) for value in read(logits).values()] == expected


def test_frechet_distance_of_gaussians():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((200_000, 3))
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, a + np.array([3, 0, 0])) == pytest.approx(9, rel=1e-6)
    assert frechet(a, 2 * a) == pytest.approx(3, rel=0.02)


def test_the_classifier_knows_real_pictures():
    classifier = pytest.importorskip("taqdit.models.tiny.classifier")
    scenes = scenes_of(count=128, seed=9)
    pictures = (render(scenes, np.random.default_rng(9)) * 255).astype(np.uint8)
    found = accuracy(classifier.attributes(pictures), scenes)
    assert found["all"] > 90
    assert classifier.features(pictures).shape == (128, config()["classifier"]["features"])
