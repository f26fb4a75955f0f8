"""Both backends in every test: the Triton kernels run on a GPU if there is one, else in Triton's interpreter."""

import importlib.util

import pytest

BACKENDS = ["torch", "triton"] if importlib.util.find_spec("triton") else ["torch"]


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param
