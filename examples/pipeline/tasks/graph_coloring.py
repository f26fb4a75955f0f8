"""Graph colouring: fill in three hidden colours so that no edge joins two vertices of one colour.

A problem is a labelled graph, connected or not, with all but three vertices coloured red, green or blue; its
modes are the proper completions, written as the hidden vertices' letters in order.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict, read_answer

COLORS = "RGB"
HIDDEN = "?"
ALPHABET = f" 123456{COLORS}{HIDDEN}:"
N_HIDDEN = 3
MAX_EDGES = 8
_SEPARATORS = re.compile(r"[\s,]+", re.ASCII)

Edges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Problem:
    """A graph on vertices 0..n-1 with edges (a, b), a < b, a letter or `?` for each vertex, and all completions."""

    edges: Edges
    partial: str
    modes: tuple[str, ...]

    @property
    def id(self) -> str:
        """The identity: the edges, vertices counted from 1, and the partial colouring."""
        return " ".join([*(f"{a + 1}{b + 1}" for a, b in self.edges), self.partial])


def problems(
    vertices: int = 5, *, sample: int | None = None, seed: int = 0, min_modes: int = 4, max_modes: int = 24
) -> list[Problem]:
    """Return problems on n vertices: all of them, or a seeded uniform sample without repetition.

    Enumerated are the labelled graphs with max(1, n - 2)..min(8, n(n - 1)/2) edges. To each belong every choice of
    three hidden vertices and every colouring of the others that leaves min_modes..max_modes proper completions. A
    graph that can be coloured has at least 6 colourings, so none needs excluding for having fewer than 4.
    Four vertices give 600 problems and five 36,210; six give 2,358,300 and can only be sampled.
    The single-mode control problems are those of `min_modes=1, max_modes=1`; they begin at five vertices.

    Raises:
        ValueError: if vertices is not 4, 5 or 6, if all problems on 6 are asked for, if min_modes < 1, or if
            there are fewer than `sample` problems (on 6 vertices: if a thousand draws a problem find fewer).

    >>> len(problems(4)), problems(4)[0].id
    (600, '12 13 ???R')
    """
    if vertices not in (4, 5, 6) or (vertices == 6 and sample is None):
        raise ValueError(f"Expected 4 or 5 vertices, or 6 with a sample size, got {vertices=} with {sample=}.")
    if min_modes < 1:
        raise ValueError(f"Expected min_modes >= 1, got {min_modes=}.")
    rng = random.Random(seed)
    pool = (
        _enumerate_problems(vertices) if vertices < 6 else _draw_problems(vertices, rng, draws=1000 * (sample or 0))
    )
    fitting = (each for each in pool if min_modes <= len(each.modes) <= max_modes)
    fitting_problems = list(islice(fitting, sample if vertices == 6 else None))
    if sample is None:
        return fitting_problems
    if len(fitting_problems) < sample:
        raise ValueError(f"Expected sample <= {len(fitting_problems)}, got {sample=}.")
    return rng.sample(fitting_problems, sample)


def prompt(problem: Problem, *, boxed: bool = False) -> str:
    r"""Return the prompt: compact, or in plain language with the answer asked for in `\boxed{...}`.

    >>> prompt(Problem(((0, 1), (1, 3)), "R???", ()))
    '12 24 R??? :'
    """
    if not boxed:
        return f"{problem.id} :"
    hidden = [str(v + 1) for v, color in enumerate(problem.partial) if color == HIDDEN]
    colors = [f"{v + 1} is {color}" for v, color in enumerate(problem.partial) if color != HIDDEN]
    edges = ", ".join(f"{a + 1}-{b + 1}" for a, b in problem.edges)
    return (
        f"A graph has the vertices 1 to {len(problem.partial)} and the edges {edges}. Every vertex is red (R), "
        f"green (G) or blue (B), and no edge joins two vertices of one colour. Given: {', '.join(colors)}. "
        f"Choose colours for the vertices {', '.join(hidden)}. "
        "End with their letters alone, in this order, in \\boxed{...}."
    )


def verify(problem: Problem, text: object, *, boxed: bool = False) -> Verdict:
    """Return whether the text's answer is right, and its mode; a bad answer is wrong, never an exception.

    An answer is one letter R, G or B (or r, g, b) for each hidden vertex in order, white space and commas
    between them ignored. With `boxed`, only an answer in a box counts.

    >>> verify(Problem(((0, 1), (1, 3)), "R???", ()), "G, R, B")
    Verdict(correct=True, mode='GRB')
    """
    try:
        letters = _SEPARATORS.sub("", read_answer(text, boxed=boxed)).upper()
    except ValueError:
        return WRONG
    if len(letters) != problem.partial.count(HIDDEN) or not set(letters) <= set(COLORS):
        return WRONG
    unused = iter(letters)
    colors = [next(unused) if color == HIDDEN else color for color in problem.partial]
    proper = all(colors[a] != colors[b] for a, b in problem.edges)
    return Verdict(correct=True, mode=letters) if proper else WRONG


def reward(problem: Problem, text: object, *, boxed: bool = False) -> float:
    """Return 1.0 for a right answer and 0.0 for any other."""
    return float(verify(problem, text, boxed=boxed).correct)


def solutions(problem: Problem) -> dict[str, tuple[str, ...]]:
    """Return for every mode the texts that express it: a completion is its own only text."""
    return {mode: (mode,) for mode in problem.modes}


def random_answer(problem: Problem, rng: random.Random) -> str:
    """Return a uniform draw from the well-formed answers: every hidden vertex gets one of three letters."""
    return "".join(rng.choices(COLORS, k=problem.partial.count(HIDDEN)))


def _enumerate_problems(vertices: int) -> Iterator[Problem]:
    pairs = list(combinations(range(vertices), 2))
    for n_edges in _list_edge_counts(vertices):
        for edges in combinations(pairs, n_edges):
            colorings = _enumerate_colorings(edges, HIDDEN * vertices)
            for hidden in combinations(range(vertices), N_HIDDEN):
                modes_by_partial: dict[str, list[str]] = defaultdict(list)
                for colors in colorings:
                    modes_by_partial[_hide_colors(colors, hidden)].append("".join(colors[v] for v in hidden))
                for partial, modes in modes_by_partial.items():
                    yield Problem(edges, partial, tuple(modes))


def _draw_problems(vertices: int, rng: random.Random, *, draws: int) -> Iterator[Problem]:
    """Yield the different ones of some draws, uniform over graphs, hidden vertices and given colours."""
    pairs = list(combinations(range(vertices), 2))
    edge_counts = _list_edge_counts(vertices)
    graphs_by_count = [comb(len(pairs), count) for count in edge_counts]
    seen = set()
    for _ in range(draws):
        (n_edges,) = rng.choices(edge_counts, graphs_by_count)
        edges = tuple(sorted(rng.sample(pairs, n_edges)))
        hidden = tuple(sorted(rng.sample(range(vertices), N_HIDDEN)))
        partial = _hide_colors("".join(rng.choices(COLORS, k=vertices)), hidden)
        if (edges, partial) not in seen:
            seen.add((edges, partial))
            completions = _enumerate_colorings(edges, partial)
            yield Problem(edges, partial, tuple("".join(colors[v] for v in hidden) for colors in completions))


def _list_edge_counts(vertices: int) -> range:
    return range(max(1, vertices - 2), min(MAX_EDGES, comb(vertices, 2)) + 1)


def _hide_colors(colors: str, hidden: tuple[int, ...]) -> str:
    return "".join(HIDDEN if v in hidden else color for v, color in enumerate(colors))


def _enumerate_colorings(edges: Edges, partial: str) -> list[str]:
    """Return all proper colourings of the graph that agree with the partial one."""
    prefixes = [""]
    for vertex, color in enumerate(partial):
        neighbors = [a for a, b in edges if b == vertex]
        choices = COLORS if color == HIDDEN else color
        prefixes = [
            prefix + choice
            for prefix in prefixes
            for choice in choices
            if all(prefix[a] != choice for a in neighbors)
        ]
    return prefixes
