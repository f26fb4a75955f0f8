"""Adapters: each renames, reshapes and calls `maxent_grpo.MaxEntObjective`; import the one of your trainer."""

from maxent_grpo.adapters._groups import KeyFunction

__all__ = ["KeyFunction"]
