"""What a method makes of a few real groups: its target weights and coefficients, candidate by candidate."""

from collections.abc import Sequence
from typing import Any

from maxent_grpo import listwise_q
from maxent_grpo.adapters.torch_loop import RolloutConstants
from maxent_grpo.pipeline.tiny.sampling import Samples


def describe_groups(
    samples: Samples, rollout: RolloutConstants, prompts: Sequence[str], *, limit: int = 3
) -> list[dict[str, Any]]:
    """Return the first groups whose rewards differ, as rows to log.

    Args:
        samples: G groups of K completions.
        rollout: what the method makes of them.
        prompts: G prompts, of the groups.
        limit: the most groups to return.

    Returns:
        A row per group: its number, prompt, texts, rewards, q, weights π* (the surrogate's own weights), and
        coefficients c: what moves each log-likelihood.
    """
    config, weights = rollout.objective.config, rollout.target.weights
    rewards = samples.rewards.reshape(weights.shape)
    columns = {
        "rewards": rewards,
        "q": listwise_q(rewards, temperature=config.q_temperature, eps=config.q_eps),
        "weights": weights,
        "coefficients": rollout.coefficients.reshape(weights.shape),
    }
    size = weights.shape[1]
    return [
        {
            "group": group,
            "prompt": prompts[group],
            "texts": samples.texts[group * size : (group + 1) * size],
            **{name: values[group].tolist() for name, values in columns.items()},
        }
        for group in rollout.target.informative.nonzero().flatten().tolist()[:limit]
    ]
