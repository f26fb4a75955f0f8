"""The bank in TRL: what a rollout finds goes in, and each optimiser step rehearses some rows beside its own."""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import pad

from maxent_grpo._checks import expect
from maxent_grpo.adapters._bank import admit_finds
from maxent_grpo.adapters._groups import Groups
from maxent_grpo.adapters.trl.config import MaxEntGRPOConfig
from maxent_grpo.adapters.trl.rows import Rows, join_sequences
from maxent_grpo.bank import ExemplarBank, Rehearsal
from maxent_grpo.objective import MaxEntObjective, Target

FILE = "rehearsal_bank.pt"
"""Where a checkpoint keeps the bank."""


class BankRehearsal:
    """The bank of a trainer, the same on every rank.

    Args:
        args: the trainer's arguments.
        pad_id: token that fills up rows.
    """

    def __init__(self, args: MaxEntGRPOConfig, pad_id: int) -> None:
        config = args.maxent_config()
        self.args, self.pad_id, self.prompts = args, pad_id, config.bank_prompts
        self.bank = ExemplarBank(config.bank_capacity)

    def admit_rollout(self, rows: Rows, groups: Groups, target: Target) -> None:
        """Bank the right answers of all ranks.

        Args:
            rows: this rank's, before any are dealt anew.
            groups: of all ranks.
            target: of these groups.

        Raises:
            ValueError: where tools wrote some of the tokens.
        """
        tools = "tool_mask" in rows
        expect(not tools, "no tools with maxent_bank_weight (their tokens would be rehearsed)", tools=tools)
        assert groups.keys is not None  # there are tokens
        first, mask = self.args.process_index * len(rows["prompt_ids"]), rows["prompt_mask"].bool()
        mine = slice(first, first + len(mask))
        admit_finds(
            self.bank,
            [ids[kept].tolist() for ids, kept in zip(rows["prompt_ids"], mask, strict=True)],
            rows["completion_ids"],
            rows["completion_mask"].bool(),
            groups.keys.flatten()[mine],
            target.right.flatten()[mine],
            gather_object,
        )

    def attach(self, batches: list[Rows], accumulation: int) -> None:
        """Give each micro-batch of a rollout this rank's rows to rehearse: as many on every rank, or none on any.

        Every optimiser step of the rollout has a draw of its own. One that is made of several rollouts has a part of
        the weight from each.
        """
        draws = len(batches) // accumulation if len(batches) % accumulation == 0 else 1
        size, ranks = len(batches) // draws, self.args.world_size
        for draw in range(draws):
            rehearsal = self.bank.draw(self.prompts, pad_id=self.pad_id)
            for step in range(size if rehearsal is not None else 0):
                assert rehearsal is not None
                part = rehearsal.deal(step * ranks + self.args.process_index, size * ranks)
                rows = batches[draw * size + step]
                rows["maxent_rehearsal"] = part.scale(ranks * size / accumulation).to(rows["prompt_ids"].device)

    def save(self, folder: str) -> None:
        """Save the bank beside a checkpoint."""
        torch.save(self.bank.state_dict(), Path(folder) / FILE)

    def load(self, folder: str) -> None:
        """Go on with the bank of a checkpoint.

        Raises:
            ValueError: if it has none.
        """
        file = Path(folder) / FILE
        expect(file.is_file(), f"a checkpoint with its {FILE} to go on with maxent_bank_weight", checkpoint=folder)
        self.bank.load_state_dict(torch.load(file, weights_only=True))


def join_rehearsal(rows: Rows, rehearsal: Rehearsal, pad_id: int) -> dict[str, Any]:
    """Return the arguments with which TRL scores rows and, behind them, those that are rehearsed."""
    sides = {
        "prompt_ids": (rehearsal.prompt_ids, pad_id),
        "prompt_mask": (rehearsal.prompt_mask, 0),
        "completion_ids": (rehearsal.completion_ids, pad_id),
        "completion_mask": (rehearsal.completion_mask, 0),
    }
    return join_sequences({
        name: stack_rows(rows[name], banked.to(rows[name].dtype), fill, left=name.startswith("prompt"))
        for name, (banked, fill) in sides.items()
    })  # fmt: skip


def stack_rows(upper: Tensor, lower: Tensor, fill: float = 0, *, left: bool = False) -> Tensor:
    """Return rows [n, T] and [m, S] as [n + m, max(T, S)], the shorter ones filled up."""
    width = max(upper.shape[1], lower.shape[1])

    def widen(values: Tensor) -> Tensor:
        missing = width - values.shape[1]
        return pad(values, (missing, 0) if left else (0, missing), value=fill)

    return torch.cat([widen(upper), widen(lower)])


def weigh_rehearsal(objective: MaxEntObjective, rehearsal: Rehearsal, generations: int, num_groups: float) -> Tensor:
    """Return the coefficients of the rows that are rehearsed, [m]."""
    lengths = rehearsal.completion_mask.sum(-1)
    return objective.rehearsal_coefficients(rehearsal.shares, lengths, group_size=generations, num_groups=num_groups)
