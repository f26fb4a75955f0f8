"""OpenRLHF without a Ray: what its maker puts into the object store and gets from there stays in this process."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from collections.abc import Iterator

import pytest
import ray

from support.openrlhf_tiny import join_alone


@pytest.fixture(scope="session", autouse=True)
def _one_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, join_alone():
        patch.setattr(ray, "put", lambda value: value)
        patch.setattr(ray, "get", lambda value: value)
        yield
