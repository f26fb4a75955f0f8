"""Imported first by the TRL adapter: says what to install where TRL is missing or not of a tested version."""

from maxent_grpo.adapters._require import require

require("trl", (1, 16), (1, 17), "trl")
