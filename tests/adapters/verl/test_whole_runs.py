"""The committed log of verl's whole runs (`make nightly-verl`): every run is there, with finite numbers."""

import json

from support.verl_runs import RUNS, SCRIPT, find_faults

PATH = SCRIPT.parents[2] / "tests/golden/verl_runs.json"


def test_every_run_is_committed_with_its_statistics() -> None:
    runs = json.loads(PATH.read_text())
    assert runs.keys() == RUNS.keys()
    assert {name: find_faults(name, run) for name, run in runs.items()} == {name: [] for name in runs}
