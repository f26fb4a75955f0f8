import random
from collections import Counter
from itertools import combinations, product
from math import comb
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from maxent_grpo.pipeline.tasks import graph_coloring
from maxent_grpo.pipeline.tasks.answers import WRONG
from maxent_grpo.pipeline.tasks.graph_coloring import Problem

FOUR = graph_coloring.problems(4)
SIX = graph_coloring.problems(6, sample=300, seed=1)
problems = st.sampled_from(FOUR + SIX)


def completions(problem):
    """All fillings of the hidden vertices without a one-coloured edge, by trying all 27."""
    right = []
    for letters in product("RGB", repeat=problem.partial.count("?")):
        colors = problem.partial
        for letter in letters:
            colors = colors.replace("?", letter, 1)
        if all(colors[a] != colors[b] for a, b in problem.edges):
            right.append("".join(letters))
    return right


def brute_force_ids(vertices, sizes):
    ids = set()
    pairs = list(combinations(range(vertices), 2))
    for chosen in product([False, True], repeat=len(pairs)):
        edges = tuple(pair for pair, taken in zip(pairs, chosen, strict=True) if taken)
        if max(1, vertices - 2) <= len(edges) <= min(8, comb(vertices, 2)):
            for partial in map("".join, product("RGB?", repeat=vertices)):
                problem = Problem(edges, partial, ())
                if partial.count("?") == 3 and len(completions(problem)) in sizes:
                    ids.add(problem.id)
    return ids


@pytest.mark.parametrize("sizes", [range(4, 25), range(1, 3)])
def test_four_vertices_give_exactly_the_problems_of_a_brute_force_enumeration(sizes):
    problems = graph_coloring.problems(4, min_modes=sizes[0], max_modes=sizes[-1])
    assert len({problem.id for problem in problems}) == len(problems) > 0
    assert {problem.id for problem in problems} == brute_force_ids(4, sizes)


def test_five_vertices_give_36210_problems_on_which_guessing_scores_as_published():
    rates = [len(problem.modes) / 27 for problem in graph_coloring.problems(5)]
    assert len(rates) == 36_210
    assert round(mean(rates), 2) == 0.23
    assert round(mean(1 - (1 - rate) ** 8 for rate in rates), 2) == 0.84
    assert round(1 - (1 - 1 / 27) ** 8, 2) == 0.26  # the expected share found of any number of modes


@given(problems)
def test_a_problem_is_as_defined_and_lists_every_completion(problem):
    n = len(problem.partial)
    assert max(1, n - 2) <= len(problem.edges) <= min(8, comb(n, 2))
    assert problem.partial.count("?") == 3
    assert 4 <= len(problem.modes) <= 24
    assert sorted(problem.modes) == sorted(completions(problem))


def test_a_graph_that_can_be_coloured_has_at_least_four_colourings():
    for problem in graph_coloring.problems(5, sample=200, min_modes=1, max_modes=1):
        assert len(completions(Problem(problem.edges, "?????", ()))) >= 4


def test_a_sample_is_set_by_its_seed_and_repeats_no_problem():
    assert graph_coloring.problems(6, sample=300, seed=1) == SIX
    assert graph_coloring.problems(6, sample=300, seed=2) != SIX
    assert len({problem.id for problem in SIX}) == 300
    assert sorted(graph_coloring.problems(4, sample=600, seed=3), key=repr) == sorted(FOUR, key=repr)


def test_six_vertices_are_drawn_uniformly_over_graphs_hidden_vertices_and_colours():
    drawn = list(graph_coloring._draw_problems(6, random.Random(0), draws=3000))
    n_edges = Counter(len(problem.edges) for problem in drawn)
    graphs = [comb(15, count) for count in range(4, 9)]
    expected = [len(drawn) * count / sum(graphs) for count in graphs]
    assert chisquare([n_edges[count] for count in range(4, 9)], expected).pvalue > 1e-3
    for each in ([pair for p in drawn for pair in p.edges], [p.partial[0] for p in drawn if p.partial[0] != "?"]):
        assert chisquare(list(Counter(each).values())).pvalue > 1e-3
    hidden = Counter(tuple(v for v in range(6) if problem.partial[v] == "?") for problem in drawn)
    assert len(hidden) == comb(6, 3)
    assert chisquare(list(hidden.values())).pvalue > 1e-3
    assert {len(problem.edges) for problem in SIX} == set(range(4, 9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_modes": 0}, "Expected min_modes >= 1"),
        ({"vertices": 6}, "6 with a sample size"),
        ({"vertices": 3}, "Expected 4 or 5 vertices"),
        ({"vertices": 4, "sample": 601}, "Expected sample <= 600"),
        ({"vertices": 6, "sample": 1, "min_modes": 28, "max_modes": 30}, "Expected sample <= 0"),
    ],
)
def test_impossible_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        graph_coloring.problems(**arguments)


@given(problems, st.text("RGB", min_size=3, max_size=3), st.sampled_from(["", " ", ", ", ",\n"]))
def test_an_answer_is_right_exactly_where_its_mode_is_listed(problem, letters, separator):
    expected = (True, letters) if letters in problem.modes else WRONG
    text = separator.join(letters)
    assert graph_coloring.verify(problem, text) == expected
    assert graph_coloring.verify(problem, f"\\boxed{{{text.lower()}}}", boxed=True) == expected
    assert graph_coloring.reward(problem, text) == float(letters in problem.modes)


@given(problems, st.text("RGBrgbY?, 1=;\0Я", max_size=6))
def test_text_that_is_not_three_letters_is_wrong(problem, text):
    letters = text.replace(" ", "").replace(",", "").upper()
    if letters not in problem.modes:
        assert graph_coloring.verify(problem, text) == WRONG


def test_every_solution_verifies_as_its_mode_and_with_boxed_only_in_a_box():
    for problem in SIX:
        assert tuple(graph_coloring.solutions(problem)) == problem.modes
        for mode, (text,) in graph_coloring.solutions(problem).items():
            assert graph_coloring.verify(problem, text) == (True, mode)
            assert graph_coloring.verify(problem, text, boxed=True) == WRONG


def test_prompts_name_edges_and_given_colours_and_keep_to_the_alphabet():
    problem = Problem(((0, 1), (1, 4)), "R??G?", ())
    assert graph_coloring.prompt(problem) == "12 25 R??G? :"
    words = graph_coloring.prompt(problem, boxed=True)
    assert "edges 1-2, 2-5." in words
    assert "Given: 1 is R, 4 is G." in words
    assert "vertices 2, 3, 5." in words
    for each in FOUR + SIX:
        assert set(graph_coloring.prompt(each) + "".join(each.modes)) <= set(graph_coloring.ALPHABET)


def test_random_answers_are_uniform_over_the_27_fillings():
    rng = random.Random(0)
    counts = Counter(graph_coloring.random_answer(SIX[0], rng) for _ in range(2700))
    assert len(counts) == 3**3
    assert chisquare(list(counts.values())).pvalue > 1e-3
