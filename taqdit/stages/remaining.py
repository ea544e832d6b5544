"""What of a run's plan is stored already, and what is left to do.

Told from the names of the stages' files alone: nothing is opened, made or verified. The run itself
verifies what it reads, and makes anew what is damaged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taqdit.activations import step_shards as activations
from taqdit.stages.merging import KEPT
from taqdit.stages.plan import Plan
from taqdit.stages.preflight import Estimate
from taqdit.stages.statistics import STATISTICS
from taqdit.stages.trajectories import TRAJECTORIES
from taqdit.store import Stage
from taqdit.trajectories import sampling, shards
from taqdit.words import size

UNVERIFIED = "by name, not yet verified"
_MOST_READ = 10**8  # bytes of weights that are read just to say what is stored


@dataclass(frozen=True)
class Remaining:
    """`stored` holds (stored, asked for) by kind; None where the store could not be looked at.

    `traced` counts trajectories that are in the statistics; of one that is read at some steps, that
    share.
    `replays_left` are forwards that read stored trajectories, beside the `forwards_left` that
    sample; of `bytes_left` the analysis is all, whether or not it is stored. `unread` are the bytes
    of weights that would have to be read to know what is stored.
    """

    stored: Mapping[str, tuple[int, int]] | None
    forwards_left: int
    replays_left: int
    bytes_left: int
    unread: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def describe(self) -> str:
        """The lines that are shown below the plan."""
        if self.unread:
            words = f"the weights would have to be read ({size(self.unread)})"
            return f"stored    not looked up: {words}"
        if self.stored is None:
            return "stored    not known: the model's weights are not all on this machine"
        if not any(count for count, _ in self.stored.values()):
            return "stored    nothing of it"
        kinds = [f"{kind} {count:,} of {all_:,}" for kind, (count, all_) in self.stored.items()]
        again = f"{self.replays_left:,} to read what is stored, " if self.replays_left else ""
        return (
            f"stored    {', '.join(kinds)} ({UNVERIFIED})\n"
            f"left      {self.forwards_left:,} forwards to sample, {again}"
            f"about {size(self.bytes_left)} to write"
        )


def may_read_weights(plan: Plan) -> bool:
    """Whether to read the weights to tell what is stored: not if they would have to be downloaded,
    nor if they are large and all that is asked for is the plan."""
    if plan.preflight == "only" and plan.model.weight_bytes() > _MOST_READ:
        return False
    return plan.model.weights_present()


def remaining(
    plan: Plan, whole: Estimate, store: Path, fingerprints: Mapping[str, str] | None
) -> Remaining:
    """What is left of the `whole` plan; all of it if the stages' fingerprints are not known.

    A stage that is refreshed counts as empty. Raises StorageError if a folder cannot be listed.
    """
    if fingerprints is None:
        unread = plan.model.weight_bytes() if plan.model.weights_present() else 0
        return Remaining(None, whole.forwards, 0, whole.total_bytes, unread)
    stages = {
        name: Stage(folder, name, own)
        for name, own in fingerprints.items()
        if name not in plan.refresh and (folder := store / name / own[:12]).is_dir()
    }
    names = {name: set(stage.names()) for name, stage in stages.items()}
    stored, left = {}, 0
    for kind, parts in whole.parts.items():
        for part in parts:
            if part.files:
                count = len(part.files & names.get(kind, set()))
                stored[part.label] = count, len(part.files)
                left += part.nbytes * (len(part.files) - count) // len(part.files)
            elif kind != STATISTICS.name:
                left += part.nbytes
    sampled, replays = _sampled(plan, names.get(TRAJECTORIES.name, set())), 0
    if plan.traces:
        statistics = stages.get(STATISTICS.name)
        listed = activations.listed(statistics) if statistics else []
        read = _read(plan, listed)
        stored["traced"] = _trajectories(plan, read.sum()), _trajectories(plan, read.size)
        steps = plan.schedule.num_steps
        left += whole.nbytes[STATISTICS.name] * _files_left(plan, listed) // steps
        replays = _replays(plan, sampled[: len(read), None] & ~read)
    return Remaining(stored, _evaluations(plan) * int((~sampled).sum()), replays, left)


def _sampled(plan: Plan, names: set[str]) -> np.ndarray:
    """Which batches have the latents of all their trajectories, (batches,) bool."""
    batches = [
        sampling.batch_indices(number, plan.sampler.batch_size)
        for number in range(plan.sampler.num_batches)
    ]
    return np.array([names.issuperset(map(shards.shard_name, batch)) for batch in batches])


def _read(plan: Plan, listed: Sequence[activations.Listed]) -> np.ndarray:
    """Which batches are in the stored statistics of which steps, (batches, steps) bool."""
    read = np.zeros((plan.traced_batches, plan.schedule.num_steps), bool)
    for each in listed:
        batches, odd = divmod(each.number, plan.sampler.batch_size)
        if each.step >= plan.schedule.num_steps:
            continue
        if each.kind == activations.PART:
            read[each.number : each.number + 1, each.step] = True
        elif batches <= len(read) and not odd:
            read[:batches, each.step] = True
    return read


def _trajectories(plan: Plan, cells: int) -> int:
    """How many trajectories so many (batch, step) cells of the statistics amount to."""
    return int(cells) * plan.sampler.batch_size // plan.schedule.num_steps


def _replays(plan: Plan, unread: np.ndarray) -> int:
    """Forwards that read stored batches, of which some steps are `unread`, (batches, steps) bool.

    Batches that are not stored whole are sampled again whole.
    """
    if plan.sampler.stores_all:
        return int(unread.sum())
    return _evaluations(plan) * int(unread.any(axis=1).sum())


def _evaluations(plan: Plan) -> int:
    return plan.sampler.evaluations(plan.schedule.num_steps)


def _files_left(plan: Plan, listed: Sequence[activations.Listed]) -> int:
    """How many files the steps that are not whole may still take: checkpoints, then themselves."""
    extent = plan.traced_batches * plan.sampler.batch_size
    names = {file.name for file in listed}
    checkpoints = Counter(file.step for file in listed if file.kind == activations.CHECKPOINT)
    return sum(
        1 + max(0, KEPT - checkpoints[step])
        for step in range(plan.schedule.num_steps)
        if activations.file_name(extent, step) not in names
    )
