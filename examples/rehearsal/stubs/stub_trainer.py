"""A stub of the trainer for drills of the launcher: steps that take time, a stop file that is read, failures.

STUB_TRAINER says how: ok; fails (at step 2); stalls (at step 2); orphan (leaves a process behind).
STUB_STEPS and STUB_STEP_SECONDS say how long it goes on. Its checkpoint is a file beside its progress.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

MODE = os.environ.get("STUB_TRAINER", "ok")
STEPS, SECONDS = int(os.environ.get("STUB_STEPS", "6")), float(os.environ.get("STUB_STEP_SECONDS", "0.5"))


def write_progress(step: int, *, stopped: bool = False) -> None:
    """Write what the pipeline's trainer writes."""
    Path(os.environ["LAUNCH_PROGRESS_FILE"]).write_text(json.dumps({"step": step, "stopped": stopped}))


def main() -> None:
    """Make steps, from the checkpoint's on if the command line says so."""
    checkpoint = Path(os.environ["LAUNCH_PROGRESS_FILE"]).with_name("stub-checkpoint")
    step = int(checkpoint.read_text()) if "--resume_from_checkpoint" in sys.argv and checkpoint.exists() else 0
    print(f"stub trainer ({MODE}) from step {step} with {len(sys.argv)} words", flush=True)
    print(f"stub trainer sees GPUs {os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
    if MODE == "orphan":
        # A session of its own and no parent: what a launcher that goes by children or groups does not find.
        subprocess.Popen(["setsid", "--fork", "sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while step < STEPS:
        time.sleep(SECONDS)
        step += 1
        write_progress(step)
        print(f"stub step {step}", flush=True)
        if MODE == "fails" and step == 2:
            sys.exit("stub trainer: failed, as it was told to")
        if MODE == "stalls" and step == 2:
            time.sleep(3600)
        checkpoint.write_text(str(step))
        if Path(os.environ["LAUNCH_STOP_FILE"]).exists():
            write_progress(step, stopped=True)
            print(f"stub trainer stopped at step {step}", flush=True)
            return
    print("stub trainer done", flush=True)


if __name__ == "__main__":
    main()
