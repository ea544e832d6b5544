"""Pictures in the store: the same pixels, the same bytes; a damaged PNG is found."""

import numpy as np
import pytest

from taqdit.errors import CorruptError
from taqdit.images import read_picture, verify_picture, write_picture

PICTURE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def test_round_trip_and_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name, PICTURE)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), PICTURE)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    verify_picture(tmp_path / "a.png", (16, 24, 3))


def test_another_size_is_refused(tmp_path):
    write_picture(tmp_path / "a.png", PICTURE)
    with pytest.raises(CorruptError, match="expected"):
        verify_picture(tmp_path / "a.png", (24, 16, 3))


def test_every_truncation_and_flipped_bit_is_found(tmp_path):
    path = tmp_path / "a.png"
    write_picture(path, PICTURE)
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    damaged = [good[:length] for length in range(len(good))] + [good + b"\0"]
    for place in rng.integers(0, len(good), 300):
        damaged.append(good[:place] + bytes([good[place] ^ 8]) + good[place + 1 :])
    for each in damaged:
        path.write_bytes(each)
        with pytest.raises(CorruptError):
            verify_picture(path, PICTURE.shape)
