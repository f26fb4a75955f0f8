"""What a floating point format may lose on the way to an exact result: bounds that hold on every processor.

A format rounds each operation's result by a relative error of at most u, half the distance from 1 to the next number.
Such errors are as good as uniform and independent, with variance u²/3 (Higham and Mary, A new approach to
probabilistic rounding error analysis, 2019). In a sum they are relative to the partial sums, whose order belongs to
the processor and its libraries. Over all orders the squares of the partial sums of n terms x add up to
(n + 1)·(Σx² + 2·(Σx)²)/6 on average, and the terms, where they are products, have roundings of their own. So

    variance of a sum's error = u²/3 · (Σx² + (n + 1)·(Σx² + 2·(Σx)²)/6)

`sum_error` allows for `DEVIATIONS` standard deviations, or for the worst case where that is less: n·u·Σ|x|.
`evaluate` carries the errors of all operations through whatever torch computes, a network and its backward included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

FUNCTION = 4
"""Roundings that exp, log, tanh and their like count for: vector libraries promise 2 units in the last place."""
DEVIATIONS = 6.0
SAMPLES = 4


def unit_roundoff(dtype: torch.dtype) -> float:
    """Return u, the largest relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def sum_roundings(terms: Tensor | int, squares: Tensor, total: Tensor) -> Tensor:
    """Return √3/u standard deviations of the error of sums: so many roundings of a number of size 1."""
    return (squares + (terms + 1) / 6 * (squares + 2 * total.square())).sqrt()


def count_roundings(terms: int) -> float:
    """Return how far a sum of so many terms may be off beside u·Σ|terms|."""
    return min(float(terms), DEVIATIONS / 3**0.5 * ((terms + 3) / 2) ** 0.5)


def sum_error(terms: Tensor, dtype: torch.dtype, dim: int = -1) -> Tensor:
    """Return how far the sum of exact `terms`, each the product of two numbers, along `dim` may be off in `dtype`."""
    terms = terms.double()
    likely = sum_roundings(terms.shape[dim], terms.square().sum(dim), terms.sum(dim)) * DEVIATIONS / 3**0.5
    return unit_roundoff(dtype) * torch.minimum(likely, (terms.shape[dim] + 1) * terms.abs().sum(dim))


@dataclass(frozen=True)
class Bounded:
    """A result in float64, and how far another may be from it in the Euclidean norm."""

    value: Tensor
    error: float

    def distance(self, found: Tensor) -> float:
        """Return ‖found − value‖."""
        assert found.shape == self.value.shape
        return float((found.detach().double() - self.value).norm())

    def assert_near(self, found: Tensor) -> None:
        """Check ‖found − value‖ <= error; NaN is never near."""
        distance, size = self.distance(found), float(self.value.norm())
        assert distance <= self.error, f"{distance:.3g} from a result of size {size:.3g}: beyond {self.error:.3g}"


def evaluate(compute: Callable[[], Sequence[Tensor]], dtype: torch.dtype = torch.float32) -> list[Bounded]:
    """Evaluate in float64 and say how far the same operations in `dtype`, in any order, may take each result.

    To first order an error of the result is Σ over operations of ∂result/∂output · (the operation's own error).
    In place of the derivatives every output, in the backward as in the forward, is moved by a random error such as
    its operation has of its own: of size u·|output| for arithmetic, `FUNCTION` times as much for functions, that of
    the formula above for sums (Parker, Monte Carlo arithmetic, 1997). The root mean square of a few such moves is a
    standard deviation, of which `DEVIATIONS` are allowed for. It is all float64: no processor has a say in it.

    Args:
        compute: returns tensors in float64 from operands in float64; what it casts down stays in float64.
        dtype: the format of the computation to be judged.
    """
    with sdpa_kernel(SDPBackend.MATH):  # whose operations are known one by one
        with _InFloat64():
            values = [value.detach() for value in compute()]
        squares = torch.zeros(len(values), dtype=torch.float64)
        for sample in range(SAMPLES):
            with _Rounded(unit_roundoff(dtype), torch.Generator().manual_seed(sample)):
                moved = [value.detach() for value in compute()]
            moves = [(one - value).square().sum() for one, value in zip(moved, values, strict=True)]
            squares += torch.stack(moves)
    errors = DEVIATIONS * (squares / SAMPLES).sqrt()
    return [Bounded(value, error) for value, error in zip(values, errors.tolist(), strict=True)]


def store(values: Any) -> Tensor:
    """Return float64 values as a format stores them: within `evaluate` off by one rounding."""
    return torch.as_tensor(values, dtype=torch.float64) * 1


_EXACT = {
    "_to_copy", "_unsafe_view", "abs", "amax", "amin", "arange", "cat", "clamp", "clamp_min", "clone", "copy_",
    "embedding", "empty", "empty_like", "fill", "fill_", "full", "full_like", "gather", "index", "index_select",
    "lift_fresh", "masked_fill", "masked_fill_", "max", "maximum", "min", "minimum", "neg", "new_empty", "new_full",
    "new_ones", "new_zeros", "ones", "ones_like", "relu", "scalar_tensor", "scatter", "select_backward", "set_",
    "slice_backward", "stack", "where", "zero_", "zeros", "zeros_like",
}  # fmt: skip
_ARITHMETIC = {"add", "div", "mul", "rsub", "sqrt", "sub"}
_SUMS = {
    "addmm", "baddbmm", "bmm", "cumsum", "dot", "embedding_dense_backward", "index_add", "index_put", "mm", "mv",
    "scatter_add", "sum",
}  # fmt: skip


class _InFloat64(TorchDispatchMode):
    """Runs every operation in float64, where the code asks for a narrower format too, as norms of halves do."""

    def __torch_dispatch__(
        self,
        operation: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if isinstance(dtype := options.get("dtype"), torch.dtype) and dtype.is_floating_point:
            options["dtype"] = torch.float64
        return self.finish(operation, args, options, operation(*args, **options))

    def finish(self, operation: OpOverload, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        return output


class _Rounded(_InFloat64):
    """Moves what every operation puts out by an error of its own."""

    def __init__(self, unit: float, generator: torch.Generator) -> None:
        super().__init__()
        self.unit, self.generator = unit, generator

    def finish(self, operation: OpOverload, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        name, alias = operation._schema.name.removeprefix("aten::"), operation._schema.returns[0].alias_info
        in_place = alias is not None and alias.is_write
        if name in _EXACT or (alias is not None and not in_place):  # the latter are views
            return output
        if not (isinstance(output, Tensor) and output.is_floating_point()):
            assert not isinstance(output, tuple | list), f"The errors of {operation} are not known."
            return output
        error = self.unit * count_own_roundings(operation, name.removesuffix("_"), args, options, output)
        uniform = 2 * torch.rand(output.shape, generator=self.generator, dtype=output.dtype) - 1
        move = (uniform * error).where(error.isfinite(), 0.0)
        return output.add_(move) if in_place else output + move


def count_own_roundings(
    operation: OpOverload, name: str, args: tuple[Any, ...], options: dict[str, Any], output: Tensor
) -> Tensor:
    """Return the error of one operation on exact operands, in units of u."""
    if name in _SUMS:
        terms, squares = (operation(*_map_floats(each, args), **options) for each in (torch.ones_like, torch.square))
        return sum_roundings(terms, squares, output)
    if name == "mean":
        number = args[0].numel() // output.numel()
        return sum_roundings(number, operation(args[0].square(), *args[1:], **options) / number, output)
    if name in _OF_SOFTMAX:
        return _OF_SOFTMAX[name](*args[:-1], output)
    assert torch.Tag.pointwise in operation.tags, f"The errors of {operation} are not known."
    return (1 if name in _ARITHMETIC else FUNCTION) * output.abs()


def _count_for_softmax(logits: Tensor, dim: int, p: Tensor) -> Tensor:
    """Count the roundings of exp(top − z)/Σ."""
    below = logits.amax(dim, keepdim=True) - logits
    return p * (below + FUNCTION + _count_along(p, dim) + 1)


def _count_for_log_softmax(logits: Tensor, dim: int, log_p: Tensor) -> Tensor:
    """Count the roundings of z − top − log Σ."""
    below, p = logits.amax(dim, keepdim=True) - logits, log_p.exp()
    log_sum = (-below).logsumexp(dim, keepdim=True)
    return below + FUNCTION * (1 + log_sum) + _count_along(p, dim) + log_p.abs()


def _count_for_softmax_backward(gradient: Tensor, p: Tensor, dim: int, output: Tensor) -> Tensor:
    """Count the roundings of p·(g − Σ p·g)."""
    return output.abs() + p * (gradient.abs() + _count_along(p * gradient, dim))


def _count_for_log_softmax_backward(gradient: Tensor, log_p: Tensor, dim: int, output: Tensor) -> Tensor:
    """Count the roundings of g − p·Σ g."""
    total = gradient.sum(dim, keepdim=True).abs()
    return output.abs() + log_p.exp() * (FUNCTION * total + _count_along(gradient, dim))


def _count_along(terms: Tensor, dim: int) -> Tensor:
    """Count the roundings of one sum."""
    squares, total = terms.square().sum(dim, keepdim=True), terms.sum(dim, keepdim=True)
    return sum_roundings(terms.shape[dim], squares, total)


_OF_SOFTMAX = {
    "_softmax": _count_for_softmax,
    "_safe_softmax": _count_for_softmax,
    "_log_softmax": _count_for_log_softmax,
    "_softmax_backward_data": _count_for_softmax_backward,
    "_log_softmax_backward_data": _count_for_log_softmax_backward,
}


def _map_floats(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    return tree_map(
        lambda leaf: function(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, tree
    )
