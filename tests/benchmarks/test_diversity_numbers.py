"""ModeBench's numbers: metrics against the tasks' own, frontiers against the demo's, intervals against arithmetic."""

import doctest
from types import ModuleType

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from benchmarks.diversity import curves, noted, statistics, tables
from benchmarks.diversity.curves import areas, resample_counts, values_at
from benchmarks.diversity.metrics import averages, per_problem
from benchmarks.diversity.statistics import difference, equivalence, holm, not_below
from maxent_grpo.pipeline.frontiers import read_frontier
from maxent_grpo.pipeline.tasks.answers import Verdict
from maxent_grpo.pipeline.tasks.metrics import sample_metrics

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_probabilities_have_the_metrics_of_many_samples(k):
    counts = np.array([[3000.0, 1000.0, 0.0], [0.0, 0.0, np.nan], [7000.0, 1000.0, np.nan]])
    verdicts = [
        [Verdict(True, str(mode)) for mode, count in enumerate(row) if count > 0 for _ in range(int(count))]
        for row in counts
    ]
    verdicts = [[*right, *[Verdict(False, None)] * (8000 - len(right))] for right in verdicts]
    expected = sample_metrics(verdicts, [3, 2, 2], k=k)
    found = per_problem(counts / 8000, k)
    for name in ("mean", "distinct", "coverage"):
        assert_allclose(found[name], getattr(expected, name), atol=1e-3)
    assert_allclose(found["pass"], expected.passed, atol=1e-3)


def test_averages_are_over_problems_and_even_answers_cover_the_most():
    shares = np.array([[0.25, 0.125, 0.0], [0.5, 0.0, np.nan]])
    found = averages(shares)
    assert found["pass@1"] == found["mean@8"] == (0.375 + 0.5) / 2
    assert found["pass@8"] == 1 - (0.625**8 + 0.5**8) / 2
    assert found["even@8"] == pytest.approx(1 - (0.875**8 + 0.75**8) / 2)
    assert found["even@8"] > found["coverage@8"]
    assert averages(np.array([[0.2, 0.2]]))["even@8"] == averages(np.array([[0.2, 0.2]]))["coverage@8"]


def test_many_frontiers_at_once_are_each_the_demos():
    accuracies, values = np.sort(RNG.random((6, 40)), axis=0)[::-1], RNG.random((6, 40))
    accuracies[[2, 3], :10] = accuracies[[3, 2], :10]  # some cross a level more than once
    for level in (0.1, 0.45, 0.6, 0.99):
        expected = [read_frontier(level, one, other) for one, other in zip(accuracies.T, values.T, strict=True)]
        assert_allclose(values_at(level, accuracies, values), [np.nan if e is None else e for e in expected])


def test_the_area_of_a_straight_frontier_is_its_middle():
    accuracies, values = np.array([[0.8], [0.4]]), np.array([[0.1], [0.5]])
    assert areas(accuracies, values, low=0.5, high=0.7)[0] == pytest.approx((0.4 + 0.2) / 2)
    assert np.isnan(areas(accuracies, values, low=0.5, high=0.9)[0])
    assert np.isnan(areas(accuracies, values, low=0.7, high=0.5)[0])  # no common range, no area


@pytest.mark.parametrize("module", [curves, noted, statistics, tables], ids=lambda module: module.__name__)
def test_what_the_docstrings_show_is_so(module: ModuleType):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_a_resample_that_misses_the_level_counts_with_its_most_accurate_value():
    accuracies, values = (
        np.array([[0.55, 0.7], [0.65, 0.5], [0.4, 0.3]]),
        np.array([[0.1, 0.1], [0.2, 0.3], [0.3, 0.4]]),
    )
    assert_allclose(values_at(0.7, accuracies, values), [np.nan, 0.1])
    assert_allclose(values_at(0.7, accuracies, values, nearest=True), [0.2, 0.1])
    assert_allclose(values_at(0.6, accuracies, values, nearest=True), values_at(0.6, accuracies, values))


def test_resamples_draw_as_many_problems_as_there_are():
    shares = resample_counts(50, 200, np.random.default_rng(1))
    assert shares.shape == (50, 200)
    assert_allclose(shares.sum(0), 1.0)
    assert_allclose(shares.mean(1), 1 / 50, rtol=0.4)


def test_the_seed_interval_is_students_and_the_problem_interval_a_percentile():
    observed = np.array([0.01, 0.03, 0.05])
    resampled = observed[:, None] + np.linspace(-0.02, 0.02, 401)
    pair = difference(observed, resampled, np.random.default_rng(0))
    reach = stats.t.ppf(0.975, 2) * 0.02 / np.sqrt(3)
    assert (pair.seed_low, pair.seed_high) == pytest.approx((0.03 - reach, 0.03 + reach))
    assert (pair.problem_low, pair.problem_high) == pytest.approx((0.03 - 0.019, 0.03 + 0.019))
    assert pair.both_low < pair.problem_low
    assert pair.both_high > pair.problem_high
    assert pair.p == pytest.approx(stats.ttest_1samp(observed, 0.0).pvalue)


def test_one_seed_is_no_comparison():
    with pytest.raises(ValueError, match=r"Expected >= 2 seeds, got 1\."):
        difference(np.zeros(1), np.zeros((1, 5)), np.random.default_rng(0))


def test_holm_multiplies_and_never_falls():
    assert holm({"a": 0.02, "b": 0.001, "c": 0.015}) == pytest.approx({"a": 0.03, "b": 0.003, "c": 0.03})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_equivalence_needs_both_sides_and_non_inferiority_one():
    above = [0.05, 0.06, 0.055, 0.058]
    assert not_below(above, margin=0.02) < 0.001
    assert equivalence(above, margin=0.03) > 0.99
    assert equivalence([0.001, -0.002, 0.0005], margin=0.03) < 0.01
