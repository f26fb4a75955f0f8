from itertools import combinations
from math import prod

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict
from maxent_grpo.pipeline.tasks.metrics import hit_probability, sample_metrics

TOTAL = 4
verdicts = st.one_of(st.just(WRONG), st.sampled_from("abcd").map(lambda mode: Verdict(True, mode)))
prompts = st.lists(verdicts, min_size=1, max_size=8)


def averaged_over_subsets(samples, k, quantity):
    return np.mean([quantity(subset) for subset in combinations(samples, k)])


def found_modes(samples):
    return {mode for correct, mode in samples if correct}


@given(prompts, st.data())
@example([WRONG] * 8, None)
def test_every_metric_is_the_average_over_all_subsets_of_k_samples(samples, data):
    k = 3 if data is None else data.draw(st.integers(1, len(samples)))
    metrics = sample_metrics([samples], [TOTAL], k=k)
    expected = {
        "mean": averaged_over_subsets(samples, k, lambda subset: np.mean([correct for correct, _ in subset])),
        "passed": averaged_over_subsets(samples, k, lambda subset: any(correct for correct, _ in subset)),
        "distinct": averaged_over_subsets(samples, k, lambda subset: len(found_modes(subset))),
        "coverage": averaged_over_subsets(samples, k, lambda subset: len(found_modes(subset)) / TOTAL),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(metrics, name), [value], rtol=1e-12, atol=1e-15)


@given(st.lists(st.lists(verdicts, min_size=8, max_size=8), min_size=1, max_size=5))
def test_with_as_many_samples_as_k_the_metrics_are_plain_counts(rows):
    averages = sample_metrics(rows, [TOTAL] * len(rows), k=8).averages()
    solved = [row for row in rows if found_modes(row)]
    distinct = sum(len(found_modes(row)) for row in rows)
    assert averages["pass@8"] == pytest.approx(len(solved) / len(rows))
    assert averages["mean@8"] == pytest.approx(sum(correct for row in rows for correct, _ in row) / 8 / len(rows))
    assert averages["distinct@8"] == pytest.approx(distinct / len(rows))
    assert averages["coverage@8"] == pytest.approx(distinct / TOTAL / len(rows))
    assert averages["distinct_per_solved"] == pytest.approx(distinct / len(solved) if solved else 0)


@given(st.integers(1, 60), st.data())
def test_the_chance_of_a_hit_is_one_minus_that_of_drawing_k_misses_in_a_row(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    misses = prod(max(n - c - i, 0) / (n - i) for i in range(k))
    assert hit_probability(n, c, k) == pytest.approx(1 - misses, abs=1e-12)


def test_the_metrics_are_unbiased_for_fresh_samples():
    rng = np.random.default_rng(0)
    chances = np.array([0.5, 0.3, 0.15, 0.05])
    names = [WRONG, Verdict(True, "a"), Verdict(True, "b"), Verdict(True, "c")]
    rows = [[names[i] for i in rng.choice(4, size=16, p=chances)] for _ in range(4000)]
    metrics = sample_metrics(rows, [3] * len(rows), k=4)
    expected = {
        "mean": 0.5,
        "passed": 1 - 0.5**4,
        "distinct": sum(1 - (1 - chances[1:]) ** 4),
        "coverage": sum(1 - (1 - chances[1:]) ** 4) / 3,
    }
    for name, value in expected.items():
        each = getattr(metrics, name)
        assert abs(each.mean() - value) < 4 * each.std() / len(rows) ** 0.5


def test_prompts_may_differ_in_samples_and_modes():
    a, b = Verdict(True, "a"), Verdict(True, "b")
    metrics = sample_metrics([[a, b], [a, WRONG, WRONG, WRONG]], [2, 4], k=2)
    np.testing.assert_allclose(metrics.mean, [1, 1 / 4])
    np.testing.assert_allclose(metrics.distinct, [2, 3 / 6])
    np.testing.assert_allclose(metrics.coverage, [2 / 2, 3 / 6 / 4])
    assert metrics.averages()["distinct_per_solved"] == pytest.approx((2 + 3 / 6) / (1 + 3 / 6))


def test_a_mode_beside_a_wrong_answer_does_not_count():
    metrics = sample_metrics([[Verdict(False, "a"), WRONG]], [2], k=2)
    assert (metrics.passed, metrics.distinct) == (0, 0)


@pytest.mark.parametrize(
    ("rows", "totals", "k", "message"),
    [
        ([], [], 1, "as many mode totals as prompts"),
        ([[WRONG]], [1, 2], 1, "as many mode totals as prompts"),
        ([[]], [1], 1, "Expected 1 <= k <= n"),
        ([[WRONG]], [1], 2, "Expected 1 <= k <= n"),
        ([[WRONG]], [1], 0, "Expected 1 <= k <= n"),
        ([[WRONG]], [0], 1, "Expected total_modes >= "),
        ([[Verdict(True, "a"), Verdict(True, "b")]], [1], 1, "Expected total_modes >= "),
        ([[Verdict(True, None)]], [1], 1, "Expected a mode for every correct sample"),
    ],
)
def test_samples_that_do_not_fit_are_refused(rows, totals, k, message):
    with pytest.raises(ValueError, match=message):
        sample_metrics(rows, totals, k=k)
