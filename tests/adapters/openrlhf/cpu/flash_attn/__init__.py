"""Stands in for flash_attn: the names that OpenRLHF imports of it, which only packed sequences would call."""

import cuda_on_cpu  # noqa: F401  (before OpenRLHF asks for a device)
