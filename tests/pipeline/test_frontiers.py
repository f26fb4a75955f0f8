"""Reading frontiers: against the definition, temperature by temperature, and where the level is missed."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from maxent_grpo.pipeline.frontiers import read_frontier, read_frontiers

RNG = np.random.default_rng(0)


def read_by_definition(level: float, accuracies: np.ndarray, values: np.ndarray) -> float:
    """The largest value at the level on the line through neighbours; at the hottest where that is above the level."""
    if level <= accuracies[-1]:
        return values[-1]
    reached = []
    for cold in range(len(accuracies) - 1):
        ends = accuracies[cold : cold + 2]
        if ends.min() <= level <= ends.max():
            reached.append(np.interp(level, np.sort(ends), values[cold : cold + 2][np.argsort(ends)]))
    return max(reached, default=np.nan)


def test_many_frontiers_are_read_as_one_by_one():
    accuracies, values = np.sort(RNG.random((6, 40)), axis=0)[::-1], RNG.random((6, 40))
    accuracies[[2, 3], :10] = accuracies[[3, 2], :10]  # some cross a level more than once
    for level in (0.1, 0.45, 0.6, 0.99):
        expected = [read_by_definition(level, *columns) for columns in zip(accuracies.T, values.T, strict=True)]
        assert_allclose(read_frontiers(level, accuracies, values), expected)


def test_a_level_out_of_reach_has_no_value_or_the_most_accurate_one():
    accuracies = np.array([[0.55, 0.7], [0.65, 0.5], [0.4, 0.3]])
    values = np.array([[0.1, 0.1], [0.2, 0.3], [0.3, 0.4]])
    assert_allclose(read_frontiers(0.7, accuracies, values), [np.nan, 0.1])
    assert_allclose(read_frontiers(0.7, accuracies, values, nearest=True), [0.2, 0.1])
    assert_allclose(read_frontiers(0.6, accuracies, values, nearest=True), read_frontiers(0.6, accuracies, values))


@pytest.mark.parametrize(("level", "expected"), [(0.5, 0.2), (0.4, 0.2), (0.6, None)])
def test_a_single_temperature_is_a_frontier_too(level: float, expected: float | None):
    assert read_frontier(level, [0.5], [0.2]) == expected
