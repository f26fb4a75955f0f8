"""The study's numbers: metrics against those of samples, intervals against arithmetic."""

import doctest
from types import ModuleType

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from benchmarks.diversity import report, statistics
from benchmarks.diversity.statistics import (
    adjust_p_values,
    average_complete,
    compute_p_not_below,
    draw_resamples,
    estimate_difference,
)
from benchmarks.study import noted
from benchmarks.study.outcomes import average_metrics, measure_problems
from maxent_grpo.pipeline.tasks.answers import Verdict
from maxent_grpo.pipeline.tasks.metrics import sample_metrics


@pytest.mark.parametrize("k", [1, 3, 8])
def test_probabilities_have_the_metrics_of_many_samples(k: int):
    counts = np.array([[3000.0, 1000.0, 0.0], [0.0, 0.0, np.nan], [7000.0, 1000.0, np.nan]])
    verdicts = [
        [Verdict(True, str(mode)) for mode, count in enumerate(row) if count > 0 for _ in range(int(count))]
        for row in counts
    ]
    verdicts = [[*right, *[Verdict(False, None)] * (8000 - len(right))] for right in verdicts]
    expected = sample_metrics(verdicts, [3, 2, 2], k=k)
    metrics = measure_problems(counts / 8000, k)
    for name, values in (("mean", expected.mean), ("coverage", expected.coverage), ("pass", expected.passed)):
        assert_allclose(metrics[name], values, atol=1e-3)


def test_averages_are_over_problems_and_even_answers_cover_the_most():
    shares = np.array([[0.25, 0.125, 0.0], [0.5, 0.0, np.nan]])
    metrics = average_metrics(shares)
    assert metrics["pass@1"] == metrics["mean@8"] == (0.375 + 0.5) / 2
    assert metrics["pass@8"] == 1 - (0.625**8 + 0.5**8) / 2
    assert metrics["even@8"] == pytest.approx(1 - (0.875**8 + 0.75**8) / 2)
    assert metrics["even@8"] > metrics["coverage@8"]
    even = average_metrics(np.array([[0.2, 0.2]]))
    assert even["even@8"] == even["coverage@8"]


@pytest.mark.parametrize("module", [noted, report, statistics], ids=lambda module: module.__name__)
def test_what_the_docstrings_show_is_so(module: ModuleType):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_resamples_draw_as_many_problems_as_there_are():
    shares = draw_resamples(50, 200, np.random.default_rng(1))
    assert shares.shape == (50, 200)
    assert_allclose(shares.sum(0), 1.0)
    assert_allclose(shares * 50, np.round(shares * 50), atol=1e-9)
    assert np.ptp(shares) > 0


def test_the_seed_interval_is_students_and_the_bootstrap_over_both_has_the_problems_spread_too():
    observed, spread = np.array([0.01, 0.03, 0.05]), np.linspace(-0.02, 0.02, 401)
    pair = estimate_difference(observed, observed[:, None] + spread, np.random.default_rng(0))
    reach = stats.t.ppf(0.975, 2) * 0.02 / np.sqrt(3)
    assert (pair.seed_low, pair.seed_high) == pytest.approx((0.03 - reach, 0.03 + reach))
    assert pair.p == pytest.approx(stats.ttest_1samp(observed, 0.0).pvalue)
    problems_alone = 0.95 * 0.02
    assert 0.03 - pair.both_low > problems_alone
    assert pair.both_high - 0.03 > problems_alone


def test_one_seed_is_no_comparison():
    with pytest.raises(ValueError, match=r"Expected >= 2 seeds, got 1\."):
        estimate_difference(np.zeros(1), np.zeros((1, 5)), np.random.default_rng(0))


def test_holms_p_values_are_multiplied_and_never_fall():
    assert adjust_p_values({"a": 0.02, "b": 0.001, "c": 0.015}) == pytest.approx({"a": 0.03, "b": 0.003, "c": 0.03})
    assert adjust_p_values({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_not_lower_is_tested_against_the_margin():
    above = [0.05, 0.06, 0.055, 0.058]
    assert compute_p_not_below(above, margin=0.02) < 0.001
    assert compute_p_not_below([-each for each in above], margin=0.02) > 0.999
    assert compute_p_not_below([-0.03, -0.01], margin=0.02) == pytest.approx(0.5)


def test_a_seed_that_misses_a_level_leaves_no_average():
    assert average_complete([0.25, 0.75]) == 0.5
    assert average_complete([0.25, None]) is None
