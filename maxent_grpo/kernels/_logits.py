"""Token log-probabilities, sequence log-probabilities and the weighted NLL of given logits.

Peak memory beside the inputs, N rows, `itemsize` bytes to a logit:

    N·V·itemsize            the gradient, where one is needed and not written over the logits
  + b·block                 torch backend only: block = `BLOCK_BYTES`, but at least one row and at most all of them;
                            b = 1, one more for an entropy and one more if rows are dropped
  + 64·N                    results, indices and masks
"""

from types import ModuleType

import torch
from torch import Tensor

from maxent_grpo._checks import expect, expect_tensor
from maxent_grpo.kernels._checks import expect_flags, expect_ids, expect_rows, expect_token_weights
from maxent_grpo.kernels._logits_autograd import SequenceLogps, TokenLogps, WeightedNLLFunction, sum_nll
from maxent_grpo.kernels._rows import (
    Backend,
    LogitMap,
    WeightedNLL,
    accumulation_dtype,
    exclude_from_graphs,
    load_backend,
    mark_kept_rows,
)


@exclude_from_graphs
def token_logps(
    logits: Tensor,
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    backend: Backend = "auto",
) -> Tensor:
    """Log-probability of every token, without a second `[..., V]` tensor in the forward (the module says how much).

    log p(y_t) = z_t[y_t] / T − log Σ_v exp(z_t[v] / T), the same as
    `(logits.float() / T).log_softmax(-1).gather(-1, ids[..., None])[..., 0]`.

    Args:
        logits: `[..., V]` of any strides; `logits[:, :-1]` costs no copy.
        ids: `[...]` int64 or int32; −100 marks a row as none.
        mask: `[...]` bool, rows to score; None scores all.
        temperature: T > 0.
        backend: `"auto"`, `"torch"` or `"triton"`.

    Returns:
        `[...]` float32 (float64 for float64 logits), 0 at rows not scored. Differentiable once with respect to the
        logits.

    Raises:
        ValueError: for shapes, dtypes or settings that do not fit, and for an id outside the vocabulary if the ids
            are on the CPU (on a GPU its row is NaN).

    >>> token_logps(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))
    tensor([[-1.3863,  0.0000]])
    """
    keep, rows = _check_inputs(logits, ids, mask, backend)
    logit_map = LogitMap.build(temperature)
    logps: Tensor = TokenLogps.apply(logits, ids.flatten(), keep, logit_map, rows)  # type: ignore[no-untyped-call]
    return logps.view(ids.shape)


@exclude_from_graphs
def sequence_logps(
    logits: Tensor,
    ids: Tensor,
    mask: Tensor | None = None,
    *,
    length_normalize: bool = False,
    temperature: float = 1.0,
    backend: Backend = "auto",
) -> Tensor:
    """Log-probability of every sequence: the sum of its tokens', or their mean, in the memory of `token_logps`.

    log p(y) = Σ_t m_t log p(y_t), divided by Σ_t m_t when `length_normalize`; the same as the masked sum (mean) over
    the last dimension of `token_logps`.

    Args:
        logits: `[..., T, V]`.
        ids: `[..., T]` int64 or int32; −100 marks a token as none.
        mask: `[..., T]` bool, tokens to count; None counts all.
        length_normalize: divide by the number of tokens counted.
        temperature: as in `token_logps`.
        backend: as in `token_logps`.

    Returns:
        `[...]` float32 (float64 for float64 logits), 0 for a sequence without tokens. Differentiable once.

    Raises:
        ValueError: as `token_logps`.

    >>> sequence_logps(torch.zeros(1, 3, 4), torch.tensor([[3, 2, -100]]), length_normalize=True)
    tensor([-1.3863])
    """
    expect_tensor("logits", logits)
    expect(logits.ndim >= 3, "logits of shape [..., T, V]", logits=list(logits.shape))
    expect_flags(length_normalize=length_normalize)
    keep, rows = _check_inputs(logits, ids, mask, backend)
    logit_map = LogitMap.build(temperature)
    sums: Tensor = SequenceLogps.apply(logits, ids.flatten(), keep, logit_map, rows, length_normalize)  # type: ignore[no-untyped-call]
    return sums.view(ids.shape[:-1])


@exclude_from_graphs
def weighted_nll(
    logits: Tensor,
    ids: Tensor,
    token_weights: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    inplace: bool = False,
    entropy: bool = False,
    backend: Backend = "auto",
) -> WeightedNLL:
    """Eq. (7) and its gradient at once, without the softmax that a backward would need.

    L = −Σ_t c_t log p(y_t) and ∂L/∂z_t = c_t (p_t − onehot(y_t)) / T, both known at once because the coefficients are
    constants; the same as `-(token_weights * token_logps(logits, ids)).sum()`.

    Args:
        logits: `[..., V]` of any strides.
        ids: `[...]` int64 or int32; −100 marks a row as none.
        token_weights: `[...]` c of every token, of either sign; never differentiated. Rows with c = 0 are not read.
        mask: `[...]` bool, rows to count; None counts all.
        temperature: T > 0.
        inplace: write the gradient over the logits, so that no second `[..., V]` tensor exists. The logits are then
            gone; whoever saved them for a backward of their own gets autograd's error.
        entropy: also return every kept row's entropy.
        backend: as in `token_logps`.

    Returns:
        Loss, token log-probabilities and entropy. Without gradients (under `no_grad`) none are computed and the
        logits stay as they are. The gradient is consumed by the first backward.

    Raises:
        ValueError: as `token_logps`; for `inplace` logits that are a leaf or overlap themselves.

    >>> weighted_nll(torch.zeros(2, 4), torch.tensor([3, 1]), torch.tensor([1.0, -0.5])).loss
    tensor(0.6931)
    """
    expect_tensor("token_weights", token_weights)
    keep, rows = _check_inputs(logits, ids, mask, backend, token_weights)
    expect_flags(inplace=inplace, entropy=entropy)
    logit_map = LogitMap.build(temperature)
    # A weight outside the mask, even NaN, must not reach a row: 0 there makes the kernels pass it by.
    factor = torch.where(keep, token_weights.detach().flatten(), 0).to(accumulation_dtype(logits.dtype))
    if torch.is_grad_enabled() and logits.requires_grad:
        if inplace:
            _expect_overwritable(logits)
        outputs = WeightedNLLFunction.apply(logits, ids.flatten(), factor, logit_map, rows, inplace, entropy)  # type: ignore[no-untyped-call]
        loss, logps, entropies = outputs
    else:
        logps, _, entropies = rows.score_rows(logits.detach(), ids.flatten(), factor != 0, logit_map, entropy=entropy)
        loss = sum_nll(factor, logps)
    return WeightedNLL(loss, logps.view(ids.shape), None if entropies is None else entropies.view(ids.shape))


def _check_inputs(
    logits: Tensor, ids: Tensor, mask: Tensor | None, backend: Backend, token_weights: Tensor | None = None
) -> tuple[Tensor, ModuleType]:
    """Check the arguments all operations share; return the kept rows `[N]` and the backend's module."""
    expect_rows("logits", logits, ids, mask)
    if token_weights is not None:
        expect_token_weights(token_weights, ids)
    keep = mark_kept_rows(ids, mask, token_weights)
    expect_ids(ids, keep, logits.shape[-1])
    return keep.flatten(), load_backend(backend, logits)


def _expect_overwritable(logits: Tensor) -> None:
    """Check that a gradient may be written over the logits."""
    expect(not logits.is_leaf, "logits that another operation computed with inplace=True", leaf=True)
    base = logits._base
    expect(
        base is None or not (base.is_leaf and base.requires_grad),
        "logits that are no view of a leaf with inplace=True, which would write over it",
        leaf=None if base is None else list(base.shape),
    )
    expect(not _may_overlap(logits), "logits without shared memory with inplace=True", stride=logits.stride())


def _may_overlap(tensor: Tensor) -> bool:
    """Tell whether two elements may share memory: some step does not clear what the smaller ones reach together."""
    reach = 0
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and step <= reach:
            return True
        reach += step * (size - 1)
    return False
