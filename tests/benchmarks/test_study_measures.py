"""The study's measures: those of probabilities against those of samples."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks.study.outcomes import average_metrics, measure_problems
from maxent_grpo.pipeline.tasks.answers import Verdict
from maxent_grpo.pipeline.tasks.metrics import sample_metrics


@pytest.mark.parametrize("k", [1, 3, 8])
def test_probabilities_have_the_metrics_of_many_samples(k: int) -> None:
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


def test_averages_are_over_problems() -> None:
    metrics = average_metrics(np.array([[0.25, 0.125, 0.0], [0.5, 0.0, np.nan]]))
    assert metrics["pass@1"] == metrics["mean@8"] == (0.375 + 0.5) / 2
    assert metrics["pass@8"] == 1 - (0.625**8 + 0.5**8) / 2
    even, uneven = (average_metrics(np.array([row]))["coverage@8"] for row in ([0.2, 0.2], [0.3, 0.1]))
    assert even == pytest.approx(1 - 0.8**8)
    assert uneven < even
