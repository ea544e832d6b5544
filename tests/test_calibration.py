"""The calibration set as a view, and its .npz against the older tools' layout."""

import os
import struct
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import pytest

from taqdit.calibration import calibration_set as calibration
from taqdit.calibration.calibration_set import CalibrationSet
from taqdit.calibration.imported import import_npz
from taqdit.errors import ConfigError, CorruptError, InputError, NumericError
from taqdit.prompts.options import Prompts
from taqdit.store import Stage, npz, shard
from taqdit.timestep_selection import rules as timestep_selection
from taqdit.timestep_selection.rules import Selection
from taqdit.timestep_selection.steps import TrajectorySteps
from taqdit.trajectories.shards import KIND, shard_name
from taqdit.trajectories.trajectory_set import TrajectorySet

TOKENS, POOLED = 3, 20
UNIFORM = partial(timestep_selection.paper_uniform, count=3)


class FakeTrajectories:
    """Latents that say where they come from: trajectory + step / 1000, plus noise."""

    def __init__(self, count=5, num_steps=7, texts=("cat", "dog", "cat"), size=(2, 2)):
        self.num_steps, self._count, self._size = num_steps, count, size
        self.sigmas = np.linspace(1, 0, num_steps + 1, dtype=np.float32)
        self.timesteps = (1000 * self.sigmas).astype(np.float16).astype(np.float32)
        self.prompts = Prompts(tuple(texts), (None,) * len(texts))
        self.reads = []

    def __len__(self):
        return self._count

    def latents(self, index):
        self.reads.append(index)
        rng = np.random.default_rng(index)
        steps = self.num_steps + 1
        noise = rng.standard_normal((steps, *self._size, 16), np.float32)
        return noise + np.float32(index) + np.arange(steps, dtype=np.float32)[:, None, None, None]

    def latents_at(self, index, steps):
        return self.latents(index)[steps]


def row(text):
    rng = np.random.default_rng(len(text) + 1)
    return rng.standard_normal((TOKENS, 4096), np.float32), rng.standard_normal(POOLED, np.float32)


def make(trajectories=None, rule=UNIFORM, seed=0, conditioning=row) -> CalibrationSet:
    return CalibrationSet(
        trajectories or FakeTrajectories(),
        rule,
        cfg_scale=1.5,
        seed=seed,
        conditioning=conditioning,
    )


def keys(points):
    return [(point.step, point.trajectory) for point in points]


def counted(trajectory):
    """One step more for each trajectory; the first one twice; weights that say the step."""
    steps = np.arange(trajectory.index + 1)
    counts = np.where(steps == 0, 2, 1)
    return Selection(steps, counts, steps / 10)


def test_points_are_ordered_by_place_in_the_selection_then_trajectory():
    assert keys(make()) == [(step, i) for step in (0, 3, 6) for i in range(5)]
    rotating = partial(timestep_selection.interleaved, count=2)
    places = [timestep_selection.interleaved] * 5
    chosen = [
        rule(TrajectorySteps(np.zeros(8), index=i), count=2).indices
        for i, rule in enumerate(places)
    ]
    expected = [(int(chosen[i][j]), i) for j in range(2) for i in range(5)]
    assert keys(make(rule=rotating)) == expected
    assert len({step for step, _ in expected}) > 2


def test_a_count_repeats_its_point_and_weights_travel_with_it():
    points = make(FakeTrajectories(count=3), rule=counted)
    assert keys(points) == [(0, 0), (0, 1), (0, 2), (0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    assert [point.loss_weight for point in points] == [0] * 6 + [0.1, 0.1, 0.2]
    assert points.counts.tolist() == [6, 2, 1, 0, 0, 0, 0]
    assert points.steps.tolist() == [0, 1, 2]


def test_a_point_is_what_the_model_saw_at_its_step():
    source = FakeTrajectories()
    points = make(source)
    point = points[7]
    assert (point.trajectory, point.step) == (2, 3)
    np.testing.assert_array_equal(point.latent, source.latents(2)[3])
    assert point.latent.dtype == np.float32
    assert point.sigma == pytest.approx(source.sigmas[3])
    assert point.timestep == source.timesteps[3]
    assert (point.prompt, point.prompt_index) == ("cat", 2)
    assert points[-1].latent.tolist() == points[14].latent.tolist()
    assert points[np.int64(7)].step == 3
    for k in (15, -16):
        with pytest.raises(IndexError, match=f"calibration point {k} of 15"):
            points[k]
    with pytest.raises(AttributeError):
        point.step = 0


def test_a_view_reads_nothing_before_it_must_and_one_shard_per_point():
    source = FakeTrajectories()
    points = make(source)
    assert len(points) == 15
    assert points.counts.sum() == 15
    assert source.reads == []
    points[7]
    assert source.reads == [2]


def test_batches_of_a_step_with_the_remainder():
    points = make()
    batches = list(points.batches(3, 2))
    assert [len(batch.latents) for batch in batches] == [2, 2, 1]
    assert [batch.trajectories.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [batch.prompt_indices.tolist() for batch in batches] == [[0, 1], [2, 0], [1]]
    stacked = np.concatenate([batch.latents for batch in batches])
    np.testing.assert_array_equal(stacked, np.stack([points[5 + i].latent for i in range(5)]))
    repeated = make(FakeTrajectories(count=3), rule=counted)
    assert next(repeated.batches(0, 9)).trajectories.tolist() == [0, 1, 2, 0, 1, 2]


def test_batches_that_make_no_sense_fail_at_once():
    with pytest.raises(ConfigError, match=r"step=1 is not selected; the steps are \[0, 3, 6\]"):
        make().batches(1, 2)
    with pytest.raises(ConfigError, match="batch_size=0"):
        make().batches(0, 0)


def test_what_a_set_says_about_itself():
    points = make()
    assert points.num_steps == 7
    assert points.cfg_scale == 1.5
    assert points.prompts == ("cat", "dog", "cat")
    assert points.latent_shape == (2, 2, 16)
    few = make(FakeTrajectories(count=2))
    assert few.prompts == ("cat", "dog"), "a prompt that no trajectory uses is not needed"


@pytest.mark.parametrize("step", [-1, 7])
def test_a_rule_that_leaves_the_grid_is_refused(step):
    def rule(trajectory):
        return Selection.of([step if trajectory.index == 3 else 0])

    with pytest.raises(ConfigError, match=r"trajectory 3; they must lie in \[0, 6\]"):
        make(rule=rule)


def test_the_paper_recipe_and_its_dry_run_count():
    paper = FakeTrajectories(count=256, num_steps=100)
    points = make(paper, rule=partial(timestep_selection.paper_uniform, count=25))
    assert len(points) == 6400
    assert set(points.counts) == {0, 256}
    dry = FakeTrajectories(count=8, num_steps=20)
    assert len(make(dry, rule=partial(timestep_selection.paper_uniform, count=5))) == 40


def older_layout(source, steps, seed):
    """xs, ts, prompt_indices as the older scripts built them, one list entry at a time."""
    xs, ts, prompts = [], [], []
    for step in steps:
        for i in range(len(source)):
            xs.append(source.latents(i)[step])
            ts.append(source.timesteps[step])
            prompts.append(i % len(source.prompts))
    order = np.random.default_rng(seed).permutation(len(xs))
    return np.stack(xs)[order], np.float16(ts)[order], np.int32(prompts)[order]


@pytest.mark.parametrize("buffer", [1, 1000, 2**26])
def test_export_is_the_older_layout(tmp_path, monkeypatch, buffer):
    monkeypatch.setattr(calibration, "BUFFER_BYTES", buffer)
    source = FakeTrajectories()
    make(source, seed=3).export_npz(tmp_path / "c.npz")
    xs, ts, prompt_indices = older_layout(source, (0, 3, 6), 3)
    with np.load(tmp_path / "c.npz", allow_pickle=False) as found:
        assert list(found) == [
            *["xs", "ts", "prompt_indices", "cs", "cs_pooled", "prompts", "cfg_scale"]
        ]
        arrays = dict(found)
    expected = {"xs": xs, "ts": ts, "prompt_indices": prompt_indices}
    expected["cs"] = np.stack([[row(t)[0], row("")[0]] for t in ("cat", "dog", "cat")])
    expected["cs_pooled"] = np.stack([[row(t)[1], row("")[1]] for t in ("cat", "dog", "cat")])
    expected["prompts"] = np.array(["cat", "dog", "cat"])
    expected["cfg_scale"] = np.float32(1.5)
    types = {"xs": "<f4", "ts": "<f2", "prompt_indices": "<i4", "cs": "<f2", "cs_pooled": "<f2"}
    types |= {"prompts": "<U3", "cfg_scale": "<f4"}
    for key, array in arrays.items():
        assert array.dtype.str == types[key], key
        assert array.shape == np.shape(expected[key]), key
        np.testing.assert_array_equal(array, np.asarray(expected[key]).astype(types[key]))


def test_export_is_byte_identical_and_raw(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(seed=seed).export_npz(tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c
    with zipfile.ZipFile(tmp_path / "a") as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time[0] for info in archive.infolist()} == {1980}


def test_export_holds_a_buffer_and_one_trajectory(tmp_path, monkeypatch):
    source = FakeTrajectories(count=24, num_steps=60, size=(8, 8))  # 250 kB a trajectory
    every = timestep_selection.all
    points = make(source, rule=every)
    shard, buffer = 61 * 8 * 8 * 16 * 4, 2_000_000
    monkeypatch.setattr(calibration, "BUFFER_BYTES", buffer)
    tracemalloc.start()
    points.export_npz(tmp_path / "c.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "c.npz").stat().st_size > 20 * shard
    # What is finite is told in a quarter of the buffer, and the fake makes some copies of its own.
    assert peak < 1.25 * buffer + 4 * shard < 2 * buffer


def test_a_buffer_reads_each_trajectory_once(tmp_path):
    source = FakeTrajectories()
    make(source).export_npz(tmp_path / "c.npz")
    assert len(source.reads) <= 1 + len(source)  # one for the shape


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A calibration set of stored trajectories, its stage, and a list of what is hashed. The
    files are old, as far as their times tell; a buffer holds three points."""
    stage = Stage.open(
        tmp_path / "store", "trajectories", fingerprint="0" * 64, inputs={}, backend={}
    )
    source, hashed = FakeTrajectories(), []
    for index in range(len(source)):
        values = {
            "latents": source.latents(index),
            "sigmas": source.sigmas,
            "timesteps": source.timesteps,
        }
        stage.write(shard_name(index), values, kind=KIND, index=index, metadata={})
        os.utime(stage.path(shard_name(index)), (1, 1))
    digest = shard._digest

    def counting(described, parts):
        hashed.append(described["index"])
        return digest(described, parts)

    monkeypatch.setattr(shard, "_digest", counting)
    monkeypatch.setattr(calibration, "BUFFER_BYTES", 3 * 2 * 2 * 16 * 4)
    found = TrajectorySet(stage, count=len(source), prompts=source.prompts)
    return make(found, timestep_selection.all), stage, hashed


def test_an_export_hashes_each_shard_once(stored, tmp_path):
    points, _, hashed = stored
    points.export_npz(tmp_path / "c.npz")
    assert sorted(hashed) == [0, 1, 2, 3, 4]
    make(rule=timestep_selection.all).export_npz(tmp_path / "d.npz")
    assert (tmp_path / "c.npz").read_bytes() == (tmp_path / "d.npz").read_bytes()


def test_an_export_of_files_just_written_hashes_them_whenever_it_reads_them(stored, tmp_path):
    points, stage, hashed = stored
    for name in stage.names():
        os.utime(stage.path(name))
    points.export_npz(tmp_path / "c.npz")
    assert len(hashed) > 10


@pytest.mark.parametrize("replaced", [False, True], ids=["in place", "replaced"])
def test_a_shard_that_changes_while_it_is_exported_is_found(stored, tmp_path, replaced):
    points, stage, hashed = stored
    chunks = points._shuffled

    def shuffled(order):
        for number, chunk in enumerate(chunks(order)):
            yield chunk
            if number == 8:
                assert len(set(hashed)) == 5, "all were verified, and are read on"
                for index in range(5):
                    damage(stage.path(shard_name(index)))

    def damage(path):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        if replaced:
            path.rename(f"{path}.old")
        path.write_bytes(content)

    points._shuffled = shuffled
    with pytest.raises(CorruptError, match="do not fit its sha256"):
        points.export_npz(tmp_path / "c.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("value", [1e5, -7e4, np.nan])
def test_conditioning_beyond_float16_is_refused_and_nothing_written(tmp_path, part, value):
    def loud(text):
        found = row(text)
        if text == "dog":
            found[part][..., 0] = value
        return found

    (tmp_path / "c.npz").write_bytes(b"as before")
    with pytest.raises(NumericError, match=r"'dog' .*65504.*calibration.export=false"):
        make(conditioning=loud).export_npz(tmp_path / "c.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["c.npz"]
    assert (tmp_path / "c.npz").read_bytes() == b"as before"


def test_the_largest_float16_is_exported(tmp_path):
    limit = np.full((TOKENS, 4096), 65504, np.float32), np.full(POOLED, -65504, np.float32)
    make(conditioning=lambda text: limit).export_npz(tmp_path / "c.npz")
    assert np.load(tmp_path / "c.npz")["cs"].max() == 65504


def test_nan_in_a_latent_is_named(tmp_path):
    class Broken(FakeTrajectories):
        def latents(self, index):
            latents = super().latents(index)
            if index == 4:
                latents[3, 1, 1, 5] = np.nan
            return latents

    with pytest.raises(NumericError, match="trajectory 4 before step 3 holds NaN"):
        make(Broken()).export_npz(tmp_path / "c.npz")
    assert list(tmp_path.iterdir()) == []


def assert_equal_arrays(imported, expected):
    for key, array in expected.items():
        np.testing.assert_array_equal(imported._arrays[key], array)


def test_round_trip(tmp_path):
    points = make(seed=5)
    points.export_npz(tmp_path / "c.npz")
    back = import_npz(tmp_path / "c.npz")
    order = np.random.default_rng(5).permutation(len(points))
    assert len(back) == len(points)
    for k, original in enumerate(order):
        there, here = points[original], back[k]
        np.testing.assert_array_equal(here.latent, there.latent)
        assert here.timestep == np.float16(there.timestep)
        assert (here.prompt, here.prompt_index) == (there.prompt, there.prompt_index)
        assert here.step == {0: 0, 3: 1, 6: 2}[there.step]
        assert here.sigma == pytest.approx(there.sigma, abs=5e-4)  # float16 timesteps
        assert here.trajectory == -1
    assert back.cfg_scale == points.cfg_scale
    assert back.prompts == points.prompts
    assert back.num_steps == 3
    assert back.steps.tolist() == [0, 1, 2]
    assert back.counts.tolist() == [5, 5, 5]
    assert [len(batch.latents) for batch in back.batches(1, 3)] == [3, 2]
    for text in ("cat", "dog", ""):
        for here, there in zip(back.conditioning(text), row(text), strict=True):
            np.testing.assert_array_equal(here, there.astype(np.float16))
    with pytest.raises(InputError, match="no prompt 'owl'"):
        back.conditioning("owl")


def test_an_imported_set_can_be_exported_again(tmp_path):
    make().export_npz(tmp_path / "a.npz")
    import_npz(tmp_path / "a.npz").export_npz(tmp_path / "b.npz")
    first, second = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    order = np.random.default_rng(0).permutation(15)
    for key in first:
        shuffled = key in ("xs", "ts", "prompt_indices")
        np.testing.assert_array_equal(second[key], first[key][order] if shuffled else first[key])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_that_numpy_wrote(tmp_path, save):
    make().export_npz(tmp_path / "a.npz")
    arrays = dict(np.load(tmp_path / "a.npz"))
    save(tmp_path / "b.npz", **dict(reversed(arrays.items())))
    back = import_npz(tmp_path / "b.npz")
    assert_equal_arrays(back, arrays)
    assert not any(array.flags.writeable for array in back._arrays.values())


def test_raw_latents_stay_on_the_disk(tmp_path):
    source = FakeTrajectories(count=40, num_steps=20, size=(16, 16))
    make(source, rule=timestep_selection.all).export_npz(tmp_path / "c.npz")
    size = (tmp_path / "c.npz").stat().st_size
    tracemalloc.start()
    back = import_npz(tmp_path / "c.npz")
    back[len(back) - 1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 12e6
    assert peak < 4e6
    assert not back._arrays["xs"].flags.writeable


def test_archives_beyond_4_gb_have_another_directory(tmp_path):
    make().export_npz(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    end = content[-22:]
    count, length, start = struct.unpack("<HII", end[10:20])
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(content) - 22, 1)
    short = b"PK\5\6" + b"\0" * 4 + b"\xff" * 12 + b"\0\0"
    (tmp_path / "b.npz").write_bytes(content[:-22] + record + locator + short)
    expected = dict(np.load(tmp_path / "b.npz"))  # numpy reads it too
    assert_equal_arrays(import_npz(tmp_path / "b.npz"), expected)


def test_a_stream_of_the_wrong_length_is_not_published(tmp_path):
    member = npz.Member("a", np.dtype("<f4"), (3,), [np.zeros(2, np.float32)])
    with pytest.raises(ValueError, match="8 bytes were given"):
        npz.write(tmp_path / "a.npz", [member])
    assert list(tmp_path.iterdir()) == []


def test_steps_that_float16_makes_one_are_said_in_one_line(tmp_path, caplog):
    near = FakeTrajectories()
    near.timesteps = np.linspace(1000, 999, 8, dtype=np.float32)
    make(near, rule=timestep_selection.all).export_npz(tmp_path / "near.npz")
    (said,) = caplog.messages
    assert "float16 tells the timesteps of 3 of its 7 steps apart" in said
    assert import_npz(tmp_path / "near.npz").num_steps == 3
    caplog.clear()
    make(rule=timestep_selection.all).export_npz(tmp_path / "apart.npz")
    assert not caplog.messages


def test_a_pair_is_a_prompt_beside_its_negative():
    tokens, pooled = make().pair(1)
    for found, part in ((tokens, 0), (pooled, 1)):
        np.testing.assert_array_equal(found, np.stack([row("dog")[part], row("")[part]]))
