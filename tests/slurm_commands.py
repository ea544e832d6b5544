"""Commands that stand in for Slurm's: `sbatch` runs an array's tasks here, one after the other."""

from pathlib import Path

SBATCH = """#!/bin/sh
cp "$1" "$(dirname "$0")/batch.sh"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
export SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=7 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0
export SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=here SLURM_NODEID=0 SLURM_CPUS_PER_TASK=1
(for task in $(seq 0 "${last:-0}"); do SLURM_ARRAY_TASK_ID=$task sh "$1"; done) \\
  > "$(dirname "$0")/log" 2>&1 &
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do [ "$1" = --unbuffered ] && shift || shift 2; done
exec "$@"
"""
REFUSING = """#!/bin/sh
echo "sbatch: error: invalid partition specified: $0" >&2
exit 1
"""
SACCT = """#!/bin/sh
printf 'JobID|State|NodeList\\n7_0|RUNNING|here\\n7_1|RUNNING|here\\n'
"""


def install(folder: Path, *, refusing: bool = False) -> Path:
    """Put sbatch, srun and sacct into a folder; `refusing`: sbatch takes no job."""
    folder.mkdir()
    commands = {"sbatch": REFUSING if refusing else SBATCH, "srun": SRUN, "sacct": SACCT}
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder
