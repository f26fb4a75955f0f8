"""The LM head's weight and bias, whole for the length of a forward: shards are gathered, adapters refused."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from maxent_grpo._checks import expect


@contextmanager
def gather_head(
    lm_head: nn.Module, dtype: torch.dtype | None = None, *, until_backward: bool = False
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the (weight `[V, D]`, bias `[V]` or None) of an LM head for the linear operations.

    The one-pass loss takes its gradients while the weight is whole, so the head may be freed before the backward.

    - DeepSpeed ZeRO-3: a partitioned weight is gathered inside the context. Call it within the engine's forward,
      whose hooks reduce the gradient. It is empty afterwards: `linear_token_logps`, which computes the logits again
      in the backward, needs `until_backward`.
    - FSDP2: a sharded weight (a `DTensor`) is gathered; its gradient is averaged over the ranks, as FSDP2 averages
      the others. `linear_token_logps` also works, but keeps the whole weight until the backward. The shards are
      float32 whatever FSDP2's mixed precision: `dtype` is what it would have cast them to.
    - PEFT: a merged adapter and a trained copy of the head (`modules_to_save`) are used, the original where adapters
      are disabled; an adapter beside the head is refused, because W alone is not the head then.

    Args:
        lm_head: a linear layer: its output is `hidden @ weight.T + bias`, nothing else.
        dtype: of the hidden states; a gathered weight and bias are cast to it, as `fully_shard` casts the body's.
        until_backward: yield copies of what ZeRO-3 gathers, which last as long as the graph.

    Raises:
        ValueError: for a head with an adapter that is not merged, or merged and disabled at once, a quantised head,
            or no linear layer at all.

    >>> with gather_head(nn.Linear(8, 4, bias=False)) as (weight, bias):
    ...     print(tuple(weight.shape), bias)
    (4, 8) None
    """
    head = _plain_head(lm_head)
    weight, bias = head.weight, head.bias
    with gather_zero3(weight, bias) as parts:
        if parts and until_backward:
            weight, bias = weight.clone(), None if bias is None else bias.clone()
        yield _whole(weight, dtype), None if bias is None else _whole(bias, dtype)


def _plain_head(lm_head: nn.Module) -> Any:
    """Return the linear layer that computes the logits, found inside PEFT's wrappers."""
    head: Any = lm_head
    name = type(head).__name__
    disabled = getattr(head, "disable_adapters", False)
    if hasattr(head, "modules_to_save"):
        active = head.active_adapter if isinstance(head.active_adapter, str) else head.active_adapter[0]
        head = head.original_module if disabled else head.modules_to_save[active]
    if hasattr(head, "base_layer"):
        adapters, merged = list(getattr(head, "active_adapters", [])), bool(getattr(head, "merged", False))
        expect(
            merged or disabled, "an LM head without an adapter, or with a merged one", lm_head=name, adapters=adapters
        )
        expect(not (merged and disabled), "an adapter that is not merged where it is disabled", lm_head=name)
        head = head.base_layer
    linear = hasattr(head, "bias") and isinstance(getattr(head, "weight", None), Tensor)
    expect(linear, "a linear LM head with weight and bias", lm_head=name)
    expect(head.weight.is_floating_point(), "an LM head that is not quantised", lm_head=name, dtype=head.weight.dtype)
    return head


@contextmanager
def gather_zero3(*parameters: Any) -> Iterator[list[Any]]:
    """Make parameters whole inside the context, and yield those of them that ZeRO-3 holds in parts outside it."""
    parts = [p for p in parameters if p is not None and hasattr(p, "ds_id") and p.ds_status.name == "NOT_AVAILABLE"]
    # DeepSpeed is imported by whoever partitioned the parameters.
    with sys.modules["deepspeed"].zero.GatheredParameters(parts) if parts else nullcontext():
        yield parts


def _whole(parameter: Any, dtype: torch.dtype | None) -> Tensor:
    """Return the parameter itself, or the whole of a sharded one, in `dtype`, whose gradient is the ranks' mean."""
    if not hasattr(parameter, "full_tensor"):
        tensor: Tensor = parameter
        return tensor
    from torch.distributed.tensor import Partial  # noqa: PLC0415 - slow to import, and here for sharded heads only

    ranks = parameter.device_mesh.size()
    whole: Tensor = parameter.full_tensor(grad_placements=[Partial()] * parameter.device_mesh.ndim)
    if whole.requires_grad:
        whole.register_hook(lambda gradient: gradient / ranks)  # type: ignore[no-untyped-call]
    return whole if dtype is None else whole.to(dtype)
