"""Adapters: each renames, reshapes and calls `maxent_grpo.MaxEntObjective`; import the one of your trainer."""
