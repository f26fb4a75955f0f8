"""A bank of right answers: one of each kind that was found for a prompt, rehearsed in turn, eq. (9).

κ can only weigh what was sampled; a bank remembers what no longer is. After Re:Max and Re:Dr, "Measuring and
Mitigating Solution Mode Collapse in RLVR". Nothing in it is drawn at random: banks that are given the same finds in
the same order are the same on every rank, and in a run that is resumed.
"""

import logging
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from maxent_grpo._checks import expect

logger = logging.getLogger(__name__)

MOST_TOKENS = 2**26
"""How many tokens a bank holds by default: 256 MiB of them, beside what Python takes for each answer."""


@dataclass(frozen=True)
class Find:
    """A right answer.

    Attributes:
        prompt: tokens of its prompt; equal tokens are the same prompt.
        key: of the kind of answer, as `duplicate_counts` takes it.
        completion: its tokens.
    """

    prompt: Sequence[int]
    key: int
    completion: Sequence[int]


@dataclass(frozen=True)
class Rehearsal:
    """Answers to rehearse, n rows.

    Attributes:
        prompt_ids: [n, P], padded on the left.
        prompt_mask: [n, P] bool, True where there is a token.
        completion_ids: [n, T], padded on the right.
        completion_mask: [n, T] bool.
        shares: [n], the part of the rehearsal that each row is: 1/(R·|B|), or 0 in a row that only fills up.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    shares: Tensor

    def __len__(self) -> int:
        return len(self.shares)

    def deal(self, part: int, parts: int) -> "Rehearsal":
        """Return every `parts`-th row from `part` on; rows without a share make all parts as long."""
        short = -len(self) % parts
        index = torch.arange(len(self) + short).clamp(max=len(self) - 1)[part::parts]
        filled = torch.cat([self.shares, self.shares.new_zeros(short)])[part::parts]
        rows = {name: value[index] for name, value in vars(self).items()}
        return Rehearsal(**(rows | {"shares": filled}))

    def scale(self, factor: float) -> "Rehearsal":
        """Return the same rows with shares times a factor."""
        return Rehearsal(**(vars(self) | {"shares": self.shares * factor}))

    def to(self, device: torch.device | str) -> "Rehearsal":
        """Return the rows on a device."""
        return Rehearsal(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass
class ExemplarBank:
    """Right answers by prompt and kind: the first that was found of each, and at most `capacity` per prompt.

    Attributes:
        capacity: |B| at most, the answers of one prompt.
        most_tokens: the most tokens held; a find that does not fit is not admitted, and the log says so once.
        is_revisited: whether a prompt came again after it was banked. Until then the bank is idle: it knows no more
            of a prompt than the group did in which the prompt was sampled.
        tokens: how many are held.

    >>> bank = ExemplarBank(capacity=2)
    >>> bank.admit([Find([1, 2], 7, [3]), Find([1, 2], 7, [4, 4]), Find([1, 2], 8, [5, 6])])
    2
    >>> bank.draw(1).completion_ids
    tensor([[3, 0],
            [5, 6]])
    """

    capacity: int = 16
    most_tokens: int = MOST_TOKENS
    is_revisited: bool = False
    tokens: int = 0
    _is_full: bool = False
    _answers: dict[bytes, dict[int, bytes]] = field(default_factory=dict)  # by prompt, in the order of rehearsal

    def __post_init__(self) -> None:
        """Check the bounds."""
        expect(self.capacity >= 1, "capacity >= 1", capacity=self.capacity)
        expect(self.most_tokens >= 1, "most_tokens >= 1", most_tokens=self.most_tokens)

    def __len__(self) -> int:
        """Return the number of answers."""
        return sum(map(len, self._answers.values()))

    def is_news(self, find: Find) -> bool:
        """Return whether a find would change the bank: ranks need not tell one another of others."""
        answers = self._answers.get(_pack(find.prompt))
        if answers is None:
            return True
        return not self.is_revisited or (find.key not in answers and len(answers) < self.capacity)

    def admit(self, finds: Iterable[Find]) -> int:
        """Take the finds of one rollout, of all ranks in their order, and return how many are new and fit.

        Admit finds before the rehearsal of the same step is drawn, as published.
        """
        known, admitted = set(self._answers), 0
        for find in finds:
            prompt, completion = _pack(find.prompt), _pack(find.completion)
            self.is_revisited |= prompt in known
            answers = self._answers.get(prompt, {})
            size = len(find.completion) + (0 if answers else len(find.prompt))
            if find.key in answers or len(answers) >= self.capacity:
                continue
            if self.tokens + size > self.most_tokens:
                self._say_full(size)
                continue
            self._answers[prompt] = answers | {find.key: completion}
            self.tokens, admitted = self.tokens + size, admitted + 1
        return admitted

    def _say_full(self, size: int) -> None:
        """Log, once, that what is found from now on is lost."""
        if not self._is_full:
            self._is_full = True
            logger.warning(
                f"The bank is full: it holds {self.tokens} tokens of most_tokens={self.most_tokens}, and an answer "
                f"of {size} more was not kept."
            )

    def draw(self, prompts: int, *, pad_id: int = 0) -> Rehearsal | None:
        """Return the answers of the next R prompts, which go to the end of the line; None while there are none.

        Args:
            prompts: R; of fewer that are banked, all.
            pad_id: token that fills up rows.
        """
        expect(prompts >= 1, "prompts >= 1", prompts=prompts)
        drawn = list(islice(self._answers, prompts))
        rows, shares = [], []
        for prompt in drawn:
            answers = self._answers.pop(prompt)
            self._answers[prompt] = answers
            rows += [(_unpack(prompt), _unpack(completion)) for completion in answers.values()]
            shares += [1 / (len(drawn) * len(answers))] * len(answers)
        if not rows:
            return None
        prompt_ids, prompt_mask = _pad([prompt for prompt, _ in rows], pad_id, left=True)
        completion_ids, completion_mask = _pad([completion for _, completion in rows], pad_id, left=False)
        return Rehearsal(
            prompt_ids, prompt_mask, completion_ids, completion_mask, torch.tensor(shares, dtype=torch.float64)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on, of plain types, for a checkpoint."""
        return {
            "is_revisited": self.is_revisited,
            "is_full": self._is_full,
            "answers": [(prompt, dict(answers)) for prompt, answers in self._answers.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, whose answers are those of this bank's bounds or of others."""
        self.is_revisited, self._is_full = state["is_revisited"], state["is_full"]
        self._answers = {prompt: dict(answers) for prompt, answers in state["answers"]}
        sizes = [len(prompt) + sum(map(len, answers.values())) for prompt, answers in self._answers.items()]
        self.tokens = sum(sizes) // array("i").itemsize


def _pack(tokens: Sequence[int]) -> bytes:
    """Return tokens as 4 bytes each: a tuple of integers takes nine times as much."""
    return array("i", tokens).tobytes()


def _unpack(packed: bytes) -> Tensor:
    return torch.tensor(array("i", packed), dtype=torch.int64)


def _pad(rows: Sequence[Tensor], pad_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Return rows of tokens as one tensor [n, T] and where there is a token, bool."""
    width = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), width), pad_id), torch.zeros(len(rows), width, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        columns = slice(width - len(tokens), width) if left else slice(len(tokens))
        ids[row, columns], mask[row, columns] = tokens, True
    return ids, mask
