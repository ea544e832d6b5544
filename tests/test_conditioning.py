"""Conditioning rows: once per unique text, verified when read, the negative shared."""

import gc
import weakref

import numpy as np
import pytest

from taqdit.errors import CorruptError, NumericError
from taqdit.store import Stage
from taqdit.trajectories import conditioning
from taqdit.trajectories.conditioning import Conditioning, encode, missing_texts, shard_name


@pytest.fixture
def stage(tmp_path):
    return Stage.open(tmp_path, "conditioning", fingerprint="a" * 64, inputs={}, backend={})


def encoder(text):
    return np.full((3, 8), len(text), np.float32), np.full(4, -len(text), np.float32)


def test_each_unique_text_is_encoded_once(stage):
    texts = ["a cat", "a dog", "a cat"]
    missing = missing_texts(stage, texts)
    assert missing == ["", "a cat", "a dog"]
    assert list(encode(stage, missing, encoder)) == missing
    assert missing_texts(stage, [*texts, "new"]) == ["new"]


def test_a_guided_forward_has_the_positives_first(stage):
    list(encode(stage, ["", "a cat", "a"], encoder))
    tokens, pooled = Conditioning(stage).guided(["a cat", "a"])
    assert np.array(tokens)[:, 0, 0].tolist() == [5, 1, 0, 0]
    assert np.array(pooled)[:, 0].tolist() == [-5, -1, 0, 0]


def test_few_rows_are_kept_open_and_none_of_a_conditioning_that_is_gone(stage, monkeypatch):
    texts = [str(number) for number in range(40)]
    list(encode(stage, texts, encoder))
    held = []
    read = conditioning._read

    def noted(*given):
        shard = read(*given)
        held.append(weakref.ref(shard.tensors["tokens"]))
        return shard

    monkeypatch.setattr(conditioning, "_read", noted)
    gc.disable()
    try:
        rows = Conditioning(stage)
        for text in texts:
            rows.row(text)
        assert sum(each() is not None for each in held) <= 32
        del rows
        assert not any(each() is not None for each in held)
    finally:
        gc.enable()


def test_a_damaged_row_is_found(stage):
    list(encode(stage, ["", "a cat"], encoder))
    path = stage.path(shard_name("a cat"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptError):
        Conditioning(stage).row("a cat")
    assert missing_texts(stage, ["a cat"]) == ["a cat"]


def test_an_embedding_that_is_not_finite_is_refused(stage):
    with pytest.raises(NumericError, match="'a cat'"):
        list(encode(stage, ["a cat"], lambda text: (np.full((3, 8), np.nan), np.zeros(4))))
    assert stage.names() == []
