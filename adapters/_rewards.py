"""The contract of rewards: how a reward function is called, what it may return, and who is scored by it.

- It is called with one entry per completion: `prompts`, `completions` (texts or chats, as the prompts are),
  `completion_ids` and every other column of the data, by name; beside them stand `trainer_state`, `log_extra` and
  `log_metric`.
- It returns one entry per completion: a number, a truth value, or a scalar of NumPy or torch. None and NaN mean that
  it cannot tell. Anything else, infinities included, is refused by the function's name.
- A utility is Σ weight·reward. A function of weight 0 is a metric and has no say. A missing verdict of any other
  function takes the candidate out of its group.
- The utility decides, not one function: a candidate has failed where its utility is at most `min_utility`. A warning
  says where bonuses make candidates right that the function of the largest weight calls failures.

Training and evaluation call by these functions, whatever the framework.
"""

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maxent_grpo._checks import expect, expect_shape, show


def read_rewards(rewards: Tensor | Sequence[Any], device: torch.device, name: str = "rewards") -> Tensor:
    """Return rewards as a float tensor, NaN where there is no verdict (None).

    Args:
        rewards: [...] tensor or array, or a list of numbers, truth values, scalar tensors and None.
        device: where the result is to be.
        name: of the function or argument that they are from.

    Raises:
        ValueError: on an entry that is none of them.

    >>> read_rewards([True, None, 0.5], torch.device("cpu"))
    tensor([1.0000,    nan, 0.5000])
    """
    if not isinstance(rewards, Tensor):
        listed = hasattr(rewards, "__iter__") and not isinstance(rewards, (str, bytes, Mapping))
        expect(listed, "a list of rewards, one per completion", **{name: rewards})
        rewards = torch.tensor([_read_reward(reward, name) for reward in rewards])
    expect(not rewards.is_complex(), "real rewards", **{name: rewards.dtype})
    dtype = rewards.dtype if rewards.is_floating_point() else torch.get_default_dtype()
    return rewards.detach().to(device, dtype)


def _read_reward(reward: Any, name: str) -> float:
    if reward is None:
        return math.nan
    try:
        if not isinstance(reward, str | bytes):  # float("1") would be a number
            return float(reward)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise ValueError(f"Expected rewards to be numbers or None, got {name}={show(reward)}.")


def call_reward_function(function: Callable[..., Any], columns: Mapping[str, Any], name: str | None = None) -> Tensor:
    """Return what a reward function says of some completions, [N], NaN where it cannot tell.

    Args:
        function: as the contract says.
        columns: what it is called with, `completions` among them.
        name: what complaints call it; by default its own name.

    Raises:
        ValueError: naming the function, on another number of rewards or entries that are none. Infinities are refused
            by `weigh_rewards`, on all ranks alike and only where the function counts.
    """
    rewards = function(**columns)
    if inspect.iscoroutine(rewards):
        rewards = asyncio.run(rewards)
    return _check_rewards(rewards, len(columns["completions"]), name or name_function(function))


def _check_rewards(rewards: Any, candidates: int, name: str) -> Tensor:
    values = read_rewards(rewards, torch.device("cpu"), name).to(torch.float32)
    if values.shape != (candidates,):
        raise ValueError(f"Expected {candidates} rewards, one per completion, got {_count(values)} from {name}.")
    return values


def _count(values: Tensor) -> str:
    return str(len(values)) if values.ndim == 1 else f"rewards of shape {list(values.shape)}"


def hold_to_contract(function: Any) -> Any:
    """Return a reward function, plain or async, whose results are checked; what is no function is left as it is."""
    if not callable(function) or isinstance(function, (str, torch.nn.Module, type)):
        return function
    plain, name = function, name_function(function)
    while isinstance(plain, functools.partial):
        plain = plain.func
    if inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(getattr(plain, "__call__", None)):  # noqa: B004

        async def call(**columns: Any) -> list[float]:
            return _check_rewards(await function(**columns), len(columns["completions"]), name).tolist()
    else:

        def call(**columns: Any) -> Any:  # type: ignore[misc]
            return call_reward_function(function, columns, name).tolist()

    call.__name__ = name
    return call


def name_function(function: Any) -> str:
    """Return what to call a function: its name, behind partial arguments too, or its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def weigh_rewards(rewards: Tensor, weights: Tensor, names: Sequence[str]) -> Tensor:
    """Return the utility of each candidate, Σ_f weight_f · reward_f.

    A function of weight 0 has no say, not even in who is scored. A missing verdict of any other function leaves the
    candidate without a utility: a sum that lacks a term would be compared with sums that have it.
    Reads the rewards, so once per rollout.

    Args:
        rewards: [N, F] by F functions; NaN where one has no verdict.
        weights: [F].
        names: those of the functions, for errors.

    Returns:
        utilities [N], NaN where there is none.

    Raises:
        ValueError: on an infinite reward, by its function's name.

    >>> weigh_rewards(torch.tensor([[1.0, math.nan], [math.nan, 2.0]]), torch.tensor([0.9, 0.0]), ["right", "length"])
    tensor([0.9000,    nan])
    """
    expect_shape("reward_weights", weights, rewards.shape[1:])
    counts = weights != 0
    rewards, weights = rewards[:, counts], weights[counts]
    infinite = rewards.isinf()
    if bool(infinite.any()):
        row, column = infinite.nonzero()[0].tolist()
        name = [name for name, counted in zip(names, counts.tolist(), strict=True) if counted][column]
        expect(False, "finite rewards, or None without a verdict", **{name: float(rewards[row, column])})
    return (rewards * weights).sum(-1)
