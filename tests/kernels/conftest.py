"""Both backends in every test: the Triton kernels run on a GPU if there is one, else in Triton's interpreter.

Those of torch are numerical. The interpreter computes with NumPy, and takes minutes.
"""

import importlib.util

import pytest

TORCH = pytest.param("torch", marks=pytest.mark.numerical)
BACKENDS = [TORCH, "triton"] if importlib.util.find_spec("triton") else [TORCH]


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param
