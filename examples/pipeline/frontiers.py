"""Reading a frontier: what a model's answers are worth at a given accuracy, by choice of the sampling temperature.

A frontier is the accuracy of a trained model at several sampling temperatures and another value at each of them, such
as coverage@8. Cooling a model trades one for the other, so models are compared where their accuracy is equal.
"""

from collections.abc import Sequence

import numpy as np


def read_frontiers(level: float, accuracies: np.ndarray, values: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """Return the values of many frontiers where their accuracy is `level`, linear between neighbouring temperatures.

    A frontier that crosses the level more than once counts with its largest value there, and one that is more
    accurate than the level even at its hottest with its value there.

    Args:
        level: the accuracy wanted.
        accuracies: [T, B] at each temperature, the coldest first.
        values: [T, B].
        nearest: where the level is reached at no temperature, take the value at the highest accuracy. For resamples
            of a frontier that reaches it: to drop those that do not would keep the accurate ones alone.

    Returns:
        [B], NaN where the level is reached at no temperature, unless `nearest`.

    >>> read_frontiers(0.5, np.array([[0.75], [0.25]]), np.array([[0.2], [0.4]]))
    array([0.3])
    """
    colder, hotter = accuracies[:-1], accuracies[1:]
    crosses = (np.minimum(colder, hotter) <= level) & (level <= np.maximum(colder, hotter)) & (colder != hotter)
    part = np.where(crosses, (level - colder) / np.where(colder == hotter, 1.0, hotter - colder), 0.0)
    between = np.where(crosses, values[:-1] + part * (values[1:] - values[:-1]), -np.inf).max(0, initial=-np.inf)
    reached = np.where(accuracies[-1] >= level, values[-1], between)
    most_accurate = np.take_along_axis(values, accuracies.argmax(0)[None], axis=0)[0]
    return np.where(np.isfinite(reached), reached, most_accurate if nearest else np.nan)


def read_frontier(level: float, accuracies: Sequence[float], values: Sequence[float]) -> float | None:
    """Return `read_frontiers` of one frontier, or None where the level is reached at no temperature.

    >>> read_frontier(0.5, [0.75, 0.25], [0.25, 0.5])
    0.375
    >>> read_frontier(0.8, [0.75, 0.25], [0.25, 0.5])
    """
    (value,) = read_frontiers(level, *(np.array(column, dtype=float)[:, None] for column in (accuracies, values)))
    return None if np.isnan(value) else float(value)
