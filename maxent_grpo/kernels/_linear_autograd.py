"""The autograd functions of the operations through the LM head: a chunk of logits at a time, in one reused buffer."""

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maxent_grpo.kernels._logits_autograd import sum_nll, take_gradient
from maxent_grpo.kernels._matmul import HeadGradients, LogitChunks, build_head_gradients
from maxent_grpo.kernels._rows import LogitMap, RowLogps, allocate_row_logps, forbid_double_backward


class Settings(NamedTuple):
    """What one call does, beside its tensors."""

    logit_map: LogitMap
    backend: ModuleType
    device: str
    dtype: torch.dtype
    chunk_bytes: int | None
    entropy: bool = False

    def build_chunks(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, *, weight_gradient: bool = False
    ) -> LogitChunks:
        """Return the logits of all rows, a chunk at a time."""
        return LogitChunks(hidden, weight, bias, self.dtype, self.chunk_bytes, weight_gradient=weight_gradient)

    def disable_autocast(self) -> torch.autocast:
        """Return a context in which the matmuls keep the dtype chosen for them."""
        return torch.autocast(self.device, enabled=False)


class LinearTokenLogps(torch.autograd.Function):
    """log p of every row; the backward computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, settings: Settings
    ) -> Tensor:
        # In the chunks of the backward: a matmul of another size may round the logits otherwise.
        weight_gradient = ctx.needs_input_grad[1]
        logps, normalizer, _ = score_chunks(hidden, weight, bias, ids, settings, weight_gradient=weight_gradient)
        ctx.save_for_backward(hidden, weight, bias, ids, normalizer)
        ctx.settings = settings
        return logps

    @staticmethod
    @forbid_double_backward
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, normalizer = ctx.saved_tensors
        settings: Settings = ctx.settings
        with settings.disable_autocast():
            chunks = settings.build_chunks(hidden, weight, bias, weight_gradient=ctx.needs_input_grad[1])
            gradients = build_head_gradients(chunks, -upstream, ctx.needs_input_grad[:3], settings.backend.scale_)
            for span, logits in chunks:
                # The gradient takes the place of the chunk's logits, which nobody needs after it.
                settings.backend.write_row_gradient(
                    logits, ids[span], normalizer[span], gradients.row_factors[span], settings.logit_map, logits
                )
                gradients.add(chunks, span, logits)
            return *gradients.finish(None, _list_dtypes(hidden, weight, bias)), None, None


class LinearWeightedNLL(torch.autograd.Function):
    """−Σ c·log p with dH, dW and db from one pass; the backward only scales what the forward left."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        factor: Tensor,
        settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        with settings.disable_autocast():
            chunks = settings.build_chunks(hidden, weight, bias, weight_gradient=ctx.needs_input_grad[1])
            gradients = build_head_gradients(chunks, factor, ctx.needs_input_grad[:3], settings.backend.scale_)
            results = allocate_row_logps(hidden[:, :1], entropy=settings.entropy)
            for span, logits in chunks:
                # The gradient takes the place of the chunk's logits, which nobody needs after it.
                scores = settings.backend.score_and_write_gradient(
                    logits,
                    ids[span],
                    gradients.row_factors[span],
                    settings.logit_map,
                    logits,
                    entropy=settings.entropy,
                )
                gradients.add(chunks, span, logits)
                _store_scores(results, span, scores)
        ctx.gradient, ctx.dtypes = gradients, _list_dtypes(hidden, weight, bias)
        logps, _, entropies = results
        ctx.mark_non_differentiable(*(values for values in (logps, entropies) if values is not None))
        return sum_nll(factor, logps), logps, entropies

    @staticmethod
    @forbid_double_backward
    def backward(ctx: Any, upstream: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients: HeadGradients = take_gradient(ctx)
        return *gradients.finish(upstream, ctx.dtypes), None, None, None


def score_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    settings: Settings,
    *,
    weight_gradient: bool = False,
) -> RowLogps:
    """Compute the rows' results without any gradient."""
    with settings.disable_autocast(), torch.no_grad():
        results = allocate_row_logps(hidden[:, :1], entropy=settings.entropy)
        keep = torch.ones_like(ids, dtype=torch.bool)  # the rows to drop were dropped before the matmul
        for span, logits in settings.build_chunks(hidden, weight, bias, weight_gradient=weight_gradient):
            scores = settings.backend.score_rows(
                logits, ids[span], keep[span], settings.logit_map, entropy=settings.entropy
            )
            _store_scores(results, span, scores)
    return results


def _store_scores(results: RowLogps, span: slice, scores: RowLogps) -> None:
    for values, part in zip(results, scores, strict=True):
        if values is not None and part is not None:
            values[span] = part


def _list_dtypes(*tensors: Tensor | None) -> tuple[torch.dtype, ...]:
    return tuple(torch.float32 if tensor is None else tensor.dtype for tensor in tensors)
