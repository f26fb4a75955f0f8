"""The table of pairs: no wrong answer counts as right; right ones that do not are listed, each with its reason.

`equal` in answer_pairs.json is what mathematics and the policy in docs/grading.md say, whatever the code says today.
`exact` is whether the two are spelled alike. `python benchmarks/graders.py --ours` prints the counts per class.
"""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from maxent_grpo.pipeline.answers.equality import are_equal
from maxent_grpo.pipeline.answers.text import canonicalize, find_answer
from maxent_grpo.pipeline.answers.verifier import Verifier
from maxent_grpo.pipeline.rewards import pure_accuracy_math

Pair = dict[str, Any]
PAIRS: list[Pair] = json.loads(Path(__file__).with_name("answer_pairs.json").read_text())
FALSE_NEGATIVES = {
    ("1/2x", r"\frac{1}{2}x"): "x/2 to some and 1/(2x) to others",
    ("11_2", "3"): "another base: where a problem asks for a base, the number in another one is no answer",
    ("1010_2", "10"): "another base",
    ("A_{16}", "1010_2"): "another base",
    (r"1,2,3,\ldots,n", r"1,2,\ldots,n"): "dots say nothing exact, so what stands around them has to be the same",
    (r"a \le x \le b", "[a,b]"): "an inequality in three variables",
    ("]1,2[", "(1,2)"): "brackets that are turned round",
    (r"\{x : x^2=4\}", r"\{-2,2\}"): "a set that is described by an equation",
    (
        r"2\begin{pmatrix}1\\2\end{pmatrix}",
        r"\begin{pmatrix}2\\4\end{pmatrix}",
    ): "matrices are read, not computed with",
}


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    pool = Verifier(workers=2, seconds=20.0)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def verdicts(verifier: Verifier) -> list[bool]:
    """The verdict on every pair, as two workers give them."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda pair: verdict(verifier, pair), PAIRS))


def verdict(verifier: Verifier, pair: Pair) -> bool:
    answer = find_answer(pair["completion"])
    if answer is None:
        return False
    compared = verifier.compare(pair["gold"], answer)
    assert compared.equal is not None, compared.error
    return compared.equal


def test_the_table_holds_six_hundred_different_pairs_in_classes_with_right_and_wrong_ones() -> None:
    assert len({(pair["completion"], pair["gold"]) for pair in PAIRS}) == len(PAIRS) >= 600
    right = Counter(pair["category"] for pair in PAIRS if pair["equal"])
    wrong = Counter(pair["category"] for pair in PAIRS if not pair["equal"])
    assert len(right | wrong) >= 25
    assert min(right.total(), wrong.total()) >= 250
    only_wrong = {"junk and attempts to please"}
    assert set(right) == set(wrong) - only_wrong


def test_no_wrong_answer_counts_as_right(verdicts: list[bool]) -> None:
    assert [pair for pair, equal in zip(PAIRS, verdicts, strict=True) if equal and not pair["equal"]] == []


def test_right_answers_that_do_not_count_are_those_that_are_listed(verdicts: list[bool]) -> None:
    missed = [pair for pair, equal in zip(PAIRS, verdicts, strict=True) if pair["equal"] and not equal]
    assert {(find_answer(pair["completion"]), pair["gold"]) for pair in missed} == set(FALSE_NEGATIVES)


def test_the_counts_per_class_are_printed(verdicts: list[bool]) -> None:
    """`pytest -s` shows them; their sum is what the two tests above hold."""
    counts: dict[str, Counter[str]] = {}
    for pair, equal in zip(PAIRS, verdicts, strict=True):
        kind = ("false " if equal != pair["equal"] else "true ") + ("positives" if equal else "negatives")
        counts.setdefault(pair["category"], Counter())[kind] += 1
    for category, count in counts.items():
        print(f"{category:32}", *(f"{kind}: {number:3}" for kind, number in sorted(count.items())), sep="  ")
    total = sum(counts.values(), Counter())
    assert (total["false positives"], total["false negatives"]) == (0, len(FALSE_NEGATIVES))
    assert total.total() == len(PAIRS)


def test_a_verdict_does_not_depend_on_which_of_the_two_is_the_reference(
    verifier: Verifier, verdicts: list[bool]
) -> None:
    # In completions that give nothing, and references that are nothing, there is nothing to turn round.
    turned = [
        (pair, equal, verifier.compare(answer, pair["gold"]).equal)
        for pair, equal in list(zip(PAIRS, verdicts, strict=True))[::3]
        if (answer := find_answer(pair["completion"])) not in (None, ".")
    ]
    assert [pair for pair, equal, back in turned if back != equal] == []


def test_a_half_percent_is_no_half(verifier: Verifier) -> None:
    verdicts = [verifier.compare("0.5", answer).equal for answer in (r"0.5\%", r"50\%", "0.5")]
    assert verdicts == [False, True, True]


def test_64_threads_get_the_verdicts_of_one(verifier: Verifier, verdicts: list[bool]) -> None:
    few = slice(None, None, 5)
    with ThreadPoolExecutor(64) as threads:
        assert list(threads.map(lambda pair: verdict(verifier, pair), PAIRS[few])) == verdicts[few]


def test_answers_count_as_spelled_alike_exactly_where_they_are() -> None:
    scores = pure_accuracy_math([pair["completion"] for pair in PAIRS], [pair["gold"] for pair in PAIRS])
    assert [pair for pair, score in zip(PAIRS, scores, strict=True) if score != float(pair["exact"])] == []


def test_what_is_spelled_alike_is_equal() -> None:
    assert [pair for pair in PAIRS if pair["exact"] and not pair["equal"]] == []


def test_the_canonical_spelling_is_its_own() -> None:
    for gold in (pair["gold"] for pair in PAIRS):
        assert canonicalize(canonicalize(gold)) == canonicalize(gold)


X = sympy.Symbol("x")
BENT = {
    "absolute value": lambda shift, scale: (abs(X - shift), X - shift),
    "its other side": lambda shift, scale: (abs(X - shift), shift - X),
    "root of a square": lambda shift, scale: (sympy.sqrt((X - shift) ** 2), shift - X),
    "steps": lambda shift, scale: (sympy.ceiling(X / scale), sympy.floor(X / scale) + 1),
    "steps that cancel": lambda shift, scale: (sympy.floor(X / scale) + sympy.floor(-X / scale), sympy.Integer(-1)),
    "inverse": lambda shift, scale: (sympy.atan(sympy.tan(X / scale)), X / scale),
    "larger one": lambda shift, scale: (sympy.Max(X, shift), X),
}


@pytest.mark.parametrize("name", BENT)
@given(shift=st.integers(-(10**6), 10**6), scale=st.integers(1, 10**6))
@settings(max_examples=20, deadline=None)
def test_formulas_that_part_far_out_are_not_equal(name: str, shift: int, scale: int) -> None:
    first, second = BENT[name](shift, scale)
    assert not are_equal(first, second)
    assert are_equal(first + 1, 1 + first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (sympy.sqrt(X**2), abs(X)),
        (sympy.floor(X + 7), sympy.floor(X) + 7),
        (abs(3 * X - 6), 3 * abs(2 - X)),
        (sympy.sqrt(9 * X), 3 * sympy.sqrt(X)),
    ],
)
def test_bent_formulas_that_agree_everywhere_are_equal(first: sympy.Expr, second: sympy.Expr) -> None:
    assert are_equal(first, second)
