"""Count right and wrong verdicts on the table of answers: ours, math-verify alone, TRL, lighteval and verl.

    python benchmarks/graders.py            # all; JSON and a table in benchmarks/results
    python benchmarks/graders.py --ours     # ours alone, printed

The others run from their packages, in an environment of their own beside this one. What is asked is the comparison:
pairs on where an answer stands (the class "formats") are left out, because each library has its own place for it.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "pipeline" / "answer_pairs.json"
RESULTS = ROOT / "benchmarks" / "results" / "graders.json"
PEERS = Path(__file__).with_name("_grader_peers.py")
LEFT_OUT = "formats"
OURS = "ours"
HERE = ("math-verify", "TRL accuracy_reward")
"""Graders of packages that are dependencies anyway."""
THERE = ("lighteval", "verl math_reward", "verl prime_math")
PACKAGES = (
    "lighteval==0.13.0 verl==0.9.1 latex2sympy2_extended==1.0.6 antlr4-python3-runtime==4.13.2 pylatexenc==2.10"
    " aenum==3.1.15"
)
"""Without their dependencies, which are gigabytes that the graders do not use."""
PACKAGES_HERE = ("math-verify", "latex2sympy2_extended", "sympy", "trl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", action="store_true", help="judge with ours alone and write nothing")
    options = parser.parse_args()
    rows = load_rows()
    verdicts = {OURS: judge_with_ours(rows)}
    if not options.ours:
        pairs = json.dumps([(row["gold"], row["answer"]) for row in rows])
        from _peer_environment import build_environment  # noqa: PLC0415 - found from this folder alone

        python = build_environment("graders", PACKAGES.split(), "--no-deps")
        verdicts |= {name: judge_with_peer(sys.executable, name, pairs) for name in HERE}
        verdicts |= {name: judge_with_peer(python, name, pairs) for name in THERE}
    counts = {name: count_verdicts(rows, each) for name, each in verdicts.items()}
    print(write_table(counts))
    if not options.ours:
        here = [f"{name}=={metadata.version(name)}" for name in PACKAGES_HERE]
        packages = {"ours, math-verify, TRL": here, "lighteval, verl": PACKAGES.split()}
        RESULTS.write_text(write_json({"pairs": len(rows), "packages": packages, "counts": counts}))


def load_rows() -> list[dict[str, str]]:
    """Return the pairs, each with the answer that its completion gives."""
    from maxent_grpo.pipeline.answers.text import find_answer  # noqa: PLC0415 - imports torch

    rows = json.loads(TABLE.read_text())
    answers = [find_answer(row["completion"]) for row in rows]
    return [row | {"answer": a} for row, a in zip(rows, answers, strict=True) if a and row["category"] != LEFT_OUT]


def judge_with_ours(rows: list[dict[str, str]]) -> list[bool]:
    from maxent_grpo.pipeline.answers.verifier import Verifier  # noqa: PLC0415 - imports torch

    verifier = Verifier(workers=2, seconds=20.0)
    compared = verifier.compare_all([(row["gold"], row["answer"]) for row in rows])
    verifier.close()
    return [bool(each.equal) for each in compared]


def judge_with_peer(python: str, name: str, pairs: str) -> list[bool]:
    """Return the verdicts of another library's grader, in a process of its own."""
    command = [python, str(PEERS), name]
    done = subprocess.run(command, input=pairs, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Expected verdicts of {name}, got:\n{done.stderr[-2000:]}")
    verdicts: list[bool] = json.loads(done.stdout)
    return verdicts


def count_verdicts(rows: list[dict[str, str]], verdicts: list[bool]) -> dict[str, dict[str, int]]:
    """Return per class the right verdicts, the false positives and the false negatives; "all" is their sum."""
    counts: dict[str, Counter[str]] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        kind = "right" if verdict == row["equal"] else "false positives" if verdict else "false negatives"
        counts.setdefault(row["category"], Counter())[kind] += 1
    counts["all"] = sum(counts.values(), Counter())
    kinds = ("right", "false positives", "false negatives")
    return {category: {kind: count[kind] for kind in kinds} for category, count in counts.items()}


def write_table(counts: dict[str, dict[str, dict[str, int]]]) -> str:
    """Return a Markdown table: per class and grader right, false positives, false negatives."""
    lines = ["| class | " + " | ".join(counts) + " |", "|---" * (len(counts) + 1) + "|"]
    for category in counts[OURS]:
        cells = ["{right} / {false positives} / {false negatives}".format_map(c[category]) for c in counts.values()]
        lines.append(f"| {category} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_json(results: dict[str, Any]) -> str:
    """Return the results as JSON with a line per class."""
    text = json.dumps(results, indent=1)
    return re.sub(r"[{\[]\s+([^{}\[\]]*?)\s+[}\]]", lambda match: " ".join(match[0].split()), text) + "\n"


if __name__ == "__main__":
    main()
