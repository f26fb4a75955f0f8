"""The golden table through OpenRLHF: its maker of experiences, replay buffer, trainer and loss."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters._groups import Groups
from support.golden_agreement import keep_agreement
from support.golden_table import bound_row, load_golden
from support.openrlhf_tiny import build_maker, make_sample, read_command, train_actor

pytestmark = pytest.mark.numerical
GOLDEN = load_golden()
K = max(GOLDEN.group_sizes)
FILLER = len(GOLDEN.mask)
"""OpenRLHF's groups are of one size: shorter ones are filled up with candidates that nothing scores."""
STARTS = [sum(GOLDEN.group_sizes[:group]) for group in range(GOLDEN.num_groups)]
PLACES = [
    start + copy if copy < size else FILLER
    for start, size in zip(STARTS, GOLDEN.group_sizes, strict=True)
    for copy in range(K)
]
"""The golden row of each of the G·K candidates."""
FIRST = 100
"""The first token of a candidate says which row it is: FIRST + row; it belongs to the prompt."""


@pytest.fixture(autouse=True)
def one_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning draws what it draws in the table: OpenRLHF's seed, step and fillers have no say."""
    monkeypatch.setattr(Groups, "seed_generator", lambda *_: GOLDEN.seed_generator())


def make_samples() -> list[Any]:
    samples = []
    for number, place in enumerate(PLACES):
        group = number // K
        reward = None if place == FILLER else GOLDEN.utilities[place].item()
        completion = [9] if place == FILLER else GOLDEN.completion_ids[place][GOLDEN.mask[place]].tolist()
        prompt = [FIRST + place, *GOLDEN.prompt_ids[STARTS[group]]]
        unscored = reward is None or math.isnan(reward)
        samples.append(make_sample(prompt, completion, None if unscored else reward, text=f"prompt {group}"))
    return samples


def place_tokens(table: Tensor, sequences: Tensor, action_mask: Tensor) -> Tensor:
    """Return a table's log-probabilities at the tokens of these rows, [B, A]."""
    rows = sequences[:, 0] - FIRST
    golden = torch.cat([GOLDEN.mask, torch.arange(GOLDEN.max_length).unsqueeze(0) == 0])  # a filler has one token
    return table.new_zeros(action_mask.shape).index_put((action_mask.bool(),), table[rows][golden[rows]])


def tabulate(logps: Tensor) -> Tensor:
    return torch.cat([logps, torch.full_like(logps[:1], -1.0)]).float()


class TabledActor(nn.Module):
    """An actor with log-probabilities of the table in place of a model's."""

    def __init__(self) -> None:
        super().__init__()
        self.logps = nn.Parameter(tabulate(GOLDEN.policy_logps))

    def forward(self, sequences: Tensor, action_mask: Tensor, **_: Any) -> Any:
        return place_tokens(self.logps, sequences, action_mask), SimpleNamespace()


def list_options(config: MaxEntConfig, *, clipped: bool) -> list[Any]:
    """Return the command line of a setting: all golden candidates are one optimizer step's."""
    settings = {
        f"--maxent.{name}": ",".join(value) if isinstance(value, tuple) else value
        for name, value in vars(config).items()
        if value is not None
    }
    sizes = {
        "--rollout.n_samples_per_prompt": K,
        "--rollout.batch_size": GOLDEN.num_groups,
        "--rollout.max_new_tokens": GOLDEN.max_length,
        "--train.batch_size": len(PLACES),
        "--train.max_epochs": 2 if clipped else 1,
    }
    return [part for option in (settings | sizes).items() for part in option]


def run_step(options: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return coefficients, loss and gradient, in the order of the golden rows, of one rollout and its step."""
    args = read_command(*options)

    def score(table: Tensor) -> Any:
        return lambda sequences, action_mask, **_: place_tokens(tabulate(table), sequences, action_mask)

    maker = build_maker(args, score(GOLDEN.old_logps), score(GOLDEN.reference_logps))
    experiences = maker.make_experience_batch(make_samples())
    coefficients = torch.zeros(len(GOLDEN.mask) + 1)
    for batch in experiences:
        coefficients[batch.sequences[:, 0] - FIRST] = batch.advantages[:, 0]
    actor = TabledActor()
    losses, _ = train_actor(args, actor, experiences)
    assert actor.logps.grad is not None
    return coefficients[:-1], torch.stack(losses).sum(), actor.logps.grad[:-1]


@pytest.mark.parametrize("name", GOLDEN.rows)
def test_coefficients_loss_and_gradient_are_those_of_the_golden_table(name: str) -> None:
    row = GOLDEN.rows[name]
    options = list_options(row.config, clipped=row.clipped)
    results = run_step([*options, "--rollout.micro_batch_size", 7, "--train.micro_batch_size", 5])
    bounds = bound_row(GOLDEN, row, torch.float32)
    keep_agreement("openrlhf", name, results, bounds)
    for result, exact in zip(results, bounds, strict=True):
        exact.assert_near(result)


@pytest.mark.parametrize("rollout_size", [1, 4, 30])
@pytest.mark.parametrize("size", [2, 6, 30])
def test_micro_batches_that_split_groups_add_up_to_the_whole(size: int, rollout_size: int) -> None:
    row = GOLDEN.rows["listwise by length, clipped"]
    options = list_options(row.config, clipped=True)
    results = run_step([*options, "--rollout.micro_batch_size", rollout_size, "--train.micro_batch_size", size])
    for result, exact in zip(results, bound_row(GOLDEN, row, torch.float32), strict=True):
        exact.assert_near(result)


def test_micro_batches_of_as_many_tokens_as_fit_add_up_to_the_whole() -> None:
    row = GOLDEN.rows["diverse"]
    sizes = ["--train.dynamic_batch_enable", "--train.max_tokens_per_gpu", 40]
    results = run_step([*list_options(row.config, clipped=False), *sizes, "--rollout.max_tokens_per_gpu", 30])
    for result, exact in zip(results, bound_row(GOLDEN, row, torch.float32), strict=True):
        exact.assert_near(result)
