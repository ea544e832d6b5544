"""A stage of its own: of each trajectory the latents times two, a shard each.

All that a new stage is: this file, a line in `taqdit.stages.kinds.KINDS`, a line of the course of a
run that calls `double`; it has no settings, and so no config group.
"""

from taqdit.stages import Part, StageKind
from taqdit.stages.checks.check import Check
from taqdit.stages.context import once, seal
from taqdit.stages.fingerprints import trajectory_inputs


class DoubledCheck(Check):
    """Finite numbers under the number of their trajectory."""

    def index(self, name, shard):
        return int(name.removesuffix(".safetensors"))


def file_name(index):
    return f"{index:06d}.safetensors"


def parts(plan):
    wanted = range(plan.sampler.num_trajectories if "doubled" in plan.needs else 0)
    height, width, channels = plan.model.latent_shape
    latents = (plan.schedule.num_steps + 1) * height * width * channels
    files = frozenset(map(file_name, wanted))
    return (Part("doubled", "doubled", len(wanted) * latents * 4, files),)


DOUBLED = StageKind(
    name="doubled",
    unit="doubled trajectory",
    made_from=("trajectories",),
    check=DoubledCheck,
    inputs=lambda plan: {**trajectory_inputs(plan), "factor": 2},
    parts=parts,
)


def double(context, trajectories):
    """Stage `doubled`, completed."""
    with context.stage(DOUBLED) as (stage, report):
        valid = stage.valid(map(file_name, range(len(trajectories))))
        missing = [i for i in range(len(trajectories)) if file_name(i) not in valid]
        context.admit(stage, missing)
        for index in missing:
            name = file_name(index)
            once(
                stage,
                f"doubling-{index:06d}",
                read=lambda n=name: stage.path(n) if stage.valid([n]) else None,
                compute=lambda i=index: {"doubled": 2 * trajectories.latents(i)},
                write=lambda tensors, n=name, i=index: stage.write(
                    n, tensors, kind="doubled", index=i, metadata={}
                ),
            )
            report.made += 1
        report.reused = len(trajectories) - report.made
        seal(stage)
