"""Countdown for verl: the data, a reward and a key function. Nothing here needs more than verl does.

python examples/verl/countdown.py data/countdown     # train.parquet and test.parquet

A key function says which completions are the same answer: here the expression, in any order of sums and products.
"""

import ast
import random
import re
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

SYMBOLS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def evaluate(node: ast.expr) -> tuple[Fraction, list[int], str]:
    """Return an expression's value, the numbers in it, and one spelling for all orders of its sums and products."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value), [node.value], str(node.value)
    if not (isinstance(node, ast.BinOp) and type(node.op) in SYMBOLS):
        raise ValueError("Expected numbers, + - * / and parentheses.")
    (left, lefts, one), (right, rights, other) = evaluate(node.left), evaluate(node.right)
    symbol = SYMBOLS[type(node.op)]
    if symbol in "+*":
        one, other = sorted((one, other))
    values = {"+": left + right, "-": left - right, "*": left * right}
    return values[symbol] if symbol in values else left / right, lefts + rights, f"({one}{symbol}{other})"


def read_solution(text: str, numbers: Sequence[int], target: int) -> str | None:
    r"""Return the spelling of the right expression in the last \boxed{...}; None if there is none.

    >>> read_solution(r"So \boxed{(3+5)*2}", [2, 3, 5], 16) == read_solution(r"\boxed{2*(5+3)}", [2, 3, 5], 16)
    True
    """
    boxes = re.findall(r"\\boxed\{([^{}]{1,200})\}", text)
    try:
        value, used, spelling = evaluate(ast.parse(boxes[-1].strip(), mode="eval").body)
    except (IndexError, SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return spelling if value == target and sorted(used) == sorted(numbers) else None


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> float:
    """Return 1.0 for a right expression and 0.0 for any other answer: `reward.custom_reward_function`."""
    return float(read_solution(solution_str, extra_info["numbers"], int(ground_truth)) is not None)


def find_keys(
    completions: Sequence[str], ground_truth: Sequence[str], numbers: Sequence[Sequence[int]], **_: Any
) -> list[str | None]:
    """Return what each completion answers: `algorithm.maxent.key_func`. Wrong ones repeat only token by token."""
    problems = zip(completions, numbers, ground_truth, strict=True)
    return [read_solution(text, given, int(target)) for text, given, target in problems]


def make_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Return problems with three numbers each, all of which have a solution."""
    rng, rows = random.Random(seed), []
    for index in range(count):
        numbers, target = rng.sample(range(2, 13), 3), -1
        while not 0 < target < 100:
            a, b, c = rng.sample(numbers, 3)
            target = rng.choice([a + b + c, a * b + c, a * b - c, (a + b) * c, (a - b) * c, a + b - c])
        question = (
            f"Write an expression that equals {target}. Use each of the numbers {', '.join(map(str, numbers))} "
            "exactly once and only + - * / and parentheses. End with the expression alone in \\boxed{...}."
        )
        rows.append(
            {
                "data_source": "countdown",
                "prompt": [{"role": "user", "content": question}],
                "reward_model": {"style": "rule", "ground_truth": str(target)},
                "extra_info": {"index": index, "numbers": numbers},
            }
        )
    return rows


def main(folder: Path) -> None:
    import pandas as pd  # noqa: PLC0415  (verl's reward workers do without)

    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate({"train": 4096, "test": 256}.items()):
        pd.DataFrame(make_rows(seed, count)).to_parquet(folder / f"{name}.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
