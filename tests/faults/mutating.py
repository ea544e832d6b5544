"""Shards of a small store changed in every way that comes to mind, and read as a run reads them.

As a program: `python mutating.py FOLDER TRIALS SEED` prints what came of them, as JSON.
"""

import copy
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/

import numpy as np
import safetensors.numpy
from faults.forging import Parts
from faults.measuring import Memory
from statistics_oracle import statistics_of

from taqdit.activations import Layout, Site
from taqdit.activations import step_shards as activations
from taqdit.activations.stored import Statistics
from taqdit.analysis.weights import _PLAIN, WeightTable, analyse_weights
from taqdit.errors import CorruptError, InputError, StorageError
from taqdit.stages import weights
from taqdit.store import Stage
from taqdit.trajectories import shards
from taqdit.trajectories.conditioning import Conditioning, encode, shard_name

REFUSALS = (CorruptError, InputError, StorageError)
TEXT, LAYERS = "a cat", ("mm_00.img.fc1", "mm_00.img.fc2")
LAYOUT = Layout((Site("mm_00_img.fc1_in", 8), Site("mm_00_txt.post_gelu", 4)), 2)
Arrays = dict[str, np.ndarray]


@dataclass
class Kind:
    """A kind of shard: its stage, its file, what is in it, and how a run reads it."""

    stage: Stage
    file: str
    read: Callable[[], Arrays]
    data: bytes = b""
    fixed: tuple[str, ...] = ()  # arrays whose dtype and shape the stage knows


def opened(root: Path, name: str, **inputs) -> Stage:
    return Stage.open(root, name, fingerprint=f"{name:0<64}", inputs=inputs, backend={})


def kinds(root: Path) -> dict[str, Kind]:
    """Small shards of every kind that holds data, in a store of their own."""
    found = {dtype: trajectories(root / dtype, dtype) for dtype in ("float32", "float16")}
    found["steps"] = trajectories(root / "steps", "float32", steps=np.int32([0, 2, 4]))
    found |= {"statistics": statistics(root), "part": part(root)}
    found |= {"conditioning": conditioning(root), "weights": weight_table(root)}
    for each in found.values():
        each.data = each.stage.path(each.file).read_bytes()
    return found


def trajectories(root: Path, dtype: str, steps=None) -> Kind:
    rng, levels = np.random.default_rng(0), 5
    inputs = {"num_steps": levels - 1, "latent_shape": [2, 2, 16], "latents_dtype": dtype}
    stage = opened(root, "trajectories", latents="all" if steps is None else "0,2,4", **inputs)
    latents = rng.standard_normal((levels, 2, 2, 16)).astype(dtype)
    sigmas = np.linspace(1, 0, levels, dtype=np.float32)
    tensors = {"latents": latents, "sigmas": sigmas, "timesteps": 1000 * sigmas}
    if steps is not None:
        tensors |= {"latents": latents[steps], "steps": steps}
    about = {"prompt_index": 0, "prompt_sha256": "0" * 64, "seed": 42, "batch": [0, 4]}
    stage.write("000000.safetensors", tensors, kind=shards.KIND, index=0, metadata=about)
    fixed = tuple(tensors)
    return Kind(stage, "000000.safetensors", lambda: shards.read_trajectory(stage, 0), fixed=fixed)


def made_statistics():
    rng = np.random.default_rng(1)
    return statistics_of(
        LAYOUT, [rng.standard_normal((2, 5, site.width)) for site in LAYOUT.sites], [0, 1]
    )


def statistics(root: Path) -> Kind:
    """The one step of a whole stage, read as an analysis does."""
    names = [site.name for site in LAYOUT.sites]
    stage = opened(root, "statistics", num_steps=1, sites=names, folds=LAYOUT.folds)
    file = activations.file_name(2, 0)
    about = {"extent": 2, "step": 0, "sigma": 1.0, "timestep": 1000.0}
    activations.write_step(stage, file, made_statistics(), **about)

    def read() -> Arrays:
        found = Statistics(stage)
        assert np.isfinite([found.sigmas, found.timesteps]).all()
        assert found.sigmas.dtype == found.timesteps.dtype == np.float64
        return found.step(0).tensors()

    return Kind(stage, file, read)


def part(root: Path) -> Kind:
    """What a batch adds to a step, read as the merging does."""
    stage = opened(root / "parts", "statistics", num_steps=1)
    activations.write_part(stage, made_statistics(), batch=0, step=0)
    return Kind(
        stage,
        activations.part_name(0, 0),
        lambda: activations.read_part(stage, batch=0, step=0, layout=LAYOUT).tensors(),
    )


def conditioning(root: Path) -> Kind:
    rng, stage = np.random.default_rng(2), opened(root, "conditioning")
    row = rng.standard_normal((1, 4096)).astype(np.float16), np.float16([1, 2, 3])
    list(encode(stage, [TEXT], lambda text: row))

    def read() -> Arrays:
        tokens, pooled = Conditioning(stage).row(TEXT)
        return {"tokens": tokens, "pooled": pooled}

    return Kind(stage, shard_name(TEXT), read)


def weight_table(root: Path) -> Kind:
    rng, stage = np.random.default_rng(3), opened(root, "weights")
    table = analyse_weights((layer, rng.standard_normal((8, 64))) for layer in LAYERS)
    about = {"layers": list(LAYERS), "granularities": ["channel"], "bits": [8]}
    stage.write(
        "weights.safetensors", table.tensors(), kind="weights", index="weights", metadata=about
    )

    def read() -> Arrays:
        found: WeightTable = weights._read(stage, LAYERS)
        return {name: getattr(found, name) for name in _PLAIN}

    return Kind(stage, "weights.safetensors", read, fixed=tuple(_PLAIN))


class Mutations:
    """Makes changed files of the kinds, by chance but always the same."""

    def __init__(self, found: dict[str, Kind], seed: int) -> None:
        self.rng, self.kinds = np.random.default_rng(seed), found
        self.bytes = [self.flip, self.overwrite, self.cut, self.insert, self.delete, self.splice]
        self.parts = [self.entry, self.about, self.rename, self.drop, self.swap, self.reshape]
        self.parts += [self.retype, self.resize, self.adopt, self.numbers, self.spell]

    def pick(self, options):
        return options[int(self.rng.integers(len(options)))]

    def place(self, data) -> int:
        """Somewhere in a file; in its header as often as in its tensors."""
        edge = min(8 + int.from_bytes(data[:8], "little"), len(data))
        low, high = self.pick([(0, 8), (8, edge), (8, edge), (edge, len(data)), (edge, len(data))])
        return int(self.rng.integers(low, max(high, low + 1)))

    def of(self, name: str) -> tuple[str, bytes, bytes | None]:
        """How a shard was changed; the file; and with a digest made anew, where it can be."""
        kind = self.kinds[name]
        if self.rng.random() < 0.5:
            data, how = bytearray(kind.data), []
            for _ in range(int(self.rng.integers(1, 4))):
                change = self.pick(self.bytes)
                change(data)
                how.append(change.__name__)
            old = bytes(data)
            try:
                return "+".join(how), old, Parts.of(old).file(anew=True)
            except Exception:  # what is left is no file
                return "+".join(how), old, None
        parts, how, given = Parts.of(kind.data), [], {}
        for _ in range(int(self.rng.integers(1, 3))):
            change = self.pick(self.parts)
            given |= change(parts) or {}
            how.append(change.__name__)
        return "+".join(how), parts.file(anew=False, **given), parts.file(anew=True, **given)

    # --- bytes, in place ------------------------------------------------------------------------

    def flip(self, data):
        if data:
            data[self.place(data) % len(data)] ^= 1 << int(self.rng.integers(8))

    def run(self) -> bytes:
        length = int(self.rng.choice([1, 2, 8, 64, 512]))
        text = b'"shape":[0,18446744073709551616,-1],{"a":[[[],\x00\xff' * 16
        made = (bytes(length), b"\xff" * length, self.rng.bytes(length), text[:length])
        return self.pick(made)

    def overwrite(self, data):
        at, run = self.place(data), self.run()
        data[at : at + len(run)] = run[: len(data) - at]

    def insert(self, data):
        at = self.place(data)
        data[at:at] = self.run()

    def cut(self, data):
        del data[self.place(data) :]

    def delete(self, data):
        at = self.place(data)
        del data[at : at + int(self.rng.choice([1, 8, 64, 1024]))]

    def splice(self, data):
        """The beginning of one shard and the end of another, or a piece of it."""
        other = self.kinds[self.pick(list(self.kinds))].data
        at, start = self.place(data), self.place(other)
        end = self.pick([len(other), start + 16, start + 256])
        data[at : self.pick([len(data), at + end - start])] = other[start:end]

    # --- parts; some give fields of the header that replace the right ones -----------------------

    def junk(self):
        huge, deep = 10 ** int(self.rng.integers(1, 400)), "x"
        for _ in range(int(self.rng.integers(1, 60))):
            deep = [deep]
        return self.pick(
            [
                *(None, True, -1, 0, 1, 2, 2**31, 2**63, huge, -huge, 1.5, 1e308, "", "x"),
                *([], {}, [0], [-1], [2.0], [True], ["x", 1], {"x": []}, deep, [[1, 2]]),
                *("\u202e\0", "../../etc"),
            ]
        )

    def entry(self, parts):
        """The header says something else of a tensor."""
        name = self.pick([*parts.tensors, "more"])
        entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
        key = self.pick([*entry, *entry, "none", "more"])
        if key == "none":
            return {"fields": {name: self.junk()}}
        if name in parts.tensors:
            dtype, shape, data = parts.tensors[name]
            entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
        return {"fields": {name: {**entry, key: self.junk()}}}

    def about(self, parts):
        """The metadata say something else."""
        key = self.pick([*parts.metadata, "more"])
        value = copy.deepcopy(parts.metadata.get(key))
        if isinstance(value, list) and value and self.rng.random() < 0.7:
            place = int(self.rng.integers(len(value)))
            if isinstance(value[place], list) and self.rng.random() < 0.7:
                value[place][int(self.rng.integers(len(value[place])))] = self.junk()
            else:
                value[place] = self.junk()
        elif type(value) in (int, float) and self.rng.random() < 0.3:
            value = value + self.pick([1, -1, 0.5, 1e6])
        else:
            value = self.junk()
        parts.metadata[key] = value

    def rename(self, parts):
        old = self.pick(list(parts.tensors) or ["none"])
        new = self.pick(["x", "", "../x", "a\0b", "\u202e", old.upper(), "__metadata__ ", "é"])
        if old in parts.tensors:
            parts.tensors[new] = parts.tensors.pop(old)

    def drop(self, parts):
        for name in list(parts.tensors)[:: int(self.rng.integers(1, 9))]:
            del parts.tensors[name]
            if self.rng.random() < 0.8:
                return

    def swap(self, parts):
        if len(parts.tensors) > 1:
            one, other = self.rng.choice(list(parts.tensors), 2, replace=False)
            tensors = parts.tensors
            tensors[one], tensors[other] = tensors[other], tensors[one]

    def reshape(self, parts):
        """The same bytes in another shape."""
        if not parts.tensors:
            return
        found = parts.tensors[self.pick(list(parts.tensors))]
        count = int(np.prod([float(n) for n in found[1]]))
        shapes = [[count], [1, *found[1]], found[1][::-1], [*found[1], 1], [count, 1, 1]]
        shapes += [[1] * 70 + [count]] + [[2, count // 2]] * (count % 2 == 0)
        found[1] = self.pick(shapes)

    def retype(self, parts):
        if parts.tensors:
            found = parts.tensors[self.pick(list(parts.tensors))]
            same = {"F32": ["I32", "U32"], "F16": ["I16", "U16"], "F64": ["I64", "U64"]}
            same |= {"I64": ["U64", "F64"], "U32": ["I32", "F32"], "U16": ["F16", "I16"]}
            found[0] = self.pick([*same.get(found[0], ["I8"]), "BF16", "F8_E4M3", "U8", "x"])

    def resize(self, parts):
        """More or fewer rows, or none."""
        if parts.tensors:
            found = parts.tensors[self.pick(list(parts.tensors))]
            if found[1] and found[1][0]:
                row = len(found[2]) // found[1][0]
                rows = self.pick([0, 1, found[1][0] - 1, found[1][0] + 1, 2 * found[1][0]])
                found[2] = (found[2] * 2)[: rows * row]
                found[1] = [len(found[2]) // row if row else rows, *found[1][1:]]

    def adopt(self, parts):
        """Tensors or metadata of another shard."""
        other = Parts.of(self.kinds[self.pick(list(self.kinds))].data)
        if self.rng.random() < 0.5:
            parts.tensors = other.tensors
        else:
            parts.metadata = other.metadata

    def numbers(self, parts):
        """Other numbers in the right form."""
        if parts.tensors:
            found = parts.tensors[self.pick(list(parts.tensors))]
            data = bytearray(found[2])
            for _ in range(4):
                if data:
                    at = int(self.rng.integers(len(data)))
                    run = self.pick([b"\xff" * 8, bytes(8), self.rng.bytes(8), b"\x7f", b"\x01"])
                    data[at : at + 8] = (run * 8)[: len(data[at : at + 8])]
            found[2] = bytes(data)

    def spell(self, parts):
        """The same contents, spelled otherwise."""
        return self.pick([{"ordered": False}, {"padded": False}])


class Reading:
    """Reads changed files as a run does, and keeps account of it."""

    def __init__(self, found: dict[str, Kind]) -> None:
        self.kinds, self.problems = found, []
        self.right = {name: plain(kind.read()) for name, kind in found.items()}
        self.slowest, self.counts = 0.0, Counter()

    def read(self, name: str, how: str, data: bytes, *, anew: bool) -> None:
        """One trial: refused in a line, or exactly what there is in the file."""
        kind = self.kinds[name]
        path = kind.stage.path(kind.file)
        path.unlink()  # what was mapped of the last one stays what it was
        path.write_bytes(data)
        began = time.thread_time()
        try:
            found = plain(kind.read())
            came = self._judged(kind, name, data, found, anew=anew)
        except REFUSALS as error:
            came = "refused"
            if not str(error).isprintable() or len(str(error)) > 700:
                came = f"not one line: {str(error)[:900]!r}"
        except Exception as error:
            came = f"{type(error).__name__}: {error}"
        self.slowest = max(self.slowest, time.thread_time() - began)
        if came not in ("refused", "right", "as changed"):
            self.problems.append([name, how, anew, came[:300]])
        self.counts[came if len(came) < 12 else "problem"] += 1

    def _judged(self, kind: Kind, name: str, data: bytes, found: Arrays, *, anew: bool) -> str:
        if same(found, self.right[name]):
            return "right"
        if not anew:
            return "other data under the old digest"
        held = safetensors.numpy.load(data)
        if not all(array.tobytes() == held[key].tobytes() for key, array in found.items()):
            return "not what is in the file"
        for key in kind.fixed:
            if form(found[key]) != form(self.right[name][key]):
                return f"{key} has another form"
        return "as changed"


def plain(found: Arrays) -> Arrays:
    return {name: np.array(array) for name, array in found.items()}


def form(array: np.ndarray):
    return array.dtype, array.shape


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        form(one[key]) == form(other[key]) and one[key].tobytes() == other[key].tobytes()
        for key in one
    )


def trials(root: Path, number: int, seed: int) -> dict:
    """So many changed files read."""
    found = kinds(root)
    mutations, reading, memory = Mutations(found, seed), Reading(found), Memory()
    while reading.counts.total() < number:
        name = mutations.pick(list(found))
        how, old, new = mutations.of(name)
        if old == found[name].data:
            continue
        reading.read(name, how, old, anew=False)
        if new is not None:
            reading.read(name, how, new, anew=True)
    for name, kind in found.items():  # whole files under another's name
        for other in found.values():
            if other is not kind:
                reading.read(name, "another's file", other.data, anew=False)
    return {
        "trials": reading.counts.total(),
        **{word: reading.counts[word] for word in ("refused", "right", "as changed")},
        "slowest_ms": round(1000 * reading.slowest, 1),
        "extra_mb": round(memory.extra() / 2**20, 1),
        "problems": reading.problems[:20],
        "all_problems": len(reading.problems),
    }


if __name__ == "__main__":
    print(json.dumps(trials(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
