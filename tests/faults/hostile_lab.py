"""Files that nobody should open, for every place where taqdit opens one.

As a program: `python hostile_lab.py FOLDER` opens all of them, one by one, and prints as JSON what
came of it per loader: how many, the slowest, the most memory, and what went wrong.
"""

import io
import json
import logging
import struct
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/

import numpy as np
from faults import test_hostile_files, test_hostile_statistics
from faults.forging import Parts, canonical, framed
from faults.measuring import cost
from PIL import Image

from taqdit.activations.opened import open_statistics
from taqdit.calibration.imported import import_npz
from taqdit.errors import CorruptError, TaqditError
from taqdit.models.sources import TinySource
from taqdit.prompts import options as prompts
from taqdit.report.comparison.result import read as read_result
from taqdit.runs.api import open_run
from taqdit.store import Stage, plain_yaml, read_shard, sha256_hex
from taqdit.store.journal import read_journal
from taqdit.store_tools.foreign_images import ForeignImages
from taqdit.trajectories.pictures import picture_owner, read_picture, write_picture

MEGABYTE = 2**20
DEEP = [b"[" * 10**5, b'{"a":' * 10**5, b"[" * 10**5 + b"]" * 10**5, b'{"a":' + b"[" * 10**5]
Files = dict[str, Any]


def nested(depth: int):
    found = []
    for _ in range(depth):
        found = [found]
    return found


# --- safetensors: what any header may say that it should not ------------------------------------


def headers(about: dict) -> Files:
    """Files of two tensors whose headers lie; `about` is what stands under __metadata__."""
    good = {
        "__metadata__": about,
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]},
    }
    body = bytes(32)

    def with_(name="b", **changes) -> bytes:
        return framed({**good, name: {**good["b"], **changes}}, body)

    def named(name: str) -> bytes:
        return framed({**good, name: good["b"], "b": {**good["b"], "data_offsets": [32, 48]}}, body)

    right = framed(good, body)
    many = {f"t{k}": {"dtype": "F32", "shape": [0], "data_offsets": [32, 32]} for k in range(10**5)}
    found = {
        "empty": b"",
        "seven bytes": bytes(7),
        "a length alone": (2**63).to_bytes(8, "little"),
        "a length of 2^64 - 1": b"\xff" * 8 + right[8:],
        "a length of 100 MB": framed(good, body, length=100_000_000),
        "a length one too long": framed(good, body, length=int.from_bytes(right[:8], "little") + 1),
        "a length of zero": framed(good, body, length=0),
        "a header of 2 MB": framed({**good, "x": "y" * 2 * MEGABYTE}, body),
        "a header of 2 MB of spaces": framed(b" " * 2 * MEGABYTE, body),
        "not JSON": framed(b"{'a': 1}", body),
        "not UTF-8": framed(b'{"\xff\xfe": 1}', body),
        "UTF-16": framed('{"a": 1}'.encode("utf-16"), body),
        "a list": framed([good], body),
        "a number": framed(1, body),
        "null": framed(b"null", body),
        "a number of 10,000 digits": framed(b'{"a":' + b"9" * 10_000 + b"}", body),
        "half a million lists": framed(b'{"a":[' + b"[]," * 160_000 + b"[]]}", body),
        "a hundred thousand objects": framed(b'{"a":[' + b'{"":0},' * 70_000 + b"0]}", body),
        "a key twice": framed(right[8:-32].replace(b'"b":', b'"a":'), body),
        "metadata twice": framed(right[8:-32].replace(b'"b":', b'"__metadata__":'), body),
        "metadata that is a list": framed({**good, "__metadata__": []}, body),
        "metadata of numbers": framed({**good, "__metadata__": {"taqdit": 1}}, body),
        "metadata of lists": framed({**good, "__metadata__": {"taqdit": [nested(50)]}}, body),
        "overlap": with_(data_offsets=[8, 24]),
        "the same bytes twice": with_(data_offsets=[0, 16]),
        "a hole": framed({**good, "b": {**good["b"], "data_offsets": [20, 36]}}, bytes(36)),
        "negative offsets": with_(data_offsets=[-16, 0]),
        "offsets backwards": with_(data_offsets=[32, 16]),
        "offsets beyond the file": with_(shape=[2**30], data_offsets=[16, 16 + 2**32]),
        "offsets of 2^64": with_(data_offsets=[16, 2**64 + 32]),
        "offsets that are floats": with_(data_offsets=[16.0, 32.0]),
        "offsets that are bools": framed(
            {"__metadata__": about, "a": {**good["a"], "data_offsets": [False, True]}}, b"\0"
        ),
        "offsets that are texts": with_(data_offsets=["16", "32"]),
        "three offsets": with_(data_offsets=[16, 24, 32]),
        "no offsets": framed({**good, "b": {"dtype": "F32", "shape": [4]}}, body),
        "a product that overflows": with_(shape=[2**32, 2**32]),
        "a product that overflows to the right size": with_(shape=[2**62 + 1, 4]),
        "zero times a lot": with_(shape=[0, 2**70], data_offsets=[16, 16]),
        "negative lengths": with_(shape=[-2, -2]),
        "lengths that are floats": with_(shape=[4.0]),
        "lengths that are bools": with_(shape=[True, 4]),
        "lengths that are texts": with_(shape=["4"]),
        "a length of 4,000 digits": with_(shape=[10**4000]),
        "10,000 axes": with_(shape=[1] * 10_000 + [4]),
        "10,000 axes of many digits": with_(shape=[10**40] * 10_000),
        "a shape that is a number": with_(shape=4),
        "a shape that is an object": with_(shape={"0": 4}),
        "no such dtype": with_(dtype="F31"),
        "an object's dtype": with_(dtype="O"),
        "a dtype that is a list": with_(dtype=["F32"]),
        "a dtype that is null": with_(dtype=None),
        "another size of dtype": with_(dtype="F64"),
        "a tensor that is a number": framed({**good, "b": 3}, body),
        "a tensor that is null": framed({**good, "b": None}, body),
        "a tensor that is a list": framed({**good, "b": [good["b"]]}, body),
        "100,000 tensors": framed({**good, **many}, body),
        "a byte more": right + b"\0",
        "a byte less": right[:-1],
        "no body": right[:-32],
        "a name with ../": named("../../etc/passwd"),
        "a name with NUL": named("a\0b"),
        "a name turned around": named("\u202eb"),
        "a name of lines": named("b\n\x1b[2J" * 99),
        "half a character": named("\ud800"),
    }
    for number, deep in enumerate(DEEP):
        found[f"deep nesting {number}"] = framed(deep[: 2**19 - 8], body)
    return found


def shards() -> Files:
    """Headers that lie, with metadata whose digest was made of the very lie where there is one;
    then right headers over metadata and tensors that lie, their digest made anew."""
    array = ["F32", [4], bytes(16)]
    about = {"schema": 1, "kind": "k", "index": 0}
    text = canonical({**about, "sha256": Parts(about, {"a": array, "b": array}).digest()})
    found = {f"header: {name}": data for name, data in headers({"taqdit": text}).items()}

    def forged(tensors=None, fields=None, **metadata) -> bytes:
        parts = Parts({**about, **metadata}, {"a": array} if tensors is None else tensors)
        return parts.file(anew=True, fields=fields)

    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    lies = {
        "offsets moved": {"data_offsets": [16, 32]},
        "offsets widened": {"data_offsets": [0, 32]},
        "offsets as floats": {"data_offsets": [0.0, 16.0]},
        "a dtype of the same size": {"dtype": "BF16"},
        "one thing more": {"x": 0},
    }
    for name, lie in lies.items():
        found[f"anew: {name}"] = forged(fields={"a": {**entry, **lie}})
    for name, shape in {
        "zeros beyond numpy": [0, 2**62, 2**62],
        "70 axes": [0] * 70,
        "10,000 axes": [0] * 10_000,
        "2^63 times 0": [2**63, 0],
    }.items():
        found[f"anew: {name}"] = forged({"a": ["F32", shape, b""]})
    for name, dtype in {"no dtype": "X8", "an object": "O", "bfloat16": "BF16"}.items():
        found[f"anew: {name}"] = forged({"a": [dtype, [4], bytes(16)]})
    for name, tensor in {"path": "../a", "NUL": "a\0", "bidi": "\u202ea", "empty": ""}.items():
        found[f"anew: a name, {name}"] = forged({tensor: array})
    for name, changes in {
        "another schema": {"schema": 2},
        "a schema that is true": {"schema": True},
        "a schema of 300 digits": {"schema": 10**300},
        "another kind": {"kind": "../../x\n\x1b[2J"},
        "a kind that is a list": {"kind": nested(60)},
        "a kind of 100 kB": {"kind": "x" * 10**5},
        "metadata of 100,000 lists": {"x": [[]] * 10**5},
        "metadata of 50,000 objects": {"x": [{"": 0}] * 50_000},
        "metadata of 400 kB": {"x": "[" * 400_000},
        "metadata nested 900 deep": {"x": nested(900)},
        "metadata with a number of 4,000 digits": {"x": 10**4000},
    }.items():
        found[f"anew: {name}"] = forged(**changes)
    found["anew: 20,000 tensors"] = forged({f"t{k}": ["F32", [0], b""] for k in range(20_000)})
    return found


# --- PNG ----------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width=4, height=4, *, before=(), after=(), depth=8, color=2, pixels=None, lace=0) -> bytes:
    about = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, lace)
    rows = pixels if pixels is not None else zlib.compress(bytes(height * (1 + 3 * width)))
    chunks = [chunk(b"IHDR", about), *before, chunk(b"IDAT", rows), *after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def squeezed(size: int) -> bytes:
    """So many zeros, compressed a thousandfold, made piece by piece."""
    pack = zlib.compressobj(9)
    pieces = [pack.compress(bytes(MEGABYTE)) for _ in range(size // MEGABYTE)]
    return b"".join(pieces) + pack.flush()


def pictures(owner: str) -> Files:
    """Pictures that are none, or far more than one; most name their `owner` as they should."""
    mine = chunk(b"tEXt", b"taqdit\0" + owner.encode())
    large = squeezed(64 * MEGABYTE)
    made = partial(png, before=(mine,))
    text = chunk(b"zTXt", b"x\0\0" + large)
    small = chunk(b"zTXt", b"x\0\0" + squeezed(MEGABYTE))
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format="JPEG")
    return {
        "empty": b"",
        "signature alone": made()[:8],
        "a JPEG": buffer.getvalue(),
        "a pickle": b"\x80\x04\x95" + bytes(50),
        "60,000 x 60,000": made(60_000, 60_000, pixels=large),
        "2^31 - 1 pixels wide": made(2**31 - 1, 1, pixels=large),
        "2^32 - 1 pixels high": made(1, 2**32 - 1, pixels=large),
        "9,000 x 9,000": made(9_000, 9_000, pixels=large),
        "3,000 x 3,000": made(3_000, 3_000, pixels=large),
        "2,048 x 2,048, flat": made(2_048, 2_048),
        "2,048 x 2,048, laced": made(2_048, 2_048, lace=1, pixels=large),
        "no pixels wide": made(0, 4, pixels=large),
        "64 MB of pixels for 4 x 4": made(pixels=large),
        "pixels that end early": made(pixels=zlib.compress(bytes(20))),
        "no zlib": made(pixels=b"\xff" * 99),
        "no IDAT": made()[: made().index(b"IDAT") - 4] + chunk(b"IEND", b""),
        "IHDR twice": png(before=(mine, made(9**5, 9**5, pixels=large)[8:33])),
        "IHDR late": b"\x89PNG\r\n\x1a\n" + mine + made()[8:],
        "a chunk of 2^31": made()[:8] + struct.pack(">I", 2**31) + made()[12:],
        "a chunk of 2^32 - 1": made()[:33] + b"\xff\xff\xff\xff" + made()[37:],
        "a wrong checksum": made()[:-1] + b"\0",
        "bytes after the end": made() + b"PK\3\4",
        "no end": made()[:-12],
        "one zTXt of 64 MB": png(before=(mine, text)),
        "70 zTXt of 1 MB": png(before=(mine, *[small] * 70)),
        "an iTXt of 64 MB": png(before=(mine, chunk(b"iTXt", b"x\0\1\0\0\0" + large))),
        "an iCCP of 64 MB": png(before=(mine, chunk(b"iCCP", b"x\0\0" + large))),
        "16 MB of text": png(before=(mine, chunk(b"tEXt", b"x\0" + bytes(2**24)))),
        "200,000 empty chunks": png(before=(mine,), after=[chunk(b"IDAT", b"")] * 200_000),
        "100,000 kinds of chunk": png(
            before=[mine, *(chunk(struct.pack(">I", 2**30 + k), b"") for k in range(100_000))]
        ),
        "an animation": png(before=(mine, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)))),
        "16 bits": made(pixels=zlib.compress(bytes(4 * 25)), depth=16),
        "3 bits": made(depth=3),
        "colour 7": made(color=7),
        "a palette without one": made(color=3, pixels=zlib.compress(bytes(20))),
        "a palette of 300": png(before=(mine, chunk(b"PLTE", bytes(900))), color=3),
        "grey": made(color=0, pixels=zlib.compress(bytes(20))),
        "no owner": png(),
        "another's": png(before=(chunk(b"tEXt", b"taqdit\0somebody \x1b[2J"),)),
        "an owner of 1 MB": png(before=(chunk(b"tEXt", b"taqdit\0" + b"x" * MEGABYTE),)),
        "another file's name in it": png(before=(mine, chunk(b"tEXt", b"x\0../../etc/passwd"))),
        "20 MB": made(pixels=zlib.compress(bytes(20 * MEGABYTE), 0)),
    }  # fmt: skip


# --- JSON and text ------------------------------------------------------------------------------


def documents(good: dict) -> Files:
    """Documents in place of one that holds `good`; most with a digest made anew."""

    def stamped(**changes) -> bytes:
        value = {**good, **changes}
        return canonical({**value, "sha256": sha256_hex(canonical(value).encode())}).encode()

    found = {f"deep {number}": deep for number, deep in enumerate(DEEP)}
    found |= {
        "empty": b"",
        "null": b"null",
        "a list": b"[1, 2]",
        "a text": b'"x"',
        "a number of 10,000 digits": b'{"a": ' + b"9" * 10_000 + b"}",
        "not UTF-8": b'{"a": "\xff"}',
        "half a character": b'{"a": "\\ud800"}',
        "a key twice": stamped()[:-1] + b',"schema":1}',
        "NaN": b'{"schema": NaN}',
        "infinity": b'{"schema": 1e999}',
        "quotes without end": b'{"a": ' + b'"\\"' * 300_000,
        "1 MB of quotes": b'"' * MEGABYTE,
        "1 MB of lists": b'{"a": [' + b"[]," * (MEGABYTE // 3) + b"[]]}",
        "16 MB of lists": b'{"a": [' + b"[]," * (16 * MEGABYTE // 3) + b"[]]}",
        "1 MB of objects": b'{"a": [' + b'{"":0},' * (MEGABYTE // 7) + b"0]}",
        "1 MB of numbers": b'{"a": [' + b"0.5," * (MEGABYTE // 4) + b"0]}",
        "no digest": canonical(good).encode(),
        "a digest that is a list": canonical({**good, "sha256": [1]}).encode(),
        "cut off": stamped()[:-9],
        "anew: schema 2": stamped(schema=2),
        "anew: a schema of 300 digits": stamped(schema=10**300),
        "anew: 30,000 lists": stamped(x=[[]] * 30_000),
        "anew: nested 900 deep": stamped(x=nested(900)),
        "anew: 1 MB of text": stamped(x="[" * MEGABYTE),
    }
    outside = "../../../../etc/passwd"
    for key in good:
        for number, junk in enumerate((None, 1, True, "", outside, [], [[outside, 1]], {}, [1])):
            found[f"anew: {key} {number}"] = stamped(**{key: junk})
    return found


def stages(folder: Path) -> tuple[Stage, dict]:
    inputs = {"num_steps": 4, "latent_shape": [2, 2, 16]}
    mark = sha256_hex(canonical(inputs).encode())
    stage = Stage.open(folder, "trajectories", fingerprint=mark, inputs=inputs, backend={})
    stage.seal()
    document = json.loads(stage.path("stage.json").read_bytes())
    del document["sha256"]
    return stage, document


def texts() -> Files:
    """Prompt files."""
    return {
        "NUL": b"a\0b\n",
        "2 MB": b"a cat\n" * 400_000,
        "a line of 1 MB": b"a" * (2**20 - 1),
        "20,000 lines": b"a\n" * 20_000,
        "not UTF-8": b"\xff\xfe\n",
        "UTF-16": "a cat\n".encode("utf-16"),
        "turned around": "a \u202e cat\n".encode(),
        "escapes": b"\x1b[2J\n",
        "nothing": b"\n\n",
        "a seed of 10,000 digits": b"9" * 10_000 + b"\ta cat\n",
        "a million combining marks": ("a" + "\u0301" * 400_000).encode(),
        "ligatures that grow": ("\ufdfa" * 300_000).encode(),
        "an executable": b"\x7fELF" + bytes(500),
        "half a character": b"\xed\xa0\x80\n",
        "line separators": "a\u2028b\n".encode(),
    }


def yamls() -> Files:
    bomb = b"a0: &a0 [x]\n" + b"".join(
        f"a{k}: &a{k} [{','.join([f'*a{k - 1}'] * 9)}]\n".encode() for k in range(1, 12)
    )
    return {
        "alias bomb": bomb,
        "an alias of itself": b"a: &a [*a]\n",
        "100,000 lists": b"[" * 100_000,
        "100,000 objects": b"{a: " * 50_000,
        "100,000 dashes": b"- " * 50_000,
        "100,000 questions": b"? " * 50_000,
        "indentation": b"".join(b" " * k + b"a:\n" for k in range(500)),
        "code": b"!!python/object/apply:os.system [id]\n",
        "a tag": b"a: !!binary aGk=\n",
        "60,000 values": b"a: [" + b"0," * 60_000 + b"0]\n",
        "2 MB": b"a: " + b"x" * 2 * MEGABYTE,
        "no YAML": b"[\n",
        "no text": b"\xff\xfe\xfd",
        "NUL": b"a: \0\n",
        "a number of 10,000 digits": b"a: " + b"9" * 10_000 + b"\n",
        "sixty": b"a: " + b":".join([b"59"] * 10_000) + b"\n",
        "a date": b"a: 0000-99-99\n",
        "two documents": b"a: 1\n---\nb: 2\n",
        "merges": b"a: &a {b: 1}\nc: {<<: *a}\n",
        "a text of quotes": b'a: "' + b'\\"' * 60_000,
    }


def lines() -> Files:
    """metadata.jsonl beside one picture `a.png`, and journals."""
    good = b'{"file_name": "a.png", "prompt": "a cat"}'
    found = {f"deep {number}": deep[:60_000] for number, deep in enumerate(DEEP)}
    found |= {f"deep and long {number}": deep for number, deep in enumerate(DEEP)}
    for name in ("../a.png", "/a.png", "a\\b.png", ".a.png", "a.png\n", "SEALED.json", "a\0.png"):
        line = json.dumps({"file_name": name, "prompt": "x"})
        found[f"the name {name!r}"] = line.encode()
    found |= {
        "nothing": b"",
        "a name twice in a line": good.replace(b"{", b'{"file_name": "../b.png",'),
        "a picture twice": good + b"\n" + good,
        "a name that is a list": b'{"file_name": ["a.png"], "prompt": ""}',
        "a huge seed": good[:-1] + b', "seed": ' + b"9" * 5_000 + b"}",
        "a seed of 2^64": good[:-1] + b', "seed": 18446744073709551616}',
        "a seed that is true": good[:-1] + b', "seed": true}',
        "a list": b"[]",
        "20 MB": good * 500_000,
        "a line of 15 MB": good[:-1] + b', "x": "' + b"y" * 15 * MEGABYTE + b'"}',
        "4 million lines": b"\n" * 4_000_000,
        "a million lists": good[:-1] + b', "x": [' + b"[]," * 20_000 + b"[]]}",
        "20,000 lines": good[:-1].join([b"", b"}\n"]) * 20_000,
        "not UTF-8": b'{"file_name": "\xff.png"}',
        "half a character": good.replace(b"a cat", b"\\ud800"),
        "turned around": good.replace(b"a cat", b"\\u202e"),
    }
    return found


# --- opening them -------------------------------------------------------------------------------


class Loader:
    """A place where files are opened: `open_` reads what lies at `path`, `right` says what else
    than a TaqditError may come of it."""

    def __init__(self, name: str, path: Path, files: Files, open_: Callable[[], object]) -> None:
        self.name, self.path, self.files, self.open = name, path, files, open_

    def measured(self, *, traced: bool) -> dict:
        slowest = most = (0.0, "")
        problems, refused = [], 0
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            content = data[0]() if isinstance(data, tuple) else data
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            before = sorted(path.parents[1].rglob("*"))
            said: list[str] = []
            seconds, extra = cost(partial(self._tell, said), traced=traced)
            slowest, most = max(slowest, (seconds, name)), max(most, (extra / MEGABYTE, name))
            refused += bool(said[0])
            if "TROUBLE" in said[0]:
                problems.append([name, said[0]])
            if sorted(path.parents[1].rglob("*")) != before:
                problems.append([name, "it left something"])
        numbers = {"files": len(self.files), "refused": refused, "problems": problems}
        return {**numbers, "seconds": slowest, "megabytes": most}

    def _tell(self, said: list[str]) -> None:
        said.append(self._said())

    def _said(self) -> str:
        """The refusal, or nothing."""
        try:
            self.open()
        except TaqditError as error:
            text = str(error).replace(str(self.path.parents[1]), "")
            return text if text.isprintable() and len(text) < 900 else f"TROUBLE: {text[:999]!r}"
        except Exception as error:
            return f"TROUBLE: {type(error).__name__}: {str(error)[:300]}"
        return ""


def loaders(root: Path) -> list[Loader]:
    """Every place where a file that may be another's is opened."""
    shard, weights = root / "shard/s/a.safetensors", root / "weights/w/mmdit.safetensors"
    pixels = np.zeros((4, 4, 3), np.uint8)
    kept, (stage, document) = root / "kept/k/a.png", stages(root / "stage")
    folder, listed = root / "folder/f", root / "listed/l"
    for each in (kept.parent, folder, listed, root / "run/r"):
        each.mkdir(parents=True)
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "prompt": "a cat"}\n')
    write_picture(listed / "a.png", pixels, owner="s")
    seal = {"schema": 1, "files": [["a.png", "0" * 64]]}
    sealed = stages(root / "sealed")[0]
    run = {"config": {"sampler": {"num_trajectories": 1}}, "store": "../store", "stages": {}}
    run |= {"prompts": ["a cat"], "prompt_seeds": [None]}
    read_text = partial(prompts.file, allow_outside=True)
    calibration, journal = root / "npz/n/c.npz", root / "journal/j/j.jsonl"
    text, table = root / "text/t/p.txt", root / "csv/t/p.csv"
    (root / "run/r/summary.json").write_text("{}")
    other_runs = root / "other/o"
    (other_runs / ".hydra").mkdir(parents=True)
    npz, statistics = test_hostile_files.HOSTILE, test_hostile_statistics.HOSTILE
    owner = picture_owner("f" * 64, 0)
    return [
        Loader("shard (.safetensors)", shard, shards(), lambda: read_shard(shard, kind="k")),
        Loader(
            "weights (.safetensors)",
            weights,
            headers({"format": "pt"}),
            lambda: TinySource(mmdit=weights).fetch(),
        ),
        Loader("calibration.npz", calibration, npz, lambda: import_npz(calibration)),
        Loader(
            "activation statistics .npz",
            root / "stats/n/s.npz",
            statistics,
            lambda: open_statistics(root / "stats/n/s.npz"),
        ),
        Loader("stored picture", kept, pictures(owner), lambda: read_picture(kept, owner=owner)),
        Loader(
            "imported picture", folder / "a.png", pictures("s"), lambda: ForeignImages.of(folder)
        ),
        Loader(
            "metadata.jsonl", listed / "metadata.jsonl", lines(), lambda: ForeignImages.of(listed)
        ),
        Loader(
            "stage.json", stage.path("stage.json"), documents(document), lambda: used(stage.folder)
        ),
        Loader(
            "SEALED.json", sealed.path("SEALED.json"), documents(seal), lambda: listed_in(sealed)
        ),
        Loader("run.json", root / "run/r/run.json", documents(run), lambda: opened(root / "run/r")),
        Loader("journal", journal, lines(), lambda: read_journal(journal)),
        Loader("prompts .txt", text, texts(), lambda: read_text(path=str(text))),
        Loader("prompts .csv", table, texts(), lambda: read_text(path=str(table))),
        Loader(
            "YAML of a run",
            other_runs / ".hydra/config.yaml",
            yamls(),
            lambda: compared(other_runs),
        ),
    ]  # fmt: skip


def used(folder: Path) -> None:
    """What any reader asks of a stage."""
    stage = Stage.at(folder)
    assert isinstance(stage.inputs, dict)
    assert isinstance(stage.backends, list)
    stage.backend_note({})


def opened(folder: Path) -> None:
    run = open_run(folder)
    run.trajectories()


def listed_in(stage: Stage) -> None:
    """A seal that says nothing is as good as none."""
    if stage.seal_list is None:
        raise CorruptError("no seal")


def compared(folder: Path) -> None:
    """Whatever is damaged becomes a status there."""
    if "config.yaml is damaged" in str(read_result(folder).error):
        raise CorruptError("damaged")
    try:
        plain_yaml.read(folder / ".hydra/config.yaml")
    except ValueError as error:  # as its callers take it
        raise CorruptError(str(error)) from error


def main(root: Path, *, traced: bool) -> dict:
    """The two kinds of .npz have tests of their own, so they are opened only if `traced`."""
    logging.disable()
    chosen = [each for each in loaders(root) if traced or not each.name.endswith("npz")]
    return {each.name: each.measured(traced=traced) for each in chosen}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), traced="traced" in sys.argv)))
