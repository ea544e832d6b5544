"""Files that someone else made, on purpose or by accident: refused with one line, cheaply."""

import io
import os
import pickle
import re
import struct
import time
import tracemalloc
import warnings
import zipfile
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger import shows

from taqdit.calibration.imported import import_npz
from taqdit.errors import InputError

MEGABYTE = 2**20


def good() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "xs": rng.standard_normal((4, 2, 2, 16), np.float32),
        "ts": np.float16([1000, 500.5, 8.9, 500.5]),
        "prompt_indices": np.int32([0, 1, 0, 1]),
        "cs": rng.standard_normal((2, 2, 1, 4096), np.float32).astype(np.float16),
        "cs_pooled": rng.standard_normal((2, 2, 8), np.float32).astype(np.float16),
        "prompts": np.array(["a cat", "ein Hündchen"]),
        "cfg_scale": np.array(1.5, np.float32),
    }


def saved(**changes) -> bytes:
    """The good file with other arrays; None takes a member out."""
    arrays = {k: v for k, v in {**good(), **changes}.items() if v is not None}
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=True)
    return out.getvalue()


def members(**changes) -> dict[str, bytes]:
    found = {f"{key}.npy": npy(array) for key, array in good().items()}
    return found | {f"{key}.npy": value for key, value in changes.items()}


def zipped(entries, method=zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")  # a duplicate name
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            archive.writestr(name, content)
    return out.getvalue()


def header(text: str, *, version: bytes = b"\1\0", length: int | None = None) -> bytes:
    body = text.encode("latin-1") + b"\n"
    size = len(body) if length is None else length
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", size) + body


def claims(shape: str, descr: str = "'<f4'", fortran: str = "False") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}")


def poked(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def directory_entry(content: bytes, name: str) -> int:
    """Offset of the member's entry in the zip directory."""
    return content.rindex(b"PK\1\2", 0, content.rindex(f"{name}.npy".encode()))


def local_header(content: bytes, name: str) -> int:
    return content.rindex(b"PK\3\4", 0, content.index(f"{name}.npy".encode()))


def in_directory(name: str, offset: int, value: bytes) -> bytes:
    content = saved()
    return poked(content, directory_entry(content, name) + offset, value)


def in_local_header(name: str, offset: int, value: bytes) -> bytes:
    content = saved()
    return poked(content, local_header(content, name) + offset, value)


def bomb() -> bytes:
    """256 MB of zeros in 256 kB, with a header that agrees."""
    shape = (2**12, 32, 32, 16)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members().items():
            if name != "xs.npy":
                archive.writestr(name, content)
        with archive.open("xs.npy", "w", force_zip64=True) as target:
            target.write(claims(str(shape)))
            for _ in range(256):
                target.write(bytes(MEGABYTE))
    return out.getvalue()


def overlapping() -> bytes:
    """`cs_pooled` made to lie inside `cs`."""
    inner = zipped({"cs_pooled.npy": npy(good()["cs_pooled"])})
    body = inner[: inner.index(b"PK\1\2")]
    cs = npy(good()["cs"])
    hidden = cs[:200] + body + cs[200 + len(body) :]
    content = zipped(members(cs=hidden))
    at = directory_entry(content, "cs_pooled")
    return poked(content, at + 42, struct.pack("<I", content.index(body)))


def zip64_elsewhere() -> bytes:
    """A sound zip64 directory whose locator points somewhere else."""
    content = saved()
    count, length, start = struct.unpack("<HII", content[-12:-2])
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(content) - 23, 1)
    return content[:-22] + record + locator + b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2)


def quines() -> bytes:
    """Two members that share their bytes: the directory names one local header twice."""
    content = saved()
    where = struct.pack("<I", local_header(content, "xs"))
    return poked(content, directory_entry(content, "ts") + 42, where)


class Payload:
    """Unpickling one of these makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def many_members() -> bytes:
    return zipped([(f"{k}.npy", b"") for k in range(3000)])


def with_nan(key: str, value: float = np.nan) -> bytes:
    array = good()[key].copy()
    array[-1] = value
    return saved(**{key: array})


def long_prompt() -> bytes:
    return saved(prompts=np.array(["x" * 2001, "y"]))


def lone_surrogate() -> bytes:
    codes = np.array([[0xD800, 0], [0x61, 0x62]], "<u4")
    return saved(prompts=codes.view("<U2").reshape(2))


def no_character() -> bytes:
    codes = np.array([[0x110000, 0], [0x61, 0x62]], "<u4")
    return zipped(members(prompts=claims("(2,)", "'<U2'") + codes.tobytes()))


HOSTILE = {
    "empty file": (lambda: b"", "does not end as a zip"),
    "text": (lambda: b"a cat\n" * 100, "does not end as a zip"),
    "a bare npy": (lambda: npy(good()["xs"]), "does not end as a zip"),
    "a pickle": (lambda: pickle.dumps([1] * 99), "does not end as a zip"),
    "end record only": (lambda: b"PK\5\6" + bytes(18), "its members are ; expected xs"),
    "truncated": (lambda: saved()[:-100], "does not end"),
    "a comment": (lambda: saved()[:-2] + b"\3\0abc", "does not end"),
    "junk before": (lambda: b"#!/bin/sh\n" + saved(), "directory lists 7 members"),
    "junk after": (lambda: saved() + b"junk", "does not end"),
    "directory elsewhere": (lambda: poked(saved(), -6, b"\0\0\0\0"), "directory lists"),
    "3000 members": (many_members, "lists 3000 members"),
    "false zip64": (lambda: saved()[:-22] + b"PK\6\7" + bytes(16) + saved()[-22:], "zip64"),
    "zip64 elsewhere": (zip64_elsewhere, "zip64"),
    "a comment that is not there": (lambda: saved()[:-2] + b"\5\0", "does not end"),
    "missing member": (lambda: saved(cs=None), "expected xs.npy, .*each once"),
    "another member": (lambda: saved(extra=np.zeros(3)), "'extra.npy'"),
    "parent folder": (
        lambda: zipped({**members(), "../../evil.npy": b""}),
        r"'\.\./\.\./evil\.npy'",
    ),
    "parent folder instead": (
        lambda: zipped({("../xs.npy" if k == "xs.npy" else k): v for k, v in members().items()}),
        r"'\.\./xs\.npy'",
    ),
    "name cut by NUL": (
        lambda: saved(xs_=good()["xs"], xs=None).replace(b"xs_.npy", b"xs.npy\0"),
        r"'xs\.npy\\x00'",
    ),
    "duplicate": (lambda: zipped([*members().items(), ("xs.npy", b"")]), "each once"),
    "overlapping": (overlapping, "overlap"),
    "shared bytes": (quines, "ts.npy is not where"),
    "encrypted": (lambda: in_directory("xs", 8, b"\1\0"), "encrypted"),
    "encrypted locally": (lambda: in_local_header("xs", 6, b"\1\0"), "contradicts"),
    "packed locally": (lambda: in_local_header("xs", 8, b"\x08\0"), "contradicts"),
    "bzip2": (lambda: zipped(members(), zipfile.ZIP_BZIP2), "unusual way"),
    "lzma": (lambda: zipped(members(), zipfile.ZIP_LZMA), "unusual way"),
    "method 99": (lambda: in_directory("xs", 10, b"\x63\0"), "unusual way"),
    "version 99": (lambda: in_directory("xs", 6, b"\x63\0"), "damaged"),
    "sizes differ": (lambda: in_directory("xs", 24, b"\xff\xff\0\0"), "sizes contradict"),
    "beyond the file": (
        lambda: in_directory("cfg_scale", 20, b"\xff\xff\xff\x7f" * 2),
        "overlap each other or the directory",
    ),
    "offset beyond the file": (lambda: in_directory("xs", 42, b"\0\0\0\x7f"), "not where"),
    "bomb": (bomb, "would expand from 26.* to 268,"),
    "not deflate": (
        lambda: poked(
            poked(c := saved(), directory_entry(c, "xs") + 10, b"\x08\0"),
            local_header(c, "xs") + 8,
            b"\x08\0",
        ),
        "xs is not an array",
    ),
    "pickled prompts": (
        lambda: saved(prompts=np.array(["a", "b"], object)),
        r"prompts is an object array, which only pickle .*astype\(str\).*numpy\.savez",
    ),
    "pickled latents": (lambda: saved(xs=np.array([{}], object)), "xs is an object array"),
    "no header": (lambda: zipped(members(xs=b"\x93NUMP")), "xs is not an array"),
    "unknown version": (
        lambda: zipped(members(xs=header("{}", version=b"\x09\0"))),
        "not an array",
    ),
    "header of 4 GB": (
        lambda: zipped(members(xs=header("{}", version=b"\2\0", length=2**32 - 1))),
        "not a plain array",
    ),
    "header over numpy's limit": (
        lambda: zipped(
            members(xs=header(claims("(4, 2, 2, 16)")[10:-1].decode().ljust(10_000)) + bytes(1024))
        ),
        "not a plain array",
    ),
    "header that computes": (lambda: zipped(members(xs=claims("(9**9**9,)"))), "not a plain array"),
    "header that nests": (
        lambda: zipped(members(xs=claims("(" * 4000 + ")" * 4000))),
        "not a plain array",
    ),
    "structured dtype": (lambda: saved(ts=np.zeros(4, [("a", "<f2")])), "not a plain array"),
    "182 TiB": (lambda: zipped(members(xs=claims("(50000000, 1024, 1024, 16)"))), "claims 3,35"),
    "overflowing shape": (
        lambda: zipped(members(xs=claims(f"({2**62}, {2**62}, {2**62}, 16)"))),
        "has the shape",
    ),
    "5,000 digits": (lambda: zipped(members(xs=claims(f"({'9' * 5000}, 2, 2, 16)"))), "the shape"),
    "negative length": (lambda: zipped(members(xs=claims("(-4, 2, 2, 16)"))), "not a plain array"),
    "more data than shape": (lambda: zipped(members(xs=npy(good()["xs"]) + b"\0")), "claims"),
    "less data than shape": (lambda: zipped(members(xs=npy(good()["xs"])[:-1])), "claims"),
    "no points": (
        lambda: saved(
            xs=np.zeros((0, 2, 2, 16), "f4"), ts=np.zeros(0, "f2"), prompt_indices=np.zeros(0, "i4")
        ),
        "xs has the shape",
    ),
    "float64 latents": (lambda: saved(xs=good()["xs"].astype("f8")), "'<f8'; expected '<f4'"),
    "big-endian latents": (lambda: saved(xs=good()["xs"].astype(">f4")), "'>f4'"),
    "float timesteps": (lambda: saved(ts=good()["ts"].astype("f4")), "ts has the dtype '<f4'"),
    "int64 indices": (lambda: saved(prompt_indices=np.int64([0, 1, 0, 1])), "'<i8'"),
    "byte prompts": (lambda: saved(prompts=np.array([b"a", b"b"])), "prompts has the dtype"),
    "dates": (lambda: saved(ts=np.zeros(4, "M8[s]")), "ts has the dtype"),
    "Fortran order": (lambda: saved(xs=np.asfortranarray(good()["xs"])), "ascontiguousarray"),
    "three channels": (lambda: saved(xs=np.zeros((4, 2, 2, 3), "f4")), r"\(N, h, w, 16\)|, 16\)"),
    "flat latents": (lambda: saved(xs=np.zeros((4, 64), "f4")), "xs has the shape"),
    "fewer timesteps": (lambda: saved(ts=good()["ts"][:3]), r"ts has the shape \(3,\); .*\(4\)"),
    "narrow tokens": (lambda: saved(cs=np.zeros((2, 2, 1, 4095), "f2")), "4096"),
    "more conditioning": (lambda: saved(cs_pooled=np.zeros((3, 2, 8), "f2")), "cs_pooled has the"),
    "NaN in xs": (lambda: with_nan("xs"), r"xs\[3\] holds NaN"),
    "infinite xs": (lambda: with_nan("xs", np.inf), r"xs\[3\] holds NaN or Inf"),
    "NaN in cs": (lambda: with_nan("cs"), r"cs\[1\] holds NaN"),
    "NaN timestep": (lambda: with_nan("ts"), r"ts\[3\] holds NaN"),
    "timestep 1001": (lambda: with_nan("ts", 1001), r"ts must lie in \[0, 1000\]"),
    "timestep -1": (lambda: with_nan("ts", -1), r"ts must lie in \[0, 1000\]"),
    "NaN scale": (lambda: saved(cfg_scale=np.array(np.nan, "f4")), "cfg_scale.* holds NaN"),
    "scale is a list": (lambda: saved(cfg_scale=np.array([1.5], "f4")), "cfg_scale has the shape"),
    "index beyond": (lambda: saved(prompt_indices=np.int32([0, 1, 2, 0])), r"\[0, 1\]"),
    "negative index": (lambda: saved(prompt_indices=np.int32([0, 1, -1, 0])), r"\[0, 1\]"),
    "control character": (lambda: saved(prompts=np.array(["a\x1b[2J", "b"])), r"U\+001B"),
    "bidi": (lambda: saved(prompts=np.array(["a", "b\u202e"])), r"prompt 1: U\+202E"),
    "long prompt": (long_prompt, "2,001 characters"),
    "lone surrogate": (lone_surrogate, "no characters"),
    "no character": (no_character, "no characters"),
}


@pytest.mark.parametrize("name", HOSTILE)
@shows("P16", "hostile .npz of a calibration set: refused in 1 s and 20 MB", trials=1)
def test_hostile_npz(tmp_path, name):
    make, message = HOSTILE[name]
    path = tmp_path / "foreign.npz"
    path.write_bytes(make())
    before = sorted(tmp_path.iterdir())
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        import_npz(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * MEGABYTE
    assert time.process_time() - began < 1
    text = str(caught.value)
    assert text.startswith(str(path))
    text = text.removeprefix(str(path))  # the path holds the test's name
    assert re.search(message, text), text
    assert text.isprintable()
    assert len(text) < 500
    assert sorted(tmp_path.iterdir()) == before


def test_the_good_file_is_accepted(tmp_path):
    (tmp_path / "good.npz").write_bytes(saved())
    points = import_npz(tmp_path / "good.npz")
    assert points.steps.tolist() == [0, 1, 2]
    assert [point.prompt for point in points] == ["a cat", "ein Hündchen"] * 2


@shows("P16", "a pickle in each array of a calibration set: not run", trials=7)
def test_no_pickle_is_run(tmp_path):
    target = tmp_path / "made by the pickle"
    for key in good():
        content = saved(**{key: np.array([Payload(target)], object)})
        (tmp_path / "c.npz").write_bytes(content)
        with pytest.raises(InputError, match=f"{key} is an object array"):
            import_npz(tmp_path / "c.npz")
    # the same bytes under an honest dtype are only numbers
    raw = pickle.dumps(Payload(target))[:8]
    (tmp_path / "c.npz").write_bytes(zipped(members(ts=claims("(4,)", "'<f2'") + raw)))
    with suppress(InputError):
        import_npz(tmp_path / "c.npz")
    assert not target.exists()


def test_things_that_are_not_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    for path, message in [
        (tmp_path / "pipe.npz", "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "none.npz", "No such file"),
        ("a\0b.npz", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=message):
            import_npz(path)


@pytest.mark.parametrize("key", good())
@shows("P16", "one bit flipped in an array of a foreign .npz", trials=40)
def test_one_flipped_bit_anywhere_in_a_member_is_found(tmp_path, key):
    content = saved()
    start = local_header(content, key) + 30 + len(key) + 4
    data = npy(good()[key])
    begin = content.index(data, start)
    for at in np.linspace(begin, begin + len(data) - 1, 40, dtype=int):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        (tmp_path / "c.npz").write_bytes(flipped)
        with pytest.raises(InputError):
            import_npz(tmp_path / "c.npz")


def test_a_flipped_bit_in_compressed_latents_is_found(tmp_path):
    content = bytearray(zipped(members(), zipfile.ZIP_DEFLATED))
    begin = local_header(bytes(content), "xs") + 100
    refused = 0
    for at in range(begin, begin + 400, 10):
        flipped = bytearray(content)
        flipped[at] ^= 4
        (tmp_path / "c.npz").write_bytes(flipped)
        with pytest.raises(InputError):
            import_npz(tmp_path / "c.npz")
        refused += 1
    assert refused == 40


def test_a_compressed_member_longer_or_shorter_than_it_says(tmp_path):
    entries = members()
    packed = zipped(entries, zipfile.ZIP_DEFLATED)
    at = directory_entry(packed, "xs")
    (size,) = struct.unpack_from("<I", packed, at + 24)
    for wrong in (size - 1, size + 1, size + MEGABYTE):
        (tmp_path / "c.npz").write_bytes(poked(packed, at + 24, struct.pack("<I", wrong)))
        with pytest.raises(InputError):
            import_npz(tmp_path / "c.npz")
    # a stream that ends early, under sizes, checksum and header that agree with each other
    honest = entries["xs.npy"]
    short = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = short.compress(honest[:-64]) + short.flush()
    content = bytearray(zipped({**entries, "xs.npy": stream}))
    for place, method_at in (
        (local_header(content, "xs"), 8),
        (directory_entry(content, "xs"), 10),
    ):
        content[place + method_at : place + method_at + 2] = b"\x08\0"
    at = directory_entry(content, "xs")
    content[at + 24 : at + 28] = struct.pack("<I", len(honest))
    content[at + 16 : at + 20] = struct.pack("<I", zlib.crc32(honest))
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(InputError, match="ends early"):
        import_npz(tmp_path / "c.npz")


RAW, PACKED = saved(), zipped(members(), zipfile.ZIP_DEFLATED)


@st.composite
def mutations(draw):
    """A valid file with bytes changed, cut, doubled or inserted; mostly where structure lies."""
    content = bytearray(draw(st.sampled_from([RAW, PACKED])))
    structure = [k for k in range(len(content)) if content[k : k + 2] == b"PK"]
    for _ in range(draw(st.integers(1, 4))):
        near = draw(st.sampled_from([*structure, None]))
        last = len(content) - 1
        at = draw(st.integers(0, last)) if near is None else near + draw(st.integers(0, 140))
        at = min(at, last)
        action = draw(st.sampled_from(["set", "set", "flip", "cut", "insert", "move"]))
        if action == "set":
            content[at : at + 1] = draw(st.binary(min_size=1, max_size=8))
        elif action == "flip":
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "cut":
            del content[at : at + draw(st.integers(1, 64))]
        elif action == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=64))
        else:
            source = draw(st.integers(0, last))
            content[at : at + 32] = content[source : source + 32]
        if len(content) < 2:
            break
    return bytes(content)


@shows("P16", "mutated .npz: refused, or the right data", trials=400)
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations())
@pytest.mark.slow
def test_a_mutated_file_is_refused_or_right(tmp_path, content):
    path = tmp_path / "mutated.npz"
    path.write_bytes(content)
    try:
        points = import_npz(path)
    except InputError:
        return
    for key, array in good().items():
        np.testing.assert_array_equal(points._arrays[key], array)
