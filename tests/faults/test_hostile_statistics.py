"""Diagnostics that someone else made: refused with one line, cheaply, or read as they are."""

import io
import os
import pickle
import re
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from exported import TIMESTEPS, claims, npy, older, saved, zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger import shows

from taqdit.activations.opened import open_statistics
from taqdit.errors import InputError

MEGABYTE = 2**20
T0, T1 = (f"{timestep:.6f}" for timestep in TIMESTEPS[:2])
MEAN = f"mm_00_img::t={T1}::mean"


def good() -> dict[str, np.ndarray]:
    """Two sites at two timesteps."""
    rng = np.random.default_rng(0)
    arrays = older({"mm_00_img": rng.normal(size=(2, 50, 4)), "mm_01_txt": np.ones((2, 9, 3))})
    return {**arrays, "timesteps_unique": np.float32(TIMESTEPS[[1, 0]])}


def members() -> list[tuple[str, bytes]]:
    return [(f"{name}.npy", npy(array)) for name, array in good().items()]


def file(changes=None, **named) -> bytes:
    """The good file with other arrays; None takes a member out."""
    arrays = {**good(), **(changes or {}), **named}
    return saved({name: array for name, array in arrays.items() if array is not None})


def with_(stat: str, array, *, site: str = "mm_00_img", time: str = T1) -> bytes:
    return file({f"{site}::t={time}::{stat}": array})


def changed(stat: str, value: float) -> bytes:
    """One number of an array replaced."""
    array = good()[f"mm_00_img::t={T1}::{stat}"].astype(np.float64)
    array[1] = value
    return with_(stat, array)


def renamed(old: str, new: str) -> bytes:
    return saved({name.replace(old, new): array for name, array in good().items()})


def raw(name: str, content: bytes) -> bytes:
    """A member of any bytes."""
    return zipped([(n, content if n == f"{name}.npy" else c) for n, c in members()])


def bomb() -> bytes:
    """200 MB of zeros in small members whose headers agree, in 200 kB."""
    content = claims("(65536,)") + bytes(65536 * 8)
    entries = [
        (f"mm_{block:02d}_img::t={step}.000000::{stat}.npy", content)
        for block in range(20)
        for step in range(4)
        for stat in ("mean", "std", "min", "max", "count")
    ]
    return zipped(entries, zipfile.ZIP_DEFLATED)


def one_bomb() -> bytes:
    """One member of 256 MB."""
    out = io.BytesIO()
    archive = zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open(f"{MEAN}.npy", "w", force_zip64=True) as target:
        target.write(claims("(33554432,)"))
        for _ in range(256):
            target.write(bytes(MEGABYTE))
    return out.getvalue()


def uncounted() -> bytes:
    """A directory that lists more members than it says."""
    content = bytearray(file())
    content[-14:-10] = struct.pack("<HH", 1, 1)
    return bytes(content)


def overcounted() -> bytes:
    content = bytearray(file())
    content[-14:-10] = struct.pack("<HH", 60_000, 60_000)
    return bytes(content)


class Payload:
    """Unpickling one of these makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


edges = np.linspace(-8, 8, 513)
HOSTILE = {
    "empty file": (lambda: b"", "does not end as a zip"),
    "text": (lambda: b"mm_00_img\n" * 100, "does not end as a zip"),
    "a pickle": (lambda: pickle.dumps([1] * 99), "does not end as a zip"),
    "no member": (lambda: b"PK\5\6" + bytes(18), "timesteps_unique is missing"),
    "truncated": (lambda: file()[:-100], "does not end"),
    "junk before": (lambda: b"#!/bin/sh\n" + file(), "directory lists 26 members"),
    "members that are not counted": (uncounted, "directory lists 1 members"),
    "members that are not there": (overcounted, "directory lists 60000 members"),
    "no timesteps": (lambda: file(timesteps_unique=None), "timesteps_unique is missing"),
    "no edges": (lambda: file(histogram_bin_edges=None), "histogram_bin_edges is missing"),
    "no site": (
        lambda: saved({k: v for k, v in good().items() if "::" not in k}),
        "it holds no site",
    ),
    "a gap": (lambda: with_("std", None), f"mm_00_img::t={T1}::std is missing"),
    "a gap in another": (
        lambda: with_("histogram", None, site="mm_01_txt", time=T0),
        f"mm_01_txt::t={T0}::histogram is missing",
    ),
    "no mean at all": (
        lambda: file({f"mm_00_img::t={t}::mean": None for t in (T0, T1)}),
        "mm_00_img has no mean",
    ),
    "another member": (lambda: file(extra=np.zeros(3)), "'extra.npy' is none that is expected"),
    "no array": (lambda: zipped([*members(), ("readme.txt", b"")]), "'readme.txt' is none"),
    "name alone": (lambda: zipped([*members(), ("timesteps_unique", b"")]), "is none that"),
    "another number": (lambda: with_("p99", np.zeros(4)), "::p99.npy' is none"),
    "another site": (lambda: renamed("mm_01_txt", "mm_1_txt"), "'mm_1_txt.* is none"),
    "a site of nobody": (lambda: renamed("mm_01_txt", "mm_01_txt_v_in"), "is none"),
    "other digits": (lambda: renamed("mm_01_txt", "mm_٠١_txt"), "is none"),
    "parent folder": (lambda: renamed("mm_01_txt", "../../mm_01_txt"), r"'\.\./\.\./mm_01.* none"),
    "absolute": (lambda: renamed("mm_01_txt", "/etc/mm_01_txt"), "'/etc/mm.* is none"),
    "control characters": (lambda: renamed("mm_01_txt", "mm\x1b[2J"), r"\\x1b\[2J.* is none"),
    "a long name": (lambda: renamed("mm_01_txt", "m" * 9000), "'m{60}' is none"),
    "duplicate": (lambda: zipped([*members(), (f"{MEAN}.npy", b"")]), "is there twice"),
    "one site twice": (
        lambda: saved(
            renamed_all({"mm_00_img": "pre::mm_02_img", "mm_01_txt": "mm_02_img_fc1_in"})
        ),
        "one site stands there under two names",
    ),
    "bzip2": (lambda: zipped(members(), zipfile.ZIP_BZIP2), "unusual way"),
    "bomb": (bomb, "it would expand from .* to 209,7"),
    "one bomb": (one_bomb, "would expand from 26.* to 268,"),
    "pickled mean": (lambda: with_("mean", np.array([{}] * 4, object)), "is an object array"),
    "pickled timesteps": (
        lambda: file(timesteps_unique=np.array([1, 2], object)),
        "timesteps_unique is an object array",
    ),
    "pickled format": (lambda: file(format=np.array({}, object)), "format is an object array"),
    "header that computes": (lambda: raw(MEAN, claims("(9**9**9,)")), "not a plain array"),
    "182 TiB": (lambda: raw(MEAN, claims("(25000000000000,)")), "has the shape"),
    "less data than shape": (lambda: raw(MEAN, claims("(4,)") + bytes(31)), "claims"),
    "more channels than any": (lambda: raw(MEAN, claims("(65537,)")), "has the shape"),
    "no channel": (lambda: with_("mean", np.zeros(0)), "has the shape"),
    "channels differ": (lambda: with_("max", np.ones(5)), r"max has the shape .*expected \(4\)"),
    "channels differ in time": (
        lambda: file(
            {f"mm_00_img::t={T1}::{n}": np.ones(5) for n in ("mean", "std", "min", "max")}
        ),
        r"has the shape \(5,\); expected \(4\)",
    ),
    "flat histogram": (lambda: with_("histogram", np.zeros((2, 256))), "histogram has the shape"),
    "511 bins": (lambda: with_("histogram", np.zeros(511)), "histogram has the shape"),
    "outside of three": (lambda: with_("outside", np.zeros(3)), "outside has the shape"),
    "a scalar mean": (lambda: with_("mean", np.array(1.0)), "mean has the shape"),
    "counts of one channel": (lambda: with_("count", np.int64([50])), "count has the shape"),
    "fractional count": (lambda: with_("count", np.array(50.0)), "count has the dtype '<f8'"),
    "complex": (lambda: with_("mean", np.zeros(4, complex)), "has the dtype"),
    "dates": (lambda: with_("mean", np.zeros(4, "M8[s]")), "has the dtype"),
    "text in it": (lambda: with_("mean", np.array(["1"] * 4)), "has the dtype '<U1'"),
    "integers": (lambda: with_("mean", np.ones(4, "i8")), "has the dtype '<i8'"),
    "big-endian": (lambda: with_("mean", np.ones(4, ">f8")), "has the dtype '>f8'"),
    "structured": (lambda: with_("mean", np.zeros(4, [("a", "f8")])), "not a plain array"),
    "NaN": (lambda: changed("mean", np.nan), r"::mean\[1\] holds NaN"),
    "infinite": (lambda: changed("max", np.inf), r"::max\[1\] holds NaN or Inf"),
    "beyond float32": (lambda: changed("max", 1e300), r"::\*: max must lie in"),
    "below float32": (lambda: changed("min", -1e300), "min must lie in"),
    "min above max": (lambda: changed("min", 99), "min is larger than max in channel 1"),
    "negative std": (lambda: changed("std", -1), r"std must lie in \[0, "),
    "negative count": (lambda: with_("count", np.array(-50)), "count must lie in"),
    "count that overflows": (lambda: with_("count", np.array(2**62)), "count must lie in"),
    "unsigned count that overflows": (
        lambda: with_("count", np.array(2**64 - 1, np.uint64)),
        "count must lie in",
    ),
    "negative bin": (lambda: changed("histogram", -1), "histogram must lie in"),
    "a bin too full": (
        lambda: changed("histogram", 1e6),
        "histogram holds 1,000,200 values, count",
    ),
    "fewer values than counted": (
        lambda: with_("histogram", np.zeros(512)),
        "histogram holds 0 values of 200",
    ),
    "outside that does not fit": (
        lambda: with_("outside", np.array([5.0, 0])),
        "histogram holds 205 values, count 200",
    ),
    "too little outside": (
        lambda: file(
            {
                f"mm_00_img::t={T1}::histogram": np.zeros(512),
                f"mm_00_img::t={T1}::max": np.full(4, 99.0),
                f"mm_00_img::t={T1}::outside": np.array([5.0, 0]),
            }
        ),
        "histogram holds 5 values of 200",
    ),
    "other edges": (lambda: file(histogram_bin_edges=edges * 2), "513 even edges"),
    "uneven edges": (
        lambda: file(histogram_bin_edges=np.sort(np.r_[edges[:-1], 7.99])),
        "513 even edges",
    ),
    "too few edges": (lambda: file(histogram_bin_edges=edges[1:]), "edges has the shape"),
    "fewer timesteps": (
        lambda: file(timesteps_unique=np.float32(TIMESTEPS[:1])),
        "lists others than the 2 timesteps",
    ),
    "more timesteps": (
        lambda: file(timesteps_unique=np.float32(TIMESTEPS)),
        "lists others than the 2 timesteps",
    ),
    "other timesteps": (
        lambda: file(timesteps_unique=np.float32([1000, 500])),
        "lists others than the 2",
    ),
    "no timestep": (lambda: file(timesteps_unique=np.float32([])), "has the shape"),
    "NaN timestep": (lambda: file(timesteps_unique=np.float32([1000, np.nan])), "holds NaN"),
    "timestep 1001": (
        lambda: saved(
            {
                **renamed_all({T0: "1001.000000"}),
                "timesteps_unique": np.float32([1001, TIMESTEPS[1]]),
            }
        ),
        r"must lie in \[0, 1000\]",
    ),
    "a timestep spelt otherwise": (lambda: renamed(T1, f"0{T1}"), "is none"),
    "a timestep in powers": (lambda: renamed(T1, "6.1e2"), "is none"),
    "a negative timestep": (lambda: renamed(T1, f"-{T1}"), "is none"),
    "format is a list": (lambda: file(format=np.array(["a", "b"])), "format has the shape"),
    "format is no text": (lambda: file(format=np.array(1.0)), "format has the dtype"),
}


def renamed_all(names: dict[str, str]) -> dict[str, np.ndarray]:
    arrays = good()
    for old, new in names.items():
        arrays = {name.replace(old, new): array for name, array in arrays.items()}
    return arrays


@pytest.mark.parametrize("name", HOSTILE)
@shows("P16", "hostile .npz of activation statistics: refused in 1 s and 20 MB", trials=1)
def test_hostile_diagnostics(tmp_path, name):
    make, message = HOSTILE[name]
    path = tmp_path / "foreign.npz"
    path.write_bytes(make())
    before = sorted(tmp_path.iterdir())
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        open_statistics(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * MEGABYTE
    assert time.process_time() - began < 1
    text = str(caught.value)
    assert text.startswith(str(path))
    text = text.removeprefix(str(path))
    assert re.search(message, text), text
    assert text.isprintable()
    assert len(text) < 500
    assert sorted(tmp_path.iterdir()) == before


def test_the_good_file_is_accepted(tmp_path):
    for content in (file(), saved(good(), compressed=True), file(format=np.array("by hand"))):
        (tmp_path / "good.npz").write_bytes(content)
        found = open_statistics(tmp_path / "good.npz")
        assert [site.label for site in found.sites] == ["mm_00_img", "mm_01_txt"]
        assert [site.width for site in found.sites] == [4, 3]
        assert found.overview().high[1].tolist() == [1, 1]


def test_no_more_members_than_a_file_may_have(tmp_path, monkeypatch):
    (tmp_path / "good.npz").write_bytes(file())
    monkeypatch.setattr("taqdit.activations.diagnostics_reader.MAX_MEMBERS", 26)
    open_statistics(tmp_path / "good.npz")
    monkeypatch.setattr("taqdit.activations.diagnostics_reader.MAX_MEMBERS", 25)
    with pytest.raises(InputError, match="lists 26 members"):
        open_statistics(tmp_path / "good.npz")


@shows("P16", "a pickle in an array of activation statistics: not run", trials=4)
def test_no_pickle_is_run(tmp_path):
    target = tmp_path / "made by the pickle"
    for name in ("timesteps_unique", "histogram_bin_edges", "format", MEAN):
        content = file({name: np.array([Payload(target)], object)})
        (tmp_path / "s.npz").write_bytes(content)
        with pytest.raises(InputError, match="is an object array"):
            open_statistics(tmp_path / "s.npz")
    assert not target.exists()


@pytest.mark.parametrize("name", ["timesteps_unique", "histogram_bin_edges", MEAN])
def test_one_flipped_bit_in_a_member_is_found(tmp_path, name):
    content, data = file(), npy(good()[name])
    begin = content.index(data, content.index(f"{name}.npy".encode()))
    for at in np.linspace(begin, begin + len(data) - 1, 40, dtype=int):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        (tmp_path / "s.npz").write_bytes(flipped)
        with pytest.raises(InputError):
            open_statistics(tmp_path / "s.npz")


RAW, PACKED = file(), saved(good(), compressed=True)


@shows("P16", "mutated .npz: refused, or the right data", trials=200)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mutated_file_is_refused_or_right(tmp_path, data):
    content = bytearray(data.draw(st.sampled_from([RAW, PACKED])))
    structure = [k for k in range(len(content)) if content[k : k + 2] == b"PK"]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(structure)) + data.draw(st.integers(0, 120))
        at = min(at, len(content) - 1)
        action = data.draw(st.sampled_from(["set", "flip", "cut", "insert"]))
        if action == "set":
            content[at : at + 1] = data.draw(st.binary(min_size=1, max_size=8))
        elif action == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif action == "cut":
            del content[at : at + data.draw(st.integers(1, 64))]
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=64))
    path = tmp_path / "mutated.npz"
    path.write_bytes(content)
    try:
        found = open_statistics(path)
    except InputError:
        return
    for name, array in good().items():
        np.testing.assert_array_equal(found._arrays[name], array)
