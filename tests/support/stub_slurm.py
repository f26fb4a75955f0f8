"""Stubs of Slurm's programs that run a job's steps here, as the one node n1: for tests of a job's life.

The real Slurm is in `make rehearse`; these keep what a job does with it under a second.
"""

import os
from pathlib import Path

STUBS = {
    "srun": """
log= name= flags=()
while [[ $1 == --* ]]; do
  case $1 in --output=*) log=${1#*=} ;; --job-name=*) name=${1#*=} ;; esac
  flags+=("$1")
  shift
done
export SLURMD_NODENAME=n1
echo $$ > "$STUB_SLURM/$name"
echo "${flags[*]}" > "$STUB_SLURM.flags-$name"
env > "$STUB_SLURM.environment-$name"
if [[ -n $log ]]; then exec "$@" >> "$log" 2>&1; else exec "$@"; fi
""",
    "squeue": """
for file in "$STUB_SLURM"/*; do echo "$(cat "$file") ${file##*/}"; done
""",
    "scancel": """
kill "-${1#--signal=}" "$2"
""",
    "scontrol": """
case $1 in
  requeue)
    [[ ${STUB_REQUEUE:-} != fails ]] || { echo "Requested operation is presently disabled" >&2; exit 1; }
    echo requeued > "$STUB_SLURM.requeued"
    [[ ${STUB_REQUEUE:-} == ignored ]] || kill -TERM "$STUB_JOB" ;;
  *) echo "NodeAddr=127.0.0.1 JobState=${STUB_STATE:-RUNNING} ${STUB_FIELDS:-Requeue=1}" ;;
esac
""",
}


def write_stubs(folder: Path) -> dict[str, str]:
    """Write the programs into a folder; return the environment of a job that finds them."""
    programs, steps = folder / "programs", folder / "steps"
    programs.mkdir()
    steps.mkdir()
    for name, text in STUBS.items():
        (programs / name).write_text(f"#!/bin/bash\n# A stub of {name}.{text}")
        (programs / name).chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "STUB_SLURM": str(steps)}
