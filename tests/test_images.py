"""Pictures in the store: the same pixels, the same bytes; a damaged PNG is found."""

import numpy as np
import pytest

from taqdit.errors import CorruptError, StorageError
from taqdit.trajectories.pictures import read_picture, verify_picture, write_picture

PICTURE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def test_round_trip_and_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name, PICTURE, owner="s 1")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", owner="s 1"), PICTURE)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    verify_picture(tmp_path / "a.png", (16, 24, 3), owner="s 1")


def test_another_size_is_refused(tmp_path):
    write_picture(tmp_path / "a.png", PICTURE, owner="s 1")
    with pytest.raises(CorruptError, match="expected"):
        verify_picture(tmp_path / "a.png", (24, 16, 3), owner="s 1")


def test_every_truncation_and_flipped_bit_is_found(tmp_path):
    path = tmp_path / "a.png"
    write_picture(path, PICTURE, owner="s 1")
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    damaged = [good[:length] for length in range(len(good))] + [good + b"\0"]
    for place in rng.integers(0, len(good), 300):
        damaged.append(good[:place] + bytes([good[place] ^ 8]) + good[place + 1 :])
    for each in damaged:
        path.write_bytes(each)
        with pytest.raises(CorruptError):
            verify_picture(path, PICTURE.shape, owner="s 1")


def test_another_trajectorys_picture_is_refused(tmp_path):
    write_picture(tmp_path / "a.png", PICTURE, owner="s 1")
    with pytest.raises(CorruptError, match="belongs to"):
        read_picture(tmp_path / "a.png", owner="s 2")


def test_a_file_that_cannot_be_read_is_not_called_corrupt(tmp_path):
    with pytest.raises(StorageError, match="cannot read"):
        read_picture(tmp_path / "none.png", owner="s 1")
