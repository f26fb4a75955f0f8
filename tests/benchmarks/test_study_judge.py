"""The study's tasks and its measure of difference, judged by ModeBench, which is not ours (PyPI `modebench`)."""

import ast
import operator
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from benchmarks.study.outcomes import measure_difference
from benchmarks.study.tasks import FAMILIES

ONLY_BEFORE = {"reason": "ModeBench is for Python before 3.13"}
countdown = pytest.importorskip("modebench.domains.countdown.grading", **ONLY_BEFORE)
coloring = pytest.importorskip("modebench.domains.graph_coloring.grading", **ONLY_BEFORE)
metrics = pytest.importorskip("modebench.metrics", **ONLY_BEFORE)
DIGITS = {"R": "1", "G": "2", "B": "3"}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def list_values(node: ast.expr) -> list[Fraction]:
    """Return the value of an expression, and after it those of all its parts."""
    if not isinstance(node, ast.BinOp):
        return [Fraction(ast.literal_eval(node))]
    left, right = list_values(node.left), list_values(node.right)
    return [OPERATORS[type(node.op)](left[0], right[0]), *left, *right]


def judge_countdown(problem, text: str) -> tuple[bool, str | None]:
    judged = countdown.grade(text, {"numbers": list(problem.numbers), "target": problem.target}, text)
    # The study's problems ask for whole numbers at every step, which ModeBench does not.
    whole = judged["verified"] and all(
        value.denominator == 1 for value in list_values(ast.parse(text, mode="eval").body)
    )
    return whole, judged["canonical_key"]


def judge_coloring(problem, text: str) -> tuple[bool, str | None]:
    spec = {
        "n": len(problem.partial),
        "edges": [[a + 1, b + 1] for a, b in problem.edges],
        "partial_colors": [int(DIGITS[color]) if color in DIGITS else None for color in problem.partial],
    }
    answer = "".join(DIGITS[color] for color in text)
    judged = coloring.grade(answer, spec, answer)
    return judged["verified"], judged["canonical_key"]


@pytest.mark.parametrize(("task", "judge"), [("countdown", judge_countdown), ("graph", judge_coloring)])
def test_verdicts_and_modes_are_those_of_modebench(task: str, judge) -> None:
    family, rng = FAMILIES[task], random.Random(0)
    seen = Counter()
    for problem in rng.sample(family.list_problems(), 300):
        listed = [text for texts in family.list_solutions(problem).values() for text in texts]
        keys_by_mode: dict[str, set[str]] = {}
        for text in [*listed, *(family.module.random_answer(problem, rng) for _ in range(20))]:
            verdict, (right, key) = family.module.verify(problem, text), judge(problem, text)
            assert verdict.correct == right, (problem, text)
            seen[right] += 1
            if right:
                keys_by_mode.setdefault(verdict.mode, set()).add(key)
        # Two modes of ours are two of theirs, and all texts of one are one.
        assert sorted(keys_by_mode) == sorted(problem.modes)
        keys = [key for keys in keys_by_mode.values() for key in keys]
        assert len(keys) == len(keys_by_mode) == len(set(keys))
    assert min(seen[True], seen[False]) > 1000


def test_the_exact_difference_is_what_modebench_estimates_from_samples() -> None:
    rng, draws = np.random.default_rng(0), 4000
    outcomes = np.array([[0.4, 0.2, 0.1], [0.05, 0.05, np.nan], [0.9, 0.0, 0.05], [0.3, np.nan, np.nan]])
    estimates = []
    for row in outcomes:
        shares = np.nan_to_num(row)
        for counts in rng.multinomial(8, [*shares, 1 - shares.sum()], size=draws):
            diversity = metrics.mode_diversity([int(count) for count in counts[:-1] if count])
            if diversity is not None:  # two right samples at least
                estimates.append(diversity)
    error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(measure_difference(outcomes, 8) - np.mean(estimates)) < 4 * error
