"""The committed log of OpenRLHF's whole runs (`make nightly-openrlhf`): every run is there, with finite numbers."""

import json

import pytest

from support.openrlhf_runs import CASES, PATH, find_faults

RUNS = json.loads(PATH.read_text())


def test_every_case_is_committed() -> None:
    assert RUNS.keys() == CASES.keys()


@pytest.mark.parametrize("name", RUNS)
def test_a_run_logged_its_steps_and_statistics(name: str) -> None:
    assert find_faults(name, RUNS[name]) == []


def test_a_run_that_lacks_something_is_found_out() -> None:
    run = RUNS["one rank"]
    step = {entry: value for entry, value in run["steps"]["2"].items() if entry != "maxent/ess"}
    broken = run | {"steps": {"1": run["steps"]["1"], "2": step | {"actor_grad_norm": 0.0}}}
    assert find_faults("one rank", broken) == ["2: maxent/ess", "2: no gradient"]
    assert find_faults("one rank", run | {"steps": {}}) == ["steps ('1', '2'), got []"]
