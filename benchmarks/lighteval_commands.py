"""Let the real LightEval read the commands that `evaluate.py --lighteval` prints; JSON in benchmarks/results.

    python benchmarks/lighteval_commands.py

It has an environment of its own. Its command line, its settings of a model and its list of tasks read each command;
no model is loaded.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from _peer_environment import build_environment

ROOT = Path(__file__).parents[1]
READER = Path(__file__).with_name("_lighteval_reader.py")
RESULTS = ROOT / "benchmarks" / "results" / "lighteval.json"
BENCHMARKS = ("math_500", "aime24", "aime25", "gsm8k", "gpqa:diamond", "gpqa:main", "mmlu_pro", "ifeval", "lcb")
PACKAGES = ("lighteval==0.13.0",)


def main() -> None:
    commands = [command for backend in ("vllm", "accelerate") for command in list_commands(backend)]
    python = build_environment("lighteval", PACKAGES)
    # -P: LightEval must not take a script beside the reader, such as kernels.py, for a package of that name.
    words = json.dumps([shlex.split(command)[1:] for command in commands])
    done = subprocess.run([python, "-P", str(READER)], input=words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"Expected LightEval to read all commands, got:\n{done.stderr[-2000:]}")
    tasks = json.loads(done.stdout.splitlines()[-1])
    rows = [{"command": command, "tasks": count} for command, count in zip(commands, tasks, strict=True)]
    RESULTS.write_text(json.dumps({"packages": PACKAGES, "read": rows}, indent=1) + "\n")
    print(f"LightEval reads {len(rows)} commands")


def list_commands(backend: str) -> list[str]:
    """Return the commands of the benchmarks as a dry run prints them."""
    command = [sys.executable, "examples/evaluate.py", "runs/one", "--lighteval", ",".join(BENCHMARKS), "--dry-run"]
    command += ["--backend", backend, "--temperature", "0.0", "--max_new_tokens", "64", "--output", "out"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


if __name__ == "__main__":
    main()
