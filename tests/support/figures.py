"""What a run of tests comes to, as JSON: cases, seconds and failures of each test and of all."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest


def count_cases(item: pytest.Item) -> int:
    """Return how many examples hypothesis has tried in a test; any other test is one case."""
    statistics = str(getattr(item, "hypothesis_statistics", ""))
    counts = re.findall(r"(\d+) passing(?: examples)?, (\d+) failing", statistics)
    return sum(int(count) for pair in counts for count in pair) or 1


class Figures:
    """Collects the figures of all workers, and writes them at the end."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tests: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add a test's setup, call or teardown."""
        figures = self.tests.setdefault(report.nodeid, Counter(cases=0, seconds=0, failures=0))
        figures["seconds"] += report.duration
        figures["failures"] += report.failed
        if report.when == "call":
            figures["cases"] += dict(report.user_properties).get("cases", 1)

    def pytest_sessionfinish(self) -> None:
        """Write the file, a line per test that was not interrupted."""
        self.tests = {
            name: figures for name, figures in self.tests.items() if figures["cases"] or figures["failures"]
        }
        rounded = {
            name: dict(figures) | {"seconds": round(figures["seconds"], 1)} for name, figures in self.tests.items()
        }
        total = sum(self.tests.values(), Counter())
        summary = {name: round(total[name], 1) for name in ("cases", "seconds", "failures")}
        head = {"profile": os.environ.get("HYPOTHESIS_PROFILE", "ci"), "tests": len(self.tests)} | summary
        lines = [f"  {json.dumps(name)}: {json.dumps(rounded[name])}" for name in sorted(rounded)]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        joined = ",\n".join(lines)
        self.file.write_text(f'{{\n "summary": {json.dumps(head)},\n "each": {{\n{joined}\n }}\n}}\n')
