"""Rows of a rollout (dicts of tensors [B, ...]): which tokens count, and who trains on which candidate."""

from typing import Any

import torch
from torch import Tensor

Rows = dict[str, Any]


def mask_tokens(rows: Rows) -> Tensor:
    """Return where a token of the policy counts, [B, T] bool: in the completion, and not written by a tool."""
    mask: Tensor = rows["completion_mask"]
    return (mask * rows["tool_mask"] if "tool_mask" in rows else mask).bool()


def join_sequences(rows: Rows) -> dict[str, Any]:
    """Return the arguments with which TRL scores prompt and completion together."""
    return {
        "input_ids": torch.cat([rows["prompt_ids"], rows["completion_ids"]], dim=1),
        "attention_mask": torch.cat([rows["prompt_mask"], rows["completion_mask"]], dim=1),
        "logits_to_keep": rows["completion_ids"].size(1),
    }


def sum_tokens(logps: Tensor, mask: Tensor) -> Tensor:
    """Return token log-probabilities [B, T] summed over the tokens that count, [B]."""
    return logps.float().masked_fill(~mask, 0.0).sum(-1)


def select_rows(rows: Rows, index: Tensor | slice) -> Rows:
    """Return these rows; what is not one entry per row is left as it is."""
    return {name: value[index] if _is_per_row(value) else value for name, value in rows.items()}


def deal_over_ranks(accelerator: Any, rows: Rows, kept: Tensor, pad_id: int) -> Rows:
    """Return this rank's rows after candidates are dealt anew, so that every rank trains on as many.

    Args:
        accelerator: that of the trainer.
        rows: this rank's rows.
        kept: [N] bool over the rows of all ranks, True where a candidate is trained on.
        pad_id: token id that makes up for different widths.
    """
    if accelerator.num_processes == 1:
        return rows
    mine = _order_kept_first(kept)[accelerator.process_index :: accelerator.num_processes]

    def exchange(name: str, value: Any) -> Any:
        if not _is_per_row(value):
            return value
        if value.ndim > 1:
            pad = pad_id if name.endswith("_ids") else 0
            value = accelerator.pad_across_processes(value, 1, pad, pad_first=name.startswith("prompt"))
        return accelerator.gather(value)[mine]

    return {name: exchange(name, rows[name]) for name in sorted(rows)}


def deal_over_micro_batches(batches: list[Rows], kept: Tensor) -> list[Rows]:
    """Return micro-batches of the same size and rows, with as many candidates that are trained on in each.

    Args:
        batches: the micro-batches.
        kept: [B] bool over their rows in order, True where a candidate is trained on.
    """
    whole = {
        name: torch.cat([batch[name] for batch in batches]) if _is_per_row(value) else value
        for name, value in batches[0].items()
    }
    order = _order_kept_first(kept)
    return [select_rows(whole, order[part :: len(batches)]) for part in range(len(batches))]


def _order_kept_first(kept: Tensor) -> Tensor:
    """Return the indices of the rows, those that are kept first: dealt out in this order, they are spread evenly."""
    return torch.argsort(kept, descending=True, stable=True)


def _is_per_row(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0
