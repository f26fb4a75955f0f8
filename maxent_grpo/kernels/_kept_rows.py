"""The rows that meet the LM head: out of all hidden states before its matmuls, and back among zeros after them."""

import torch
from torch import Tensor


class KeptRows:
    """The rows where `keep [...]` holds.

    Their number is the size of a matmul. Unless the caller tells it, the host waits here until a GPU has done all it
    was asked for, and then the GPU waits for the host to ask again. Where a told number is not true, what is put back
    is NaN, as is a row whose id lies outside the vocabulary.
    """

    def __init__(self, keep: Tensor, count: int | None = None) -> None:
        self._shape, self._all = keep.shape, count == keep.numel()
        self._trust = None if count is None else torch.where(keep.sum() == count, 1.0, torch.nan)
        if count is None:
            self._numbers = keep.flatten().nonzero().squeeze(-1)
            self._all = len(self._numbers) == keep.numel()
        elif not self._all:
            self._numbers = keep.flatten().nonzero_static(size=count, fill_value=0).squeeze(-1)

    def select(self, values: Tensor) -> Tensor:
        """Select the rows of `values [...]` or `[..., D]`: `[n]` or `[n, D]`, without a copy where all are kept."""
        rows = values.reshape(-1, *values.shape[len(self._shape) :])
        return rows if self._all else rows.index_select(0, self._numbers)

    def scatter(self, values: Tensor) -> Tensor:
        """Put `values [n]` back among zeros, `[...]`."""
        values = self.distrust(values)
        if self._all:
            return values.view(self._shape)
        return values.new_zeros(self._shape.numel()).index_copy(0, self._numbers, values).view(self._shape)

    def distrust(self, values: Tensor) -> Tensor:
        """Return `values`, NaN where the number that the caller told is not true."""
        return values if self._trust is None else values * self._trust
