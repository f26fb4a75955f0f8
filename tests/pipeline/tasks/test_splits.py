import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxent_grpo.pipeline.tasks import countdown, graph_coloring
from maxent_grpo.pipeline.tasks.countdown import MODEBENCH, Problem
from maxent_grpo.pipeline.tasks.splits import split

PROBLEMS = countdown.problems()
GRAPHS = graph_coloring.problems(4)


def ids(problems):
    return {problem.id for problem in problems}


@pytest.mark.parametrize("problems", [PROBLEMS, GRAPHS], ids=["countdown", "graph_coloring"])
@pytest.mark.parametrize("held_out", [0, 1, 128, 600])
def test_every_problem_is_on_exactly_one_side(problems, held_out):
    sides = split(problems, held_out=held_out, seed=0)
    assert len(sides.held_out) == held_out
    assert len(sides.train) + len(sides.held_out) == len(problems)
    assert ids(sides.train) | ids(sides.held_out) == ids(problems)
    assert not ids(sides.train) & ids(sides.held_out)


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_problems_does_not_matter(rng):
    shuffled = rng.sample(PROBLEMS, len(PROBLEMS))
    assert split(shuffled, held_out=100, seed=7) == split(PROBLEMS, held_out=100, seed=7)


def test_all_problems_on_an_entity_are_on_one_side():
    sides = split(PROBLEMS, held_out=100, seed=0, entity=lambda problem: str(problem.numbers))
    trained, held_out = ({problem.numbers for problem in side} for side in (sides.train, sides.held_out))
    assert not trained & held_out
    assert 100 <= len(sides.held_out) < 150
    assert len(sides.train) + len(sides.held_out) == len(PROBLEMS)


def test_the_seed_sets_the_split():
    first, second = (split(PROBLEMS, held_out=100, seed=seed) for seed in (0, 1))
    assert ids(first.held_out) != ids(second.held_out)


def test_holding_out_more_keeps_what_was_held_out():
    few, many = (split(PROBLEMS, held_out=held_out, seed=0) for held_out in (50, 100))
    assert many.held_out[:50] == few.held_out


def test_a_problem_given_twice_is_refused_even_with_its_numbers_in_another_order():
    twins = [Problem((2, 5, 9), 16, ()), Problem((9, 5, 2), 16, ())]
    with pytest.raises(ValueError, match="Expected every problem once, got '2 5 9 = 16' twice"):
        split(twins, held_out=1, seed=0)


@pytest.mark.parametrize("held_out", [-1, 788])
def test_holding_out_fewer_than_none_or_more_than_all_is_refused(held_out):
    with pytest.raises(ValueError, match="Expected 0 <= held_out <= 787"):
        split(PROBLEMS, held_out=held_out, seed=0)


def test_the_single_mode_control_has_sides_of_its_own_apart_from_all_others():
    control = split(countdown.problems(replace(MODEBENCH, min_modes=1, max_modes=1)), held_out=200, seed=0)
    assert not ids(control.train + control.held_out) & ids(PROBLEMS)
    assert {len(problem.modes) for problem in control.held_out} == {1}


def test_both_sides_have_problems_of_the_same_difficulty_on_average():
    sides = split(PROBLEMS, held_out=393, seed=0)
    sizes = [[len(problem.modes) for problem in side] for side in (sides.train, sides.held_out)]
    pooled = sizes[0] + sizes[1]
    difference = abs(sum(sizes[0]) / len(sizes[0]) - sum(sizes[1]) / len(sizes[1]))
    rng = random.Random(0)
    chance = []
    for _ in range(200):
        rng.shuffle(pooled)
        chance.append(abs(sum(pooled[:394]) / 394 - sum(pooled[394:]) / 393))
    assert difference <= max(chance)
