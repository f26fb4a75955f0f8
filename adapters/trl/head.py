"""The weighted NLL through the LM head in one pass, inside the model's own forward.

Inside, because the hooks of DDP, ZeRO and FSDP sit there: a head called beside the forward leaves gradients
unsynchronised without a word.
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from maxent_grpo._checks import expect
from maxent_grpo.adapters._head import gather_head, gather_zero3
from maxent_grpo.kernels import linear_weighted_nll


@dataclass
class WeightedHeadOutput(ModelOutput):  # type: ignore[misc]
    """Result of a forward with `token_weights`.

    Attributes:
        loss: scalar, Σ token_weights·NLL.
        log_probs: [B, T] log-probabilities of the weighted tokens, 0 elsewhere; detached.
        entropy: [B, T] entropies there, 0 elsewhere; detached.
    """

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    entropy: Tensor | None = None


def add_weighted_head(model: PreTrainedModel, *, temperature: float, float32: bool) -> None:
    """Let this model instance take `token_weights`: its forward then returns a `WeightedHeadOutput`.

    With the number of weights that are not 0, `weighted_tokens`, the head does not wait for the body on a GPU.

    Args:
        model: a causal language model; without `token_weights` its forward is what it was.
        temperature: the logits are divided by it.
        float32: project in float32, outside autocast.
    """
    forward = model.forward
    scale, softcap = _logit_settings(model.config.get_text_config())

    @functools.wraps(forward)  # `generate` checks its arguments against the signature
    def run_forward(
        *args: Any, token_weights: Tensor | None = None, weighted_tokens: int | None = None, **kwargs: Any
    ) -> Any:
        if token_weights is None:
            return forward(*args, **kwargs)
        input_ids, width = kwargs["input_ids"], token_weights.size(1)
        states = model.base_model(*args, **kwargs, use_cache=False).last_hidden_state
        hidden = states[:, -width - 1 : -1]
        hidden = hidden.float() if float32 else hidden
        precision = torch.autocast(hidden.device.type, enabled=False) if float32 else nullcontext()
        with gather_head(model.get_output_embeddings(), hidden.dtype) as (weight, bias), precision:
            result = linear_weighted_nll(
                hidden,
                weight,
                input_ids[:, -width:],
                token_weights,
                row_count=weighted_tokens,
                bias=bias,
                temperature=temperature,
                entropy=True,
                logit_scale=scale,
                softcap=softcap,
            )
        return WeightedHeadOutput(loss=result.loss, log_probs=result.token_logps, entropy=result.entropy)

    model.forward = run_forward


def _logit_settings(config: Any) -> tuple[float, float | None]:
    """Return how a model makes logits of its head's output: a factor and a soft cap, under their many names."""
    divisor, softcap = getattr(config, "logits_scaling", None), getattr(config, "final_logit_softcapping", None)
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if (factor := getattr(config, name, None)) is not None:
            return float(factor), softcap
    if divisor is None:
        return 1.0, softcap
    return float(divisor) if config.model_type == "hyperclovax" else 1 / float(divisor), softcap


@torch.no_grad()
def expect_own_logits(model: Any, score: Callable[[Tensor], Tensor], temperature: float) -> None:
    """Compare one row's log-probabilities, as they are scored in training, with those of the model's own logits.

    Training multiplies hidden states by the head's weight. A model that does more to its logits, under a name that is
    not known here, would be trained on other probabilities than it samples from.

    A logit is rounded once to its dtype, after a float32 sum of D products that is off by at most D·u·‖h‖·‖w‖. Both
    sides may be off by that, and a log-softmax by twice as much.

    Args:
        model: the model, its adapter included; under ZeRO-3 within DeepSpeed's engine, on all ranks.
        score: returns the log-probabilities [1, T-1] of a row's tokens [1, T] after the first.
        temperature: the logits are divided by it.

    Raises:
        ValueError: naming the model, if they differ.
    """
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if not isinstance(weight, Tensor) or any(p.is_meta for p in model.parameters()):
        return
    with gather_zero3(weight):
        (vocabulary, width), longest_row = weight.shape, float(weight.float().norm(dim=-1).amax())
        ids = (torch.arange(8, device=weight.device) % vocabulary).unsqueeze(0)
    states: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    was_training = model.training
    model.eval()
    try:
        own = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        own = own[:, -ids.size(1) : -1]  # an adapter that learns a prompt puts its tokens first
        scored = score(ids)
    finally:
        handle.remove()
        model.train(was_training)
    logps = (own.float() / temperature).log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    longest_state = float(states[0].float().norm(dim=-1).amax()) if states else 0.0
    sums = width * torch.finfo(torch.float32).eps / 2 * longest_state * longest_row
    tolerance = 4 / temperature * (torch.finfo(own.dtype).eps * float(own.abs().amax()) + sums)
    difference = float((logps - scored.float()).abs().amax())
    expect(
        difference <= tolerance,
        f"a model whose logits are its head's product with the last hidden states (to {tolerance:.2g} nats)",
        model_type=getattr(model.config, "model_type", None),
        difference=difference,
    )
