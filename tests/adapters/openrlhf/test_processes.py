"""What tells whether a Ray of the tests has left anything behind."""

import os
import subprocess
import sys

import pytest

from support import ray_processes
from support.ray_processes import MARK, list_processes, wait_for_end

LOOK = """
import os, sys, ray
from support.ray_processes import MARK, list_processes
ray.init(num_cpus=1, include_dashboard=False, _temp_dir=sys.argv[1], logging_level="error")
ray.get(ray.remote(lambda: os.getpid()).remote())
print(*list_processes(os.environ[MARK]), sep="\\n")
"""


def test_no_raylet_gcs_or_worker_of_a_run_lives_on() -> None:
    with wait_for_end() as folder:
        mark = os.environ[MARK]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", LOOK, folder]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert all(part in run.stdout for part in ("raylet", "gcs_server", "ray::")), run.stdout + run.stderr
    assert list_processes(mark) == []


def test_a_process_that_lives_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_processes, "SECONDS", 0.0)
    with pytest.raises(AssertionError, match=r"left over: .*sleep 1000"), wait_for_end():
        left = subprocess.Popen(["sleep", "1000"])
    left.kill()
    left.wait()
