"""How ranks bank what they find: each sends the others its news alone, so that their banks stay the same."""

from collections.abc import Callable

from torch import Tensor

from maxent_grpo.bank import ExemplarBank, Find

GatherFinds = Callable[[list[Find]], list[Find]]
"""A collective: returns the lists of all ranks one after the other, on every rank."""


def admit_finds(
    bank: ExemplarBank,
    prompts: list[list[int]],
    ids: Tensor,
    mask: Tensor,
    keys: Tensor,
    right: Tensor,
    gather: GatherFinds = lambda finds: finds,
) -> int:
    """Bank the right answers of a rollout, on all ranks alike, and return how many are new.

    Args:
        bank: this rank's.
        prompts: tokens of this rank's N prompts, one per candidate.
        ids: [N, T] completions.
        mask: [N, T] bool, True where a token counts.
        keys: [N] of the kind of answer.
        right: [N] bool, True where a candidate counts and is right.
        gather: the framework's collective.
    """
    finds = (
        Find(prompts[row], int(keys[row]), ids[row][mask[row]].tolist()) for row in right.nonzero().flatten().tolist()
    )
    return bank.admit(gather([find for find in finds if bank.is_news(find)]))
