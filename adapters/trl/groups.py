"""From a rank's rows of a rollout to the whole groups of all ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from maxent_grpo._checks import expect
from maxent_grpo.adapters._groups import Answers, Candidates, Groups, build_keys, call_key_function, gather_groups
from maxent_grpo.adapters.trl.rows import Rows, mask_tokens, sum_tokens
from maxent_grpo.groups import completion_keys


def ask_answers(function: Callable[..., Answers], inputs: Sequence[dict[str, Any]], **completions: Any) -> Answers:
    """Return what a key function says of this rank's completions, given the columns that TRL gives rewards."""
    columns = {name: [row[name] for row in inputs] for name in inputs[0] if name not in ("prompt", "completion")}
    return call_key_function(function, columns | completions, len(inputs))


def gather_rows(
    accelerator: Any, rows: Rows, old_logps: torch.Tensor | None, generations: int, answers: Answers | None = None
) -> Groups:
    """Return the groups of all ranks' rows.

    Sums over tokens are taken before gathering, because ranks pad to different widths.

    Args:
        accelerator: that of the trainer.
        rows: this rank's rows of the rollout; groups are consecutive over the ranks in order.
        old_logps: [B, T] token log-probabilities of the rollout policy, or None.
        generations: K.
        answers: [B] what makes two candidates the same; where it is None, and without it, their tokens do.

    Raises:
        ValueError: on every rank, if the candidates of a group do not share their prompt, or any has images.
    """
    mask, ref_logps = mask_tokens(rows), rows.get("ref_per_token_logps")
    images = accelerator.gather(torch.full_like(mask[:, 0], "pixel_values" in rows, dtype=torch.int64))
    expect(not bool(images.any()), "prompts and tool results of text", candidates_with_images=int(images.sum()))
    keys = build_keys(answers, rows["completion_ids"], rows["completion_mask"].bool())
    assert keys is not None  # there are tokens
    candidates = Candidates(
        prompts=completion_keys(rows["prompt_ids"], rows["prompt_mask"].bool()),
        keys=keys,
        lengths=mask.sum(-1),
        ref_logps=None if ref_logps is None else sum_tokens(ref_logps, mask),
        old_logps=None if old_logps is None else sum_tokens(old_logps, mask),
    )
    return gather_groups(candidates, generations, accelerator.gather)
