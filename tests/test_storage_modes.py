"""What is stored of trajectories and conditioning: less of it, the same numbers."""

from pathlib import Path

import numpy as np
import pytest
from conftest import slow_unless, tree
from ledger import shows

import taqdit as package
from taqdit.config import check, compose_config
from taqdit.errors import InputError, NumericError
from taqdit.prompts.options import Prompts
from taqdit.sampler import euler
from taqdit.store import Stage
from taqdit.trajectories import conditioning, sampling, shards

pytestmark = pytest.mark.slow

STEPS, COUNT = 4, 4
SMALL = (
    f"schedule.num_steps={STEPS}",
    f"sampler.num_trajectories={COUNT}",
    "sampler.batch_size=2",
    "timestep_selection.count=2",
    "tracer=post_gelu",
    "tracer.blocks=[mm_00]",
    "tracer.folds=2",
    "analysis=none",
    "tracking=none",
    "plots=none",
)
CHOSEN = [0, STEPS - 1]  # by paper_uniform, count=2


def launched(folder, *overrides):
    return package.launch([*SMALL, f"output_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that stores everything."""
    return launched(tmp_path_factory.mktemp("whole"))


def statistics_of(run):
    """Step -> its arrays by name."""
    found = run.statistics()
    return [found.step(step).tensors() for step in range(found.num_steps)]


def assert_same_statistics(run, other):
    for one, two in zip(statistics_of(run), statistics_of(other), strict=True):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_half_precision_is_that_of_the_stored_latents_alone(whole, tmp_path):
    """Sampling and tracing go on in float32."""
    run = launched(tmp_path, "sampler.latents_dtype=float16")
    for index in range(COUNT):
        latents = run.trajectories().latents(index)
        assert latents.dtype == np.float16
        np.testing.assert_array_equal(
            latents, whole.trajectories().latents(index).astype(np.float16)
        )
    assert_same_statistics(run, whole)
    points = run.calibration().latents(np.arange(len(run.calibration())))
    assert points.dtype == np.float32


def test_selected_latents_give_the_same_calibration_set(whole, tmp_path):
    run = launched(tmp_path, "sampler.latents=selected")
    stored, everything = run.trajectories(), whole.trajectories()
    for index in range(COUNT):
        assert stored.steps(index).tolist() == [*CHOSEN, STEPS]
        expected = everything.latents(index)[[*CHOSEN, STEPS]]
        np.testing.assert_array_equal(stored.latents(index), expected)
        np.testing.assert_array_equal(run.picture(index), whole.picture(index))
    exported = [(each.folder / "calibration.npz").read_bytes() for each in (run, whole)]
    assert exported[0] == exported[1]
    assert_same_statistics(run, whole)
    with pytest.raises(InputError, match=r"of trajectory 1 the latents of steps \[1, 2\] are not"):
        stored.latents_at(1, np.array([0, 1, 2]))


def test_a_rule_that_differs_per_trajectory_selects_what_is_stored(tmp_path):
    run = launched(tmp_path, "sampler.latents=selected", "timestep_selection=random_per_trajectory")
    points = run.calibration()
    assert len(points) == 2 * COUNT
    assert np.isfinite(points.latents(np.arange(len(points)))).all()
    kept = {tuple(run.trajectories().steps(index).tolist()) for index in range(COUNT)}
    assert len(kept) > 1


def test_the_final_latents_alone(whole, tmp_path):
    run = launched(tmp_path, "sampler.latents=final")
    for index in range(COUNT):
        assert run.trajectories().steps(index).tolist() == [STEPS]
        final = whole.trajectories().latents(index)[-1:]
        np.testing.assert_array_equal(run.trajectories().latents(index), final)
        np.testing.assert_array_equal(run.picture(index), whole.picture(index))
    assert not (run.folder / "calibration.npz").exists()
    assert_same_statistics(run, whole)


MODES = ("latents=selected", "latents=final", "latents_dtype=float16")


@pytest.mark.parametrize("mode", slow_unless(["latents=final"], MODES))
def test_traced_later_they_are_sampled_again(whole, tmp_path, mode):
    """A replay needs every latent as it was computed; what is stored stays as it is."""
    launched(tmp_path, f"sampler.{mode}", "stages=[conditioning,trajectories]")
    before = tree(tmp_path / "store" / "trajectories")
    run = launched(tmp_path, f"sampler.{mode}")
    made = {stage["name"]: stage["made"] for stage in run.summary["stages"]}
    assert (made["trajectories"], made["statistics"]) == (0, STEPS)
    assert tree(tmp_path / "store" / "trajectories") == before
    assert_same_statistics(run, whole)
    assert not list((tmp_path / "store" / "statistics").glob("*/part_*"))


@pytest.mark.slow
def test_another_selection_is_another_trajectory_set_only_where_it_says_what_is_stored(tmp_path):
    stages = "stages=[conditioning,trajectories]"
    for rule in ("paper_uniform", "midpoint"):
        for mode in ("all", "selected", "final"):
            launched(tmp_path, stages, f"sampler.latents={mode}", f"timestep_selection={rule}")
    assert len(list((tmp_path / "store" / "trajectories").iterdir())) == 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sampler.latents=some"], "sampler.latents=some must be one of all, selected, final"),
        (["sampler.latents_dtype=int8"], "latents_dtype=int8 must be one of float32, float16"),
        (
            ["sampler.latents=final", "stages=[trajectories,calibration]"],
            "stores nothing that a calibration set could hold; leave calibration out of stages",
        ),
        (
            ["sampler.latents=selected", "timestep_selection=regret_optimal"],
            "selects from traced statistics; set sampler.latents=all",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(overrides, words):
    (problem,) = check(compose_config(overrides)).problems
    assert words in problem.text


@shows("P8", "a latent beyond float16 where latents are stored so: refused, not Inf", trials=1)
def test_a_latent_beyond_half_precision_is_refused(tmp_path):
    stage = Stage.open(tmp_path, "trajectories", fingerprint="a" * 64, inputs={}, backend={})
    prompts = Prompts(("dog",), (None,))
    sampler = euler(num_trajectories=1, batch_size=1)
    latents = np.zeros((3, 2, 2, 16), np.float32)
    latents[1, 0, 0, 3] = 70_000

    def write(**options):
        shards.write_trajectory(
            stage,
            sampling.Batch.of(0, sampler=sampler, prompts=prompts),
            0,
            latents=latents,
            sigmas=np.zeros(3),
            timesteps=np.zeros(3),
            prompts=prompts,
            **options,
        )

    with pytest.raises(NumericError, match=r"trajectory 0 reaches 7e\+04, beyond float16"):
        write(dtype="float16")
    write(dtype="float16", steps=np.array([0, 2]))  # it is not among those that are stored


# --- conditioning that is not stored ------------------------------------------------------------


def test_without_stored_conditioning_everything_else_is_the_same(whole, tmp_path):
    run = launched(tmp_path, "prompts.store_conditioning=false")
    theirs = Path(whole.config["output_dir"]) / "store"
    assert not (tmp_path / "store" / "conditioning").exists()
    for name in ("trajectories", "statistics"):
        assert tree(tmp_path / "store" / name) == tree(theirs / name)
    assert (run.folder / "calibration.npz").read_bytes() == (
        whole.folder / "calibration.npz"
    ).read_bytes()
    text = run.record["prompts"][1]
    rows = [each.calibration().conditioning(text) for each in (run, whole)]
    for one, two in zip(*rows, strict=True):
        np.testing.assert_array_equal(one, two)


class Encoder:
    """Rows that say which text they are of; `asked` has the texts in order."""

    def __init__(self):
        self.asked, self.dropped = [], 0

    def __call__(self, text):
        self.asked.append(text)
        value = float(text.removeprefix("t") or -1)
        return np.full((2, 3), value, np.float32), np.full(3, value, np.float32)

    def done(self):
        self.dropped += 1


def test_texts_are_encoded_in_groups_each_once(monkeypatch):
    monkeypatch.setattr(conditioning, "AT_ONCE", 4)
    texts, encoder = [f"t{n}" for n in range(10)], Encoder()
    rows = conditioning.UnstoredConditioning([*texts, "t3"], encoder, encoder.done)
    for begin in range(0, 10, 2):
        tokens, pooled = rows.guided(texts[begin : begin + 2])
        assert tokens.shape == (4, 2, 3)
        assert np.array(pooled)[:, 0].tolist() == [begin, begin + 1, -1, -1]
    assert encoder.asked == ["", *texts]
    assert encoder.dropped == 3
    assert rows.row("t0")[1][0] == 0  # again, from the beginning
    assert rows.row("t77")[1][0] == 77  # one that was not announced


def test_nan_of_an_encoder_is_refused():
    def broken(text):
        return np.full((2, 3), np.nan), np.zeros(3)

    rows = conditioning.UnstoredConditioning(["dog"], broken, lambda: None)
    with pytest.raises(NumericError, match="NaN or Inf for the prompt"):
        rows.row("dog")
