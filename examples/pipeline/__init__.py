"""The pipeline: training from recipes, evaluation, rewards, tasks and data, around the adapter for TRL."""

from importlib.util import find_spec

_missing = [name for name in ("trl", "yaml", "rich", "matplotlib") if find_spec(name) is None]
# Rewards, answers and tasks do without them: reward functions of another trainer may use these.
if _missing and not (find_spec("openrlhf") or find_spec("verl")):
    raise ImportError(f"Expected {', '.join(_missing)} to be installed: pip install 'maxent-grpo[pipeline]'.")
