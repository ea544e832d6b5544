"""Shards: what they keep, what they refuse, and what the safetensors library makes of them."""

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from taqdit.errors import CorruptError, StorageError
from taqdit.store import canonical_json, read_shard, verify_shard, write_shard
from taqdit.store.layout import DTYPES, make_header

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip
arrays = st.sampled_from(list(DTYPES.values())).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
)
tensor_names = st.text(max_size=10).filter(lambda name: name != "__metadata__")


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.dictionaries(tensor_names, arrays, max_size=5),
    index=st.integers() | st.text(),
    extra=st.dictionaries(st.text(min_size=7), json_values, max_size=3),
)
def test_shards_round_trip_bit_for_bit(tensors, index, extra):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        digest = write_shard(path, tensors, kind="test", index=index, metadata=extra)
        shard = read_shard(path, kind="test")
        stored = {"schema": 1, "kind": "test", "index": index, "sha256": digest}
        assert shard.metadata == {**extra, **stored}
        assert_same(shard.tensors, tensors)
        assert_same(safetensors.numpy.load_file(path), tensors)


def assert_same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        assert got[name].tobytes() == array.tobytes()


def test_a_shard_is_byte_for_byte_what_the_library_writes(tmp_path):
    tensors = {
        "b": np.arange(6.0).reshape(2, 3),
        'ä"\n\x01': np.zeros((0, 2)),
        "a": np.float64([1]),
    }
    path = tmp_path / "a.safetensors"
    write_shard(path, tensors, kind="test", index=7, metadata={"text": 'é"\\\x7f'})
    metadata = canonical_json(read_shard(path).metadata)
    assert path.read_bytes() == safetensors.numpy.save(tensors, {"taqdit": metadata})


def test_equal_contents_give_equal_bytes(tmp_path):
    a, b = np.arange(12.0).reshape(3, 4), np.arange(3, dtype=np.int16)
    versions = [
        {"a": a, "b": b},
        {"b": b, "a": np.asfortranarray(a)},
        {"a": np.repeat(a, 2, axis=1)[:, ::2], "b": b.astype(">i2")},
    ]
    for number, tensors in enumerate(versions):
        write_shard(tmp_path / str(number), tensors, kind="k", index=0, metadata={"x": 1, "y": 2})
    assert len({(tmp_path / str(number)).read_bytes() for number in range(3)}) == 1


def test_the_digest_covers_every_part(tmp_path):
    a, path = np.zeros((2, 3), np.float32), tmp_path / "a"
    digests = {
        write_shard(path, {"a": a}, kind="k", index=0),
        write_shard(path, {"a": a}, kind="l", index=0),
        write_shard(path, {"a": a}, kind="k", index=1),
        write_shard(path, {"a": a}, kind="k", index=0, metadata={"x": 1}),
        write_shard(path, {"b": a}, kind="k", index=0),
        write_shard(path, {"a": a.T}, kind="k", index=0),
        write_shard(path, {"a": a.view(np.int32)}, kind="k", index=0),
        write_shard(path, {"a": a + 1}, kind="k", index=0),
        write_shard(path, {"a": a, "b": a[:0]}, kind="k", index=0),
    }
    assert len(digests) == 9


def test_arrays_are_mapped_and_read_only(tmp_path):
    path = tmp_path / "a.safetensors"
    write_shard(path, {"x": np.arange(5, dtype="u1"), "y": np.ones(3)}, kind="k", index=0)
    shard = read_shard(path)
    for array in shard.tensors.values():
        assert not array.flags.writeable
        assert not array.flags.owndata
        assert array.flags.aligned
    path.unlink()  # a reader keeps what it has, whatever becomes of the name
    np.testing.assert_array_equal(shard.tensors["y"], np.ones(3))


def written_long_ago(path, tensors):
    """A shard whose times are the beginning of time, read."""
    write_shard(path, tensors, kind="k", index=0, metadata={"about": "x" * 13})
    os.utime(path, (0, 0))
    return read_shard(path)


def test_a_known_shard_is_mapped_again_without_hashing(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    tensors = {name: np.arange(6).astype(dtype).reshape(2, 3) for name, dtype in DTYPES.items()}
    tensors |= {"none": np.zeros((4, 0, 2), "<f4"), "one": np.array(7.0)}
    known = written_long_ago(path, tensors).known
    monkeypatch.setattr("taqdit.store.shard._digest", None)
    again = known.tensors(path)
    assert again.keys() == tensors.keys()
    for name, array in again.items():
        np.testing.assert_array_equal(array, tensors[name], strict=True)
        assert not array.flags.writeable
        assert array.flags.aligned


def in_place(path, shard):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def in_place_and_dated_back(path, shard):
    time.sleep(0.02)  # some ticks of the file system's clock
    in_place(path, shard)
    os.utime(path, (0, 0))


def another_of_the_name(path, shard):
    other = path.with_name("b")
    write_shard(other, {"x": shard.tensors["x"] + 1}, kind="k", index=0)
    os.utime(other, (0, 0))
    other.replace(path)


def longer(path, shard):
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize("change", [in_place, in_place_and_dated_back, another_of_the_name, longer])
def test_a_known_shard_that_has_changed_is_not_known(tmp_path, change):
    path = tmp_path / "a.safetensors"
    shard = written_long_ago(path, {"x": np.ones(9)})
    assert shard.known.tensors(path)
    change(path, shard)
    assert shard.known.tensors(path) is None


def test_a_known_shard_that_is_gone_or_empty_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    known = written_long_ago(path, {"x": np.ones(9)}).known
    path.write_bytes(b"")
    with pytest.raises(CorruptError, match="it is empty"):
        known.tensors(path)
    path.unlink()
    with pytest.raises(StorageError, match="cannot read"):
        known.tensors(path)


@pytest.mark.parametrize("seconds", [0, 3600], ids=["now", "a clock ahead"])
def test_a_shard_just_written_is_not_known(tmp_path, seconds):
    path = tmp_path / "a.safetensors"
    write_shard(path, {"x": np.ones(9)}, kind="k", index=0)
    os.utime(path, (time.time() + seconds,) * 2)
    assert read_shard(path).known is None


def test_writing_refuses_what_a_shard_cannot_hold(tmp_path):
    path, x = tmp_path / "a.safetensors", np.zeros(1)
    with pytest.raises(ValueError, match="cannot hold index, sha256"):
        write_shard(path, {"x": x}, kind="k", index=0, metadata={"sha256": "", "index": 0})
    with pytest.raises(ValueError, match="cannot be named '__metadata__'"):
        write_shard(path, {"__metadata__": x}, kind="k", index=0)
    with pytest.raises(ValueError, match="JSON"):
        write_shard(path, {"x": x}, kind="k", index=0, metadata={"a": float("nan")})
    with pytest.raises(ValueError, match=r"header has .* are allowed"):
        write_shard(path, {"x": x}, kind="k", index=0, metadata={"a": "x" * 2**21})
    for dtype in (object, complex, "U3", "M8[s]", np.longdouble):
        with pytest.raises(TypeError, match=r"tensor 'x' is .*: allowed are BOOL, U8"):
            write_shard(path, {"x": np.zeros(1, dtype)}, kind="k", index=0)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_of_another_kind_or_schema_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_shard(path, {}, kind="statistics", index=0)
    with pytest.raises(CorruptError, match="of kind 'statistics', not 'trajectory'"):
        verify_shard(path, kind="trajectory")
    monkeypatch.setattr("taqdit.store.shard.SCHEMA", 2)
    with pytest.raises(CorruptError, match="schema is 1, this version reads 2"):
        read_shard(path)


def test_metadata_spelled_otherwise_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    write_shard(path, {}, kind="k", index=0, metadata={"tolerance": 1e-7})
    path.write_bytes(path.read_bytes().replace(b"1e-07", b"1E-07"))
    with pytest.raises(CorruptError, match="do not fit"):
        read_shard(path)


def test_a_missing_shard_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"cannot read .*: No such file"):
        read_shard(tmp_path / "a.safetensors")
    with pytest.raises(StorageError, match=r"cannot read .*: Is a directory"):
        read_shard(tmp_path)


def file_of(fields: object, body: bytes = b"") -> bytes:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + body


OURS = {"__metadata__": {"taqdit": "{}"}}


def one_tensor(body: bytes = bytes(8), **changes: object) -> bytes:
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return file_of({**OURS, "x": tensor}, body)


LONG, ODD, FIT = "header cannot have", "not as it was written", "do not fit its sha256"
HOSTILE = {
    "a header longer than the file": (LONG, (2**20).to_bytes(8, "little") + bytes(100)),
    "a header longer than allowed": (LONG, (2**21 + 1).to_bytes(8, "little") + bytes(2**21 + 1)),
    "a header longer than memory": (LONG, b"\xff" * 100),
    "no header at all": ("no JSON", bytes(8)),
    "not JSON": ("no JSON", file_of(b"{'a': 1}")),
    "not UTF-8": ("no JSON", file_of(b'{"\xff": 1}')),
    "not an object": ("not an object", file_of([1, 2])),
    "nested very deeply": ("too deeply", file_of(b"[" * 60_000)),
    "many empty lists": ("more lists", file_of(b"[" + b"[]," * 500_000 + b"[]]")),
    "a number of many digits": ("no JSON", file_of(b'{"a": ' + b"1" * 10_000 + b"}")),
    "another tool's": ("is no shard", safetensors.numpy.save({"x": np.zeros(2)}, {"format": "np"})),
    "no metadata": ("is no shard", safetensors.numpy.save({"x": np.zeros(2)})),
    "metadata that is a number": ("is no shard", file_of({"__metadata__": 1})),
    "metadata that is no text": ("is no shard", file_of({"__metadata__": {"taqdit": {}}})),
    "two keys of metadata": (ODD, file_of({"__metadata__": {"taqdit": "{}", "more": ""}})),
    "a tensor that is a number": ("no known dtype", file_of({**OURS, "x": 1})),
    "an unknown dtype": ("no known dtype", one_tensor(dtype="BF16")),
    "a dtype that is a list": ("no known dtype", one_tensor(dtype=["F32"])),
    "a negative shape": ("no shape", one_tensor(shape=[-2])),
    "a shape of truth values": ("no shape", one_tensor(shape=[True, 2])),
    "a shape of fractions": ("no shape", one_tensor(shape=[2.0])),
    "a shape that is a number": ("no shape", one_tensor(shape=2)),
    "a huge shape": (ODD, one_tensor(shape=[2**60])),
    "a hole before a tensor": (ODD, one_tensor(bytes(16), data_offsets=[8, 16])),
    "offsets that overlap": (ODD, one_tensor(data_offsets=[0, 4])),
    "an extra field": (ODD, one_tensor(more=1)),
    "a double name": (
        "'x' comes twice",
        file_of(one_tensor()[8:-8].replace(b'"x":', b'"x": 0, "x":'), bytes(8)),
    ),
    "bytes after the end": ("by its header", make_header("{}", []) + b"\0"),
    "metadata that is no JSON": ("no JSON", make_header("x", [])),
    "metadata with NaN": ("not JSON compliant", make_header('{"schema":1,"a":NaN}', [])),
    "metadata beyond floats": ("not JSON compliant", make_header('{"schema":1,"a":1e999}', [])),
    "metadata nested deeply": ("too deeply", make_header('{"schema":1,"a":' + "[" * 60_000, [])),
    "half a character": ("surrogates not allowed", make_header('{"schema":1,"a":"\\ud800"}', [])),
    "metadata without a digest": (FIT, make_header('{"kind":"k","schema":1}', [])),
    "a digest that is a number": (FIT, make_header('{"schema":1,"sha256":1}', [])),
    "another schema": ("schema is 2, this version", make_header('{"schema":2}', [])),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line(case, tmp_path):
    reason, data = HOSTILE[case]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=r"a\.safetensors is corrupt: .+; restore it") as caught:
        read_shard(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("shape", [(0, 2**70), (0, 2**62, 2**62), (0,) * 70])
def test_an_impossible_shape_with_a_right_digest_is_refused(shape, tmp_path):
    class Impossible(np.ndarray):
        shape = property(lambda self: wanted)

    wanted = shape
    write_shard(tmp_path / "a", {"x": np.zeros(0).view(Impossible)}, kind="k", index=0)
    with pytest.raises(CorruptError, match=r"dimension|too big"):
        read_shard(tmp_path / "a")
