"""The MATH problems as verl reads them.

python examples/verl/math_data.py data/math     # train.parquet and test.parquet

verl's own reward for this data source compares what is boxed; it needs no reward function.
"""

import sys
from pathlib import Path
from typing import Any

from datasets import load_dataset

SOURCE = "DigitalLearningGmbH/MATH-lighteval"
REQUEST = " Let's think step by step and output the final answer within \\boxed{}."


def make_row(problem: dict[str, Any], index: int) -> dict[str, Any]:
    """Return a problem in verl's columns."""
    solution = problem["solution"]
    boxed = solution[solution.rindex("\\boxed") :]
    start, depth = boxed.index("{") + 1, 0
    for end in range(start - 1, len(boxed)):  # braces nest
        depth += {"{": 1, "}": -1}.get(boxed[end], 0)
        if depth == 0:
            break
    return {
        "data_source": SOURCE,
        "prompt": [{"role": "user", "content": problem["problem"] + REQUEST}],
        "reward_model": {"style": "rule", "ground_truth": boxed[start:end]},
        "extra_info": {"index": index},
    }


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        rows = load_dataset(SOURCE, split=name)
        rows = rows.filter(lambda problem: "\\boxed{" in problem["solution"])
        rows.map(make_row, with_indices=True, remove_columns=rows.column_names).to_parquet(folder / f"{name}.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
