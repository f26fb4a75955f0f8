"""Countdown: join the given numbers, each used exactly once, with + - * / into the target.

A problem's modes are all right expressions up to the order of the children of + and * (`expressions.mode_key`).
Steps may be negative or fractional unless the rules ask for whole steps; the enumeration is exhaustive.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations, product
from math import comb

from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict, read_answer
from maxent_grpo.pipeline.tasks.expressions import (
    Tree,
    apply,
    arrangements,
    evaluate,
    leaves,
    mode_key,
    parse,
    render,
)

ALPHABET = " 0123456789+-*/()=:"


@dataclass(frozen=True)
class Rules:
    """Which problems there are: every set of `count` different numbers of low..high with every target allowed.

    Args:
        count: how many numbers a problem gives.
        low: the smallest number.
        high: the largest number.
        max_target: targets are 1..max_target; None means 12 * count.
        target_among_numbers: whether the target may be one of the numbers.
        whole_steps: whether every intermediate result must be an integer (negative ones may be).
        min_modes: the fewest modes a problem has.
        max_modes: the most modes a problem has.
    """

    count: int = 3
    low: int = 2
    high: int = 12
    max_target: int | None = None
    target_among_numbers: bool = False
    whole_steps: bool = False
    min_modes: int = 2
    max_modes: int = 8


MODEBENCH = Rules()
"""The rules of the benchmark ModeBench (PyPI: modebench): 787 problems, 5 modes in the median."""
MODEBENCH_4 = Rules(count=4)
"""The same with four numbers."""
WIDE = Rules(high=20, max_target=99, target_among_numbers=True, whole_steps=True)
"""4,992 problems: two-digit targets, whole steps."""


@dataclass(frozen=True)
class Problem:
    """Numbers, a target, and the modes: all right answers, sorted by length then text."""

    numbers: tuple[int, ...]
    target: int
    modes: tuple[str, ...]
    whole_steps: bool = False

    @property
    def id(self) -> str:
        """The identity: the numbers in any order, and the target."""
        return f"{' '.join(map(str, sorted(self.numbers)))} = {self.target}"


def problems(rules: Rules = MODEBENCH) -> list[Problem]:
    """Return all problems of the rules, by numbers and then target.

    The single-mode control problems are those of `replace(rules, min_modes=1, max_modes=1)`.

    Raises:
        ValueError: if the range holds fewer numbers than a problem gives.

    >>> len(problems()), problems()[0].id
    (787, '2 3 4 = 1')
    """
    if not 1 <= rules.count <= rules.high - rules.low + 1:
        raise ValueError(f"Expected 1 <= count <= high - low + 1, got {rules}.")

    @cache
    def parts(numbers: tuple[int, ...]) -> list[tuple[Fraction, Tree]]:
        return list(_enumerate_trees(numbers, parts, whole_steps=rules.whole_steps))

    found_problems = []
    for numbers in combinations(range(rules.low, rules.high + 1), rules.count):
        trees_by_target: dict[int, list[Tree]] = defaultdict(list)
        for value, tree in _enumerate_trees(numbers, parts, whole_steps=rules.whole_steps):
            if value.denominator == 1 and _is_target(value.numerator, numbers, rules):
                trees_by_target[value.numerator].append(tree)
        for target, trees in sorted(trees_by_target.items()):
            if rules.min_modes <= len(trees) <= rules.max_modes:
                modes = tuple(sorted(map(mode_key, trees), key=lambda mode: (len(mode), mode)))
                found_problems.append(Problem(numbers, target, modes, rules.whole_steps))
    return found_problems


def prompt(problem: Problem, *, boxed: bool = False) -> str:
    r"""Return the prompt: compact, or in plain language with the answer asked for in `\boxed{...}`.

    >>> prompt(Problem((2, 5, 9), 21, ()))
    '2 5 9 = 21 :'
    """
    if not boxed:
        return f"{' '.join(map(str, problem.numbers))} = {problem.target} :"
    whole_steps = " Every intermediate result must be a whole number." if problem.whole_steps else ""
    return (
        f"Write an arithmetic expression that equals {problem.target}. Use each of the numbers "
        f"{', '.join(map(str, problem.numbers))} exactly once and no other numbers. "
        f"You may use +, -, *, / and parentheses.{whole_steps} "
        "End with the expression alone, without an equals sign, in \\boxed{...}."
    )


def verify(problem: Problem, text: object, *, boxed: bool = False) -> Verdict:
    """Return whether the text's answer is right, and its mode; a bad answer is wrong, never an exception.

    Right means: an expression `expressions.parse` accepts, every given number used exactly once and nothing
    else, and the exact value of the target. With `boxed`, only an answer in a box counts.

    >>> verify(Problem((2, 3, 5), 16, ()), "(5+3)*2")
    Verdict(correct=True, mode='2*(3+5)')
    """
    try:
        tree = parse(read_answer(text, boxed=boxed), max_numbers=len(problem.numbers))
    except ValueError:
        return WRONG
    if sorted(leaves(tree)) != sorted(problem.numbers):
        return WRONG
    if evaluate(tree, whole_steps=problem.whole_steps) != problem.target:
        return WRONG
    return Verdict(correct=True, mode=mode_key(tree))


def reward(problem: Problem, text: object, *, boxed: bool = False) -> float:
    """Return 1.0 for a right answer and 0.0 for any other."""
    return float(verify(problem, text, boxed=boxed).correct)


def solutions(problem: Problem) -> dict[str, tuple[str, ...]]:
    """Return for every mode all its expressions that have no needless parentheses, the mode's key first.

    >>> solutions(Problem((2, 3, 4), 2, ("2*3-4",)))
    {'2*3-4': ('2*3-4', '3*2-4')}
    """
    count = len(problem.numbers)
    trees = {mode: parse(mode, max_numbers=count) for mode in problem.modes}
    return {mode: tuple(map(render, arrangements(tree))) for mode, tree in trees.items()}


def random_answer(problem: Problem, rng: random.Random) -> str:
    """Return a uniform draw from the well-formed answers.

    For k numbers these are k! orders x Catalan(k - 1) bracketings x 4^(k - 1) operators, each written with
    no needless parentheses; a division by zero is among them and is wrong.
    """
    return render(_draw_tree(rng.sample(problem.numbers, len(problem.numbers)), rng))


def _enumerate_trees(
    numbers: tuple[int, ...], parts: Callable[[tuple[int, ...]], list[tuple[Fraction, Tree]]], *, whole_steps: bool
) -> Iterator[tuple[Fraction, Tree]]:
    """Yield every tree over different numbers, one for each mode, with its value.

    The numbers are split between the root's two children in all ways, each unordered split once. So + and * come
    in one order of their children, and - and / in both.
    """
    if len(numbers) == 1:
        yield Fraction(numbers[0]), numbers[0]
    for one, other in _enumerate_splits(numbers):
        for (a, left), (b, right) in product(parts(one), parts(other)):
            joined = [(apply(operator, a, b), (operator, left, right)) for operator in "+-*/"]
            joined += [(apply(operator, b, a), (operator, right, left)) for operator in "-/"]
            for value, tree in joined:
                if value is not None and (value.denominator == 1 or not whole_steps):
                    yield value, tree


def _enumerate_splits(numbers: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield every way to part the numbers into two non-empty sets, the first number's set first."""
    first, rest = numbers[0], numbers[1:]
    for size in range(len(rest)):
        for others in combinations(rest, size):
            yield (first, *others), tuple(number for number in rest if number not in others)


def _is_target(value: int, numbers: tuple[int, ...], rules: Rules) -> bool:
    highest = 12 * rules.count if rules.max_target is None else rules.max_target
    return 1 <= value <= highest and (rules.target_among_numbers or value not in numbers)


def _draw_tree(numbers: list[int], rng: random.Random) -> Tree:
    """Return a tree over the numbers in this order, uniform over bracketings and operators."""
    count = len(numbers)
    if count == 1:
        return numbers[0]
    bracketings = [_catalan(left - 1) * _catalan(count - left - 1) for left in range(1, count)]
    (left,) = rng.choices(range(1, count), bracketings)
    return rng.choice("+-*/"), _draw_tree(numbers[:left], rng), _draw_tree(numbers[left:], rng)


def _catalan(joins: int) -> int:
    """Return how many binary trees have `joins` inner nodes."""
    return comb(2 * joins, joins) // (joins + 1)
