"""One Ray, in a folder of its own, for the tests of this folder; none of its processes outlives them."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from collections.abc import Iterator

import pytest
import ray

from support.openrlhf_tiny import join_alone
from support.ray_processes import MARK, list_processes, wait_for_end


@pytest.fixture(scope="session", autouse=True)
def _local_ray() -> Iterator[None]:
    """Serve objects: OpenRLHF's maker hands them from models to itself."""
    with wait_for_end() as folder:
        ray.init(num_cpus=1, include_dashboard=False, _temp_dir=folder, logging_level="error")
        assert list_processes(os.environ[MARK]), "Ray's processes carry the mark by which they are found"
        with join_alone():
            yield
        ray.shutdown()
