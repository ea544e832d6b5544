"""Calibration sets of other people: which conditioning belongs to a point, which timesteps are
meant, and what to do about a file that is refused."""

import logging

import numpy as np
import pytest

from taqdit.activations.opened import open_statistics
from taqdit.calibration.imported import import_npz
from taqdit.errors import InputError

POINTS, PROMPTS = 4, 3


def arrays(**changes):
    """A file with a prompt that stands there twice, an empty one, and a negative per prompt."""
    rng = np.random.default_rng(0)
    return {
        "xs": rng.standard_normal((POINTS, 2, 3, 16), np.float32),
        "ts": np.float16([1000, 500, 250, 10]),
        "prompt_indices": np.int32([0, 1, 2, 0]),
        "cs": rng.standard_normal((PROMPTS, 2, 1, 4096), np.float32).astype("f2"),
        "cs_pooled": rng.standard_normal((PROMPTS, 2, 8), np.float32).astype("f2"),
        "prompts": np.array(["a red circle", "", "a red circle"]),
        "cfg_scale": np.array(2, np.float32),
    } | changes


@pytest.fixture
def written(tmp_path):
    """Writes a file with other arrays."""

    def write(**changes):
        np.savez(tmp_path / "c.npz", **arrays(**changes))
        return tmp_path / "c.npz"

    return write


def test_a_point_has_the_rows_of_its_prompt_index(written):
    points, expected = import_npz(written()), arrays()
    for point in points:
        for found, name in zip(points.pair(point.prompt_index), ("cs", "cs_pooled"), strict=True):
            np.testing.assert_array_equal(found, expected[name][point.prompt_index])
    for index in (-1, PROMPTS):
        with pytest.raises(IndexError, match=f"prompt {index} of 3"):
            points.pair(index)


def test_a_text_with_several_rows_is_refused(written):
    points = import_npz(written())
    with pytest.raises(InputError, match=r"'a red circle': prompt 0 and prompt 2 differ; pair\("):
        points.conditioning("a red circle")
    with pytest.raises(InputError, match="'': prompt 1 and the negative of prompt 0 differ"):
        points.conditioning("")


def test_the_negatives_of_prompts_that_differ_are_refused(written):
    points = import_npz(written(prompts=np.array(["a", "b", "c"])))
    with pytest.raises(InputError, match="the negative of prompt 0 and the negative of prompt 1"):
        points.conditioning("")
    np.testing.assert_array_equal(points.conditioning("b")[1], arrays()["cs_pooled"][1, 0])


def test_equal_rows_are_one(written):
    whole = arrays()
    for name in ("cs", "cs_pooled"):
        whole[name][:, 1] = whole[name][1, 0]  # the negative is what the empty prompt gives
        whole[name][2] = whole[name][0]
    points = import_npz(written(**whole))
    for text, index in (("a red circle", 0), ("", 1)):
        np.testing.assert_array_equal(points.conditioning(text)[0], whole["cs"][index, 0])


def test_the_pooled_rows_alone_may_differ(written):
    cs = np.broadcast_to(arrays()["cs"][:1, :1], arrays()["cs"].shape)
    with pytest.raises(InputError, match="prompt 0 and prompt 2 differ"):
        import_npz(written(cs=np.ascontiguousarray(cs))).conditioning("a red circle")


def test_an_export_again_keeps_the_rows_of_every_prompt(written, tmp_path):
    import_npz(written()).export_npz(tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as again:
        for name in ("cs", "cs_pooled", "prompts"):
            np.testing.assert_array_equal(again[name], arrays()[name])


@pytest.mark.parametrize("scale", [1 / 1000, 0])
def test_sigmas_in_the_place_of_timesteps_are_refused(written, scale):
    sigmas = (arrays()["ts"] * np.float16(scale)).astype("f2")
    with pytest.raises(InputError, match=r"\[0, 1000\] and is at most .*; save \(1000 \* ts\)"):
        import_npz(written(ts=sigmas))


def test_a_small_timestep_among_others_is_one(written):
    assert import_npz(written(ts=np.float16([2, 1, 0.5, 0])))[1].timestep == 1


def test_numbers_out_of_range_are_named(written):
    with pytest.raises(InputError, match=r"ts must lie in \[0, 1000\] and ts\[2\] is 1001; a"):
        import_npz(written(ts=np.float16([1000, 500, 1001, 10])))
    with pytest.raises(InputError, match=r"\[0, 2\] and prompt_indices\[1\] is 3; they count"):
        import_npz(written(prompt_indices=np.int32([0, 3, 1, 9])))


def test_timesteps_as_near_as_float16_tells_are_said_in_one_line(written, caplog):
    caplog.set_level(logging.WARNING)
    import_npz(written(ts=np.float16([1000, 999.5, 250, 10])))
    (said,) = caplog.messages
    assert "(0.5 at 999.5), so steps may have become one; each of its 4 timesteps" in said


def test_timesteps_apart_are_not_spoken_of(written, caplog):
    caplog.set_level(logging.WARNING)
    import_npz(written(ts=np.float16([1000, 999, 250, 250])))
    assert not caplog.messages


CHANNELS_FIRST = np.zeros((POINTS, 16, 2, 3), np.float32)
REMEDIES = {
    "float64": ({"xs": arrays()["xs"].astype("f8")}, r"'<f8'; expected '<f4'; save xs\.astype"),
    "big-endian": ({"xs": arrays()["xs"].astype(">f4")}, r"save xs\.astype\('<f4'\) with numpy"),
    "float32 ts": ({"ts": arrays()["ts"].astype("f4")}, r"save ts\.astype\('<f2'\)"),
    "int64": ({"prompt_indices": np.int64([0, 1, 2, 0])}, r"save prompt_indices\.astype\('<i4'\)"),
    "bytes": ({"prompts": np.array([b"a", b"", b"b"])}, r"numpy\.char\.decode\(prompts, 'utf-8'\)"),
    "numbers": ({"prompts": np.arange(3)}, r"save prompts\.astype\(str\)"),
    "objects": ({"prompts": np.array(["a", "", "b"], object)}, r"replace prompts by"),
    "Fortran": ({"xs": np.asfortranarray(arrays()["xs"])}, "save numpy.ascontiguousarray"),
    "channels first": ({"xs": CHANNELS_FIRST}, r"numpy\.moveaxis\(xs, 1, -1\)"),
    "no negative": ({"cs": arrays()["cs"][:, 0]}, r"numpy\.stack\(\[cs, negative\], axis=1\)"),
    "pooled alone": ({"cs_pooled": arrays()["cs_pooled"][:, 0]}, r"stack\(\[cs_pooled, negative"),
    "fewer timesteps": ({"ts": np.float16([9, 8])}, r"expected \(4\); one timestep for each"),
    "fewer indices": ({"prompt_indices": np.int32([0])}, r"expected \(4\); one row of prompts"),
    "fewer prompts": ({"prompts": np.array(["a"])}, r"expected \(3\); one text for each row"),
    "scale in a list": ({"cfg_scale": np.float32([2])}, r"a single number: numpy\.float32"),
    "no points": ({"xs": np.zeros((0, 2, 3, 16), "f4")}, r"with N in \[1, 2,147,483,647\]; "),
    "records": ({"ts": np.zeros(4, [("t", "<f2")])}, "save an array of the dtype '<f2' with"),
    "another member": ({"extra": np.zeros(1)}, "each once; save exactly these with numpy"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), REMEDIES.values(), ids=REMEDIES)
def test_a_refusal_says_what_to_do(written, changes, words):
    with pytest.raises(InputError, match=words) as refused:
        import_npz(written(**changes))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timesteps_unique": np.arange(3)}, r"save timesteps_unique\.astype\('<f8'\)"),
        ({"timesteps_unique": np.zeros((2, 2))}, "save it in that shape with numpy.savez"),
        ({"extra": np.zeros(1)}, "none that is expected; leave it out"),
    ],
)
def test_a_refusal_of_statistics_says_what_to_do(tmp_path, changes, words):
    np.savez(tmp_path / "s.npz", **changes)
    with pytest.raises(InputError, match=words):
        open_statistics(tmp_path / "s.npz")
