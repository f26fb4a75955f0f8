import random
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction
from itertools import chain, combinations, permutations, product
from statistics import median

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import chisquare

from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tasks.answers import WRONG
from maxent_grpo.pipeline.tasks.countdown import MODEBENCH, MODEBENCH_4, WIDE, Problem, Rules
from maxent_grpo.pipeline.tasks.expressions import evaluate, leaves, mode_key, parse

PROBLEMS = countdown.problems()
problems = st.sampled_from(PROBLEMS)


def brute_force_values(order):
    """Every (value, nested sets for + and *) of an expression over the numbers in this order."""
    if len(order) == 1:
        return [(Fraction(order[0]), order[0])]
    values = []
    for cut in range(1, len(order)):
        pairs = product(brute_force_values(order[:cut]), brute_force_values(order[cut:]))
        for (a, left), (b, right) in pairs:
            either = Counter([left, right])
            values.append((a + b, ("+", frozenset(either.items()))))
            values.append((a * b, ("*", frozenset(either.items()))))
            values.append((a - b, ("-", left, right)))
            if b != 0:
                values.append((a / b, ("/", left, right)))
    return values


def brute_force_counts(count, low, high):
    """How many modes each `numbers = target` has that the rules of ModeBench allow."""
    modes = defaultdict(set)
    for numbers in combinations(range(low, high + 1), count):
        for value, key in chain.from_iterable(map(brute_force_values, permutations(numbers))):
            if value in range(1, 12 * count + 1) and value not in numbers:
                modes[f"{' '.join(map(str, numbers))} = {value}"].add(key)
    return {problem: len(keys) for problem, keys in modes.items()}


def test_three_numbers_of_2_to_12_give_the_published_787_problems_with_five_modes_in_the_median():
    sizes = [len(problem.modes) for problem in PROBLEMS]
    assert len(PROBLEMS) == 787
    assert median(sizes) == 5
    assert (min(sizes), max(sizes)) == (2, 8)


@pytest.mark.parametrize("rules", [MODEBENCH, replace(MODEBENCH_4, high=6)])
def test_the_problems_are_exactly_those_of_a_brute_force_enumeration(rules):
    counts = brute_force_counts(rules.count, rules.low, rules.high)
    expected = {problem: count for problem, count in counts.items() if 2 <= count <= 8}
    assert {problem.id: len(problem.modes) for problem in countdown.problems(rules)} == expected


def test_the_wide_rules_give_4992_problems_whose_modes_all_keep_to_whole_numbers():
    wide = countdown.problems(WIDE)
    assert len(wide) == 4992
    for problem in wide[::50]:
        assert all(countdown.verify(problem, mode).correct for mode in problem.modes)


def test_whole_steps_refuse_a_right_value_reached_through_a_fraction():
    problem = Problem((2, 4, 6), 3, ())
    assert countdown.verify(problem, "2/4*6").correct
    assert countdown.verify(replace(problem, whole_steps=True), "2/4*6") == WRONG
    assert countdown.verify(replace(problem, whole_steps=True), "6*2/4").correct


def test_every_solution_of_every_problem_verifies_as_its_mode_and_names_it_once():
    for problem in PROBLEMS:
        texts_by_mode = countdown.solutions(problem)
        assert tuple(texts_by_mode) == problem.modes
        for mode, texts in texts_by_mode.items():
            assert mode in texts
            assert len(set(texts)) == len(texts) == 2 ** sum(map(mode.count, "+*"))
            assert {countdown.verify(problem, text) for text in texts} == {(True, mode)}


@given(problems, st.randoms(use_true_random=False))
def test_an_answer_is_right_exactly_where_its_mode_is_listed(problem, rng):
    text = countdown.random_answer(problem, rng)
    key = mode_key(parse(text, max_numbers=3))
    expected = (True, key) if key in problem.modes else WRONG
    assert countdown.verify(problem, text) == expected
    assert countdown.reward(problem, text) == float(key in problem.modes)


@given(problems, st.data())
def test_a_mutated_solution_counts_only_if_it_still_uses_the_numbers_and_makes_the_target(problem, data):
    text = data.draw(st.sampled_from([t for texts in countdown.solutions(problem).values() for t in texts]))
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 2))
    mutated = text[:at] + data.draw(st.text(countdown.ALPHABET + "\\{}.^\0٣", max_size=2)) + text[at + cut :]
    verdict = countdown.verify(problem, mutated)
    try:
        tree = parse(mutated, max_numbers=3)
    except ValueError:
        assert verdict == WRONG
    else:
        right = sorted(leaves(tree)) == list(problem.numbers) and evaluate(tree) == problem.target
        assert verdict == ((True, mode_key(tree)) if right else WRONG)
        assert not right or verdict.mode in problem.modes


@given(problems, st.integers(0, 7), st.booleans())
@example(PROBLEMS[0], 0, True)
def test_the_reward_is_the_same_for_every_mode_boxed_or_bare(problem, which, boxed):
    mode = problem.modes[which % len(problem.modes)]
    text = f"Let me see, \\boxed{{0}} is wrong. \\boxed{{{mode}}}" if boxed else mode
    assert countdown.reward(problem, text, boxed=boxed) == 1.0


@pytest.mark.parametrize(
    "text", ["2+3", "2+3+3+3", "5+3", "2+3+3-0", "2*3+3=9", "9", "(2+3)*3", "3*(3+02)", "3+3*2.0", "3+3*2*1"]
)
def test_an_answer_that_does_not_use_each_given_number_once_for_the_target_is_wrong(text):
    assert countdown.verify(Problem((2, 3, 3), 9, ()), text) == WRONG


def test_a_number_given_twice_must_be_used_twice():
    assert countdown.verify(Problem((3, 2, 3), 9, ()), "2*3+3") == (True, "3+2*3")
    assert countdown.verify(Problem((3, 2, 3), 5, ()), "2+3") == WRONG
    assert countdown.verify(Problem((3, 2, 3), 7, ()), "2+2+3") == WRONG


def test_with_boxed_a_bare_answer_is_wrong():
    problem = Problem((2, 5, 9), 16, ())
    assert countdown.verify(problem, "2+5+9").correct
    assert not countdown.verify(problem, "2+5+9", boxed=True).correct


def test_single_mode_controls_have_one_mode_and_share_no_identity_with_the_others():
    single = countdown.problems(replace(MODEBENCH, min_modes=1, max_modes=1))
    counts = brute_force_counts(3, 2, 12)
    assert {problem.id for problem in single} == {problem for problem, count in counts.items() if count == 1}
    assert {len(problem.modes) for problem in single} == {1}
    assert not {problem.id for problem in single} & {problem.id for problem in PROBLEMS}


def test_the_identity_ignores_the_order_of_the_numbers():
    assert Problem((9, 2, 5), 16, ()).id == Problem((2, 5, 9), 16, ()).id == "2 5 9 = 16"
    assert len({problem.id for problem in PROBLEMS}) == len(PROBLEMS)


def test_a_range_too_small_for_the_numbers_is_refused():
    with pytest.raises(ValueError, match="Expected 1 <= count <= high - low"):
        countdown.problems(Rules(count=4, low=2, high=4))


def test_prompts_name_numbers_and_target_and_keep_to_the_alphabet():
    for problem in PROBLEMS[::20]:
        compact = countdown.prompt(problem) + "".join(problem.modes)
        assert set(compact) <= set(countdown.ALPHABET)
        words = countdown.prompt(problem, boxed=True)
        assert f"{', '.join(map(str, problem.numbers))} " in words
        assert f"equals {problem.target}." in words
        assert words.endswith("\\boxed{...}.")
    assert "whole number" in countdown.prompt(Problem((2, 5, 9), 16, (), whole_steps=True), boxed=True)


def test_random_answers_are_uniform_over_orders_bracketings_and_operators():
    rng = random.Random(0)
    problem = Problem((2, 5, 9), 16, ())
    n_answers = 6 * 2 * 4**2
    counts = Counter(countdown.random_answer(problem, rng) for _ in range(100 * n_answers))
    assert len(counts) == n_answers
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_random_answers_are_uniform_over_the_five_bracketings_of_four_numbers():
    def shape(tree):
        return "x" if isinstance(tree, int) else f"({shape(tree[1])}{shape(tree[2])})"

    rng = random.Random(0)
    problem = Problem((2, 3, 5, 7), 24, ())
    counts = Counter(shape(parse(countdown.random_answer(problem, rng), max_numbers=4)) for _ in range(5000))
    assert len(counts) == 5
    assert chisquare(list(counts.values())).pvalue > 1e-3
