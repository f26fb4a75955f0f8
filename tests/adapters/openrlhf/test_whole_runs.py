"""The committed log of OpenRLHF's whole runs (`make nightly-openrlhf`): every run is there, with finite numbers."""

import json

import pytest

from support.openrlhf_runs import CASES, PATH, find_faults

RUNS = json.loads(PATH.read_text())


def test_every_case_is_committed() -> None:
    assert list(RUNS) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_run_logged_its_steps_and_statistics(name: str) -> None:
    assert find_faults(name, RUNS[name]) == []


def test_a_run_that_lacks_something_is_found_out() -> None:
    name = "one rank, a reference"
    step = dict(RUNS[name]["steps"]["2"])
    step.pop("maxent/kl_target_anchor")
    broken = RUNS[name] | {"steps": {"1": RUNS[name]["steps"]["1"], "2": step | {"actor_grad_norm": 0.0}}}
    assert find_faults(name, broken) == ["2: maxent/kl_target_anchor", "2: no gradient"]
    assert find_faults(name, RUNS[name] | {"steps": {}}) == ["steps ('1', '2'), got []"]
