"""The pipeline: training from recipes, evaluation, rewards, tasks and data, around the adapter for TRL."""

from importlib.util import find_spec

_missing = [name for name in ("trl", "yaml", "rich", "matplotlib") if find_spec(name) is None]
if _missing:
    raise ImportError(f"Expected {', '.join(_missing)} to be installed: pip install 'maxent-grpo[pipeline]'.")
