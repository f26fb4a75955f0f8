"""The rollout: rows of a batch of verl are outputs of sessions, and sessions are the candidates of a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maxent_grpo._checks import expect
from maxent_grpo.adapters._groups import Answers
from maxent_grpo.adapters._rollout import Rollout
from maxent_grpo.groups import pad_groups


@dataclass(frozen=True)
class Sessions:
    """The candidates of a batch of R rows: a session is one, and each of its outputs a row.

    Attributes:
        rows: R' rows of the batch, without padding, those of a session together, and those of a prompt.
        sizes: number of rows of each of the N sessions.
        group_sizes: number of sessions of each of the G prompts.
        final: row of each session's last output.
    """

    rows: list[int]
    sizes: list[int]
    group_sizes: list[int]
    final: list[int]

    def join_outputs(self, values: Tensor) -> Tensor:
        """Return values [R, T] of tokens as [N, W·T], the outputs of a session one after the other."""
        return pad_groups(values[self.rows], self.sizes)[0].flatten(1)

    def spread(self, values: Tensor, batch_size: int) -> Tensor:
        """Return values [N] of sessions as [R], 0 in padding rows."""
        sizes = torch.tensor(self.sizes)
        return values.new_zeros(batch_size).index_put((torch.tensor(self.rows),), values.repeat_interleave(sizes))


def sort_sessions(keys: Sequence[str], tags: Sequence[Mapping[str, Any]]) -> Sessions:
    """Return the sessions of a batch in verl's names of rows, `prompt_session_output`; their order is free."""
    prompts: dict[str, dict[str, dict[int, int]]] = {}
    for row, (key, tag) in enumerate(zip(keys, tags, strict=True)):
        parts = key.rsplit("_", 2)
        expect(len(parts) == 3 and parts[2].isdigit(), "keys named prompt_session_output", key=key)
        if not tag.get("is_padding", False):
            prompts.setdefault(parts[0], {}).setdefault(parts[1], {})[int(parts[2])] = row
    sessions = [sorted(session.items()) for prompt in prompts.values() for session in prompt.values()]
    return Sessions(
        rows=[row for session in sessions for _, row in session],
        sizes=[len(session) for session in sessions],
        group_sizes=[len(prompt) for prompt in prompts.values()],
        final=[session[-1][1] for session in sessions],
    )


def build_rollout(data: Mapping[str, Any], sessions: Sessions, answers: Answers | None) -> Rollout:
    """Return the candidates in the terms of every adapter; their score is that of the session's last output."""
    reference = data.get("ref_log_prob", None)
    return Rollout(
        data["rm_scores"].sum(-1)[sessions.final],
        sessions.join_outputs(data["response_mask"]).bool(),
        group_sizes=sessions.group_sizes,
        ids=sessions.join_outputs(data["responses"]),
        keys=answers,
        ref_logps=None if reference is None else sessions.join_outputs(reference),
    )
