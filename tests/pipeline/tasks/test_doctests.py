import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["answers", "countdown", "expressions", "graph_coloring", "metrics", "splits"])
def test_the_examples_in_the_docstrings_hold(name):
    results = doctest.testmod(importlib.import_module(f"maxent_grpo.pipeline.tasks.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
