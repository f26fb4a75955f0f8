"""What a floating point format may lose on the way to an exact result, whatever the processor's order of summation.

A format rounds each operation's result by a relative error of at most u, half the distance from 1 to the next number.
We take such errors for uniform and independent, with variance u²/3 (Higham and Mary, A new approach to probabilistic
rounding error analysis, 2019): the bounds then hold but for odds that `DEVIATIONS` makes negligible. In a sum the
errors are relative to the partial sums, whose order belongs to the processor and its libraries. Over all orders the
squares of the partial sums of n terms x add up to (n + 1)·(Σx² + 2·(Σx)²)/6 on average, and the terms, where they are
products, have roundings of their own. So

    variance of a sum's error = u²/3 · (Σx² + (n + 1)·(Σx² + 2·(Σx)²)/6)

`sum_error` allows for `DEVIATIONS` standard deviations, or for the worst case where that is less: n·u·Σ|x|.
`evaluate` carries the errors of all operations through whatever torch computes, a network and its backward included.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

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

    def round_to(self, dtype: torch.dtype) -> "Bounded":
        """Return the bound of the same result after it is stored in `dtype`."""
        underflow = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2 * self.value.numel() ** 0.5
        return Bounded(self.value, self.error + unit_roundoff(dtype) * float(self.value.norm()) + underflow)

    def assert_near(self, found: Tensor) -> None:
        """Check ‖found − value‖ <= error; NaN is never near."""
        distance, size = self.distance(found), float(self.value.norm())
        assert distance <= self.error, f"{distance:.3g} from a result of size {size:.3g}: beyond {self.error:.3g}"


def evaluate(compute: Callable[[], Sequence[Tensor]], dtype: torch.dtype = torch.float32) -> list[Bounded]:
    """Evaluate in float64 and say how far the same operations in `dtype`, in any order, may take each result.

    To first order an error of the result is Σ over operations of ∂result/∂output · (the operation's own error).
    In place of the derivatives every output, in the backward as in the forward, is moved by a random error such as
    its operation has of its own: of size u·|output| for arithmetic, `FUNCTION` times as much for functions, that of
    the formula above for sums (Parker, Monte Carlo arithmetic, 1997). Equal entries of arithmetic, a function or a
    softmax round alike, as they do on any processor: what is tied stays tied. The root mean square of `SAMPLES` such
    moves knows a standard deviation to a factor of 2, so that `DEVIATIONS` of twice its size are allowed for. All of
    it is float64: no processor has a say in it.

    Args:
        compute: returns tensors in float64 from operands in float64; what it casts down stays in float64.
        dtype: the format of the computation to be judged; on halves operations compute in float32, then round.
    """
    with sdpa_kernel(SDPBackend.MATH):  # whose operations are known one by one
        with _InFloat64():
            values = [value.detach() for value in compute()]
        squares = torch.zeros(len(values), dtype=torch.float64)
        for sample in range(SAMPLES):
            with _Rounded(dtype, torch.Generator().manual_seed(sample)):
                moved = [value.detach() for value in compute()]
            moves = [(one - value).square().sum() for one, value in zip(moved, values, strict=True)]
            squares += torch.stack(moves)
    errors = 2 * DEVIATIONS * (squares / SAMPLES).sqrt()
    return [Bounded(value, error) for value, error in zip(values, errors.tolist(), strict=True)]


def store(values: Any) -> np.ndarray:
    """Return float64 values as they are; `evaluate` moves what NumPy computes here, as much as a function does."""
    stored: np.ndarray = torch.as_tensor(values, dtype=torch.float64).pow(1.0).numpy()
    return stored


_EXACT = {
    "_to_copy", "_unsafe_view", "abs", "amax", "amin", "arange", "cat", "ceil", "clamp", "clamp_min", "clone",
    "constant_pad_nd", "copy", "embedding", "empty", "empty_like", "eye", "fill", "flip", "floor", "frexp",
    "full", "full_like", "gather", "index", "index_copy", "index_select", "lift_fresh", "masked_fill", "max",
    "maximum", "min", "minimum", "neg", "new_empty", "new_full", "new_ones", "new_zeros", "normal", "ones",
    "ones_like", "rand", "relu", "repeat", "round", "scalar_tensor", "scatter", "select_backward", "set",
    "sign", "slice_backward", "sort", "stack", "topk", "uniform", "where", "zero", "zeros", "zeros_like",
}  # fmt: skip
_ARITHMETIC = {"add", "div", "mul", "rsub", "sqrt", "sub"}
_SUMS = {
    "addmm", "baddbmm", "bmm", "cumsum", "dot", "embedding_dense_backward", "index_add", "index_put", "mm", "mv",
    "nansum", "scatter_add", "sum",
}  # fmt: skip


class _InFloat64(TorchDispatchMode):
    """Runs every operation in float64, also on narrower parameters, and where the code asks for a narrower result."""

    def __torch_dispatch__(self, operation: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if isinstance(dtype := options.get("dtype"), torch.dtype) and dtype.is_floating_point:
            options["dtype"] = torch.float64
        name = operation._schema.name.removeprefix("aten::").removesuffix("_")
        aliases = [result.alias_info for result in operation._schema.returns]
        views = any(alias is not None and not alias.is_write for alias in aliases)
        writes = name == "index_put" and not any(args[3:])  # in place of what is there, not added to it
        if name in _EXACT or views or writes:
            return operation(*args, **options)
        if not any(aliases):
            args = [arg.double() if is_float(arg) else arg for arg in args]
        return self.finish(operation, name, args, options, operation(*args, **options))

    def finish(self, operation: OpOverload, name: str, args: Any, options: dict[str, Any], output: Any) -> Any:
        return output


class _Rounded(_InFloat64):
    """Moves what every operation puts out by an error of its own; those on lists of tensors are the optimizer's."""

    def __init__(self, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = unit_roundoff(torch.float32 if dtype.itemsize == 2 else dtype)  # halves are widened to compute
        self.final = unit_roundoff(dtype) if dtype.itemsize == 2 else 0.0
        self.generator = generator

    def finish(self, operation: OpOverload, name: str, args: Any, options: dict[str, Any], output: Any) -> Any:
        if not is_float(output) or output.is_meta:
            several = isinstance(output, tuple | list) and not name.startswith("_foreach")
            assert not (several and any(map(is_float, output))), f"The errors of {operation} are not known."
            return output
        error = self.inner * count_own_roundings(operation, name, args, options, output) + self.final * output.abs()
        by_value = torch.Tag.pointwise in operation.tags or name in _OF_SOFTMAX
        draw = self.draw_by_value if by_value else self.draw
        move = draw(output).mul_(error.nan_to_num_(posinf=0.0))
        return output.add_(move) if any(result.alias_info for result in operation._schema.returns) else output + move

    def draw(self, output: Tensor) -> Tensor:
        """Return random numbers between −1 and 1, one per entry."""
        return torch.rand(output.shape, generator=self.generator, dtype=output.dtype).mul_(2).sub_(1)

    def draw_by_value(self, output: Tensor) -> Tensor:
        """Return such numbers, equal where the entries are: equal operands round alike, so ties stay ties."""
        salt = int(torch.randint(2**62, (), generator=self.generator))
        bits = output.double().view(torch.int64)
        return scramble(bits ^ salt).to(output.dtype).div_(2.0**63)


def scramble(values: Tensor) -> Tensor:
    """Return int64 values scattered over all 64 bits, by the finalizer of splitmix64 in wrapping arithmetic."""
    values = (values ^ (values >> 30)) * -4658895280553007687
    values = (values ^ (values >> 27)) * -7723592293110705685
    return values ^ (values >> 31)


def is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def count_own_roundings(
    operation: OpOverload, name: str, args: tuple[Any, ...], options: dict[str, Any], output: Tensor
) -> Tensor:
    """Return the error of one operation on exact operands, in units of u."""
    if name in _SUMS:

        def repeat(change: Callable[[Tensor], Tensor]) -> Tensor:
            out = {"out": torch.empty_like(output)} if "out" in options else {}
            repeated: Tensor = operation(*[change(arg) if is_float(arg) else arg for arg in args], **options | out)
            return repeated

        return sum_roundings(repeat(torch.ones_like), repeat(torch.square), output)
    if name == "linalg_vector_norm":
        return (FUNCTION + args[0].numel() ** 0.5) * output
    if name == "mean":
        number = args[0].numel() // output.numel()
        return sum_roundings(number, operation(args[0].square(), *args[1:], **options) / number, output)
    if name in _OF_SOFTMAX:
        return _OF_SOFTMAX[name](output, *args)
    assert torch.Tag.pointwise in operation.tags, f"The errors of {operation} are not known."
    return (1 if name in _ARITHMETIC else FUNCTION) * output.abs()


def _count_for_softmax(p: Tensor, logits: Tensor, dim: int, *_: Any) -> Tensor:
    """Count the roundings of exp(top − z)/Σ."""
    below = logits.amax(dim, keepdim=True) - logits
    return p * (below + FUNCTION + _count_along(p, dim) + 1)


def _count_for_log_softmax(log_p: Tensor, logits: Tensor, dim: int, *_: Any) -> Tensor:
    """Count the roundings of z − top − log Σ."""
    below, p = logits.amax(dim, keepdim=True) - logits, log_p.exp()
    log_sum = (-below).logsumexp(dim, keepdim=True)
    return below + FUNCTION * (1 + log_sum) + _count_along(p, dim) + log_p.abs()


def _count_for_softmax_backward(output: Tensor, gradient: Tensor, p: Tensor, dim: int, *_: Any) -> Tensor:
    """Count the roundings of p·(g − Σ p·g)."""
    return output.abs() + p * (gradient.abs() + _count_along(p * gradient, dim))


def _count_for_log_softmax_backward(output: Tensor, gradient: Tensor, log_p: Tensor, dim: int, *_: Any) -> Tensor:
    """Count the roundings of g − p·Σ g."""
    total = gradient.sum(dim, keepdim=True).abs()
    return output.abs() + log_p.exp() * (FUNCTION * total + _count_along(gradient, dim))


def _count_along(terms: Tensor, dim: int) -> Tensor:
    """Count the roundings of one sum."""
    squares, total = terms.square().sum(dim, keepdim=True), terms.sum(dim, keepdim=True)
    return sum_roundings(terms.shape[dim], squares, total)


def _count_for_logsumexp(output: Tensor, logits: Tensor, dim: list[int], *_: Any) -> Tensor:
    """Count the roundings of top + log Σ."""
    top = logits.amax(dim).reshape(output.shape)
    along = _count_along(logits.softmax(dim[0]), dim[0]).reshape(output.shape)
    return FUNCTION * ((top - output).abs() + 1) + along + output.abs()


_OF_SOFTMAX = {
    "logsumexp": _count_for_logsumexp,
    "_softmax": _count_for_softmax,
    "_safe_softmax": _count_for_softmax,
    "softmax": _count_for_softmax,
    "_log_softmax": _count_for_log_softmax,
    "_softmax_backward_data": _count_for_softmax_backward,
    "_log_softmax_backward_data": _count_for_log_softmax_backward,
}
