"""Settings shared by all tests: hypothesis profiles and one thread a worker."""

import os

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "ci", derandomize=True, database=None, deadline=None, max_examples=40, suppress_health_check=_QUIET
)
settings.register_profile("nightly", deadline=None, max_examples=2000, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
