"""The plain torch adapter: `MaxEntLoss` on whole batches, micro-batches and ranks."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from maxent_grpo import MaxEntConfig, MaxEntObjective
from maxent_grpo.adapters.torch_loop import MaxEntLoss, Rollout
from maxent_grpo.bank import ExemplarBank
from support.bigram import GROUPS, VOCABULARY, Bigram, K, T, batch, log_probs
from support.golden_agreement import keep_agreement
from support.golden_table import bound_row, load_golden
from support.kernel_errors import assert_within
from support.precision import Bounded, evaluate, unit_roundoff
from support.ranks import RANKS, on_ranks

pytestmark = pytest.mark.numerical
GOLDEN = load_golden()
SETTINGS = {
    "published": MaxEntConfig(),
    "diverse": MaxEntConfig.diverse(max_length=6),
    "listwise": MaxEntConfig(projection="listwise", anchor="old", beta=0.5, nll_reduction="mean"),
    "surrogate": MaxEntConfig(projection="surrogate", surrogate_tau=0.1, max_length=6),
}


def evaluate_whole_batch(config: MaxEntConfig) -> Bounded:
    """The gradient in the table's weights, and what float64 itself may lose."""
    model, (ids, mask, rewards) = Bigram(), batch()

    def differentiate() -> list[Tensor]:
        loss, _ = MaxEntLoss(config)(log_probs(model, ids), Rollout(rewards, mask, group_sizes=K, ids=ids))
        return list(torch.autograd.grad(loss, model.table.weight))

    (exact,) = evaluate(differentiate, torch.float64)
    return exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", GOLDEN.rows)
def test_weights_loss_and_gradient_are_those_of_the_golden_table(name: str, dtype: torch.dtype) -> None:
    row = GOLDEN.rows[name]
    logps, old = GOLDEN.policy_logps.to(dtype).requires_grad_(), GOLDEN.old_logps.to(dtype)
    rollout = Rollout(
        GOLDEN.utilities.to(dtype),
        GOLDEN.mask,
        group_sizes=GOLDEN.group_sizes,
        ids=GOLDEN.completion_ids,
        ref_logps=GOLDEN.reference_logps.to(dtype),
        old_logps=old if row.clipped else None,
        generator=GOLDEN.seed_generator(),
    )
    constants = MaxEntLoss(row.config).prepare(rollout, policy_logps=old)
    loss = constants.loss(logps)
    (gradient,) = torch.autograd.grad(loss, logps)
    results, bounds = (constants.coefficients, loss, gradient), bound_row(GOLDEN, row, dtype)
    if dtype == torch.float32:
        keep_agreement("torch", name, results, bounds)
    for result, exact in zip(results, bounds, strict=True):
        assert result.dtype == dtype
        exact.assert_near(result)


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS.keys())
def test_micro_batches_of_whole_groups_add_up_to_the_whole(config: MaxEntConfig) -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    loss_fn = MaxEntLoss(config)
    for rows in torch.arange(GROUPS * K).split(K):
        logps = log_probs(model, ids[rows])
        part = Rollout(rewards[rows], mask[rows], group_sizes=K, ids=ids[rows], num_groups=GROUPS)
        loss, _ = loss_fn(logps, part)
        loss.backward()
    evaluate_whole_batch(config).assert_near(model.table.weight.grad)


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("size", [1, 5])
def test_micro_batches_that_split_groups_add_up_to_the_whole(config: MaxEntConfig, size: int) -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    rollout = Rollout(rewards, mask, group_sizes=K, ids=ids)
    constants = MaxEntLoss(config).prepare(rollout, policy_logps=log_probs(model, ids))
    for rows in torch.arange(GROUPS * K).split(size):
        constants.loss(log_probs(model, ids[rows]), rows).backward()
    evaluate_whole_batch(config).assert_near(model.table.weight.grad)


def rank_gradients(rank: int, folder: str) -> None:
    """Save the gradients that DDP leaves on two ranks, each with half of the groups."""
    gradients = {}
    ids, mask, rewards = batch()
    rows = slice(0, K) if rank == 0 else slice(K, None)  # one group here, three there
    for name, config in SETTINGS.items():
        model = nn.parallel.DistributedDataParallel(Bigram())
        logps = log_probs(model, ids[rows])
        loss, _ = MaxEntLoss(config)(logps, Rollout(rewards[rows], mask[rows], group_sizes=K, ids=ids[rows]))
        loss.backward()
        gradients[name] = model.module.table.weight.grad
    torch.save(gradients, f"{folder}/rank{rank}.pt")


@pytest.mark.slow
def test_two_ranks_have_the_gradients_of_one(tmp_path: Path) -> None:
    on_ranks(rank_gradients, str(tmp_path))
    for rank in range(RANKS):
        gradients = torch.load(tmp_path / f"rank{rank}.pt")
        for name, config in SETTINGS.items():
            evaluate_whole_batch(config).assert_near(gradients[name])


def test_logits_and_ids_stand_in_for_log_probabilities() -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    loss_fn = MaxEntLoss()
    from_logits, _ = loss_fn(model(ids), Rollout(rewards, mask, group_sizes=K, ids=ids))
    rollout = Rollout(rewards, mask, group_sizes=K)
    (from_logps,) = evaluate(lambda: [loss_fn(log_probs(model, ids), rollout)[0]], torch.float64)
    from_logps.assert_near(from_logits)


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("clipped", [False, True])
def test_hidden_states_and_head_stand_in_for_log_probabilities(config: MaxEntConfig, clipped: bool) -> None:
    (ids, mask, rewards), generator = batch(), torch.Generator().manual_seed(3)
    hidden = torch.randn(GROUPS * K, T, 5, generator=generator, dtype=torch.float64).requires_grad_()
    head = nn.Linear(5, VOCABULARY, dtype=torch.float64)

    def score() -> Tensor:
        return (head(hidden) / 0.7).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)

    old, leaves = score().detach() - 0.1 if clipped else None, (hidden, head.weight, head.bias)
    rollout = Rollout(rewards, mask, group_sizes=K, ids=ids, old_logps=old)

    def differentiate() -> list[Tensor]:
        loss, _ = MaxEntLoss(config)(score(), rollout)
        return [loss, *torch.autograd.grad(loss, leaves)]

    loss, statistics = MaxEntLoss(config).from_hidden(hidden, head, rollout, temperature=0.7)
    found = [loss, *torch.autograd.grad(loss, leaves)]
    for one, exact in zip(found, evaluate(differentiate, torch.float64), strict=True):
        exact.assert_near(one)
    assert (statistics.forward_kl is None) == (old is None and not config.needs_old_logps)


def test_logits_are_divided_by_the_temperature() -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    logits = model(ids).detach().requires_grad_()
    rollout = Rollout(rewards, mask, group_sizes=K, ids=ids)

    def differentiate() -> list[Tensor]:
        logps = (logits / 0.7).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        loss, _ = MaxEntLoss()(logps, rollout)
        return [loss, *torch.autograd.grad(loss, logits)]

    loss, _ = MaxEntLoss()(logits, rollout, temperature=0.7)
    found = [loss, *torch.autograd.grad(loss, logits)]
    for one, exact in zip(found, evaluate(differentiate, torch.float64), strict=True):
        exact.assert_near(one)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.7}, {"logit_scale": 0.3}, {"softcap": 0.5}],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.parametrize("way", ["one pass", "scored first", "clipped"])
def test_the_settings_of_a_models_logits_reach_the_loss_and_its_gradient(
    way: str, settings: dict[str, float]
) -> None:
    (ids, mask, rewards), generator = batch(), torch.Generator().manual_seed(3)
    hidden = torch.randn(GROUPS * K, T, 5, generator=generator, dtype=torch.float64).requires_grad_()
    head = nn.Linear(5, VOCABULARY, dtype=torch.float64)

    def score() -> Tensor:
        logits = settings.get("logit_scale", 1.0) * head(hidden)
        if softcap := settings.get("softcap"):
            logits = softcap * (logits / softcap).tanh()
        logps = (logits / settings.get("temperature", 1.0)).log_softmax(-1)
        return logps.gather(-1, ids.unsqueeze(-1)).squeeze(-1)

    loss_fn = MaxEntLoss(SETTINGS["listwise" if way == "scored first" else "published"])
    old, leaves = score().detach() - 0.1 if way == "clipped" else None, (hidden, head.weight, head.bias)
    rollout = Rollout(rewards, mask, group_sizes=K, ids=ids, old_logps=old)

    def differentiate() -> list[Tensor]:
        loss, _ = loss_fn(score(), rollout)
        return [loss, *torch.autograd.grad(loss, leaves)]

    loss, _ = loss_fn.from_hidden(hidden, head, rollout, **settings)
    found = [loss, *torch.autograd.grad(loss, leaves)]
    for one, exact in zip(found, evaluate(differentiate, torch.float64), strict=True):
        exact.assert_near(one)


def test_none_marks_a_candidate_that_could_not_be_scored() -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    listed = [None if math.isnan(reward) else reward for reward in rewards.tolist()]
    with_none, _ = MaxEntLoss()(log_probs(model, ids), Rollout(listed, mask, group_sizes=K))
    with_nan, _ = MaxEntLoss()(log_probs(model, ids), Rollout(rewards.float(), mask, group_sizes=K))
    assert with_none.isfinite()
    assert torch.equal(with_none, with_nan)


def test_weights_depend_on_the_policy_but_send_no_gradient_through_it() -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    config = SETTINGS["listwise"]
    logps = log_probs(model, ids)
    constants = MaxEntLoss(config).prepare(Rollout(rewards, mask, group_sizes=K), policy_logps=logps)
    assert not constants.coefficients.requires_grad
    (given,) = torch.autograd.grad(constants.loss(logps), logps)
    lengths = mask.sum(-1, keepdim=True).clamp(min=1)
    by_hand = -(constants.coefficients.unsqueeze(-1) * mask / lengths) / GROUPS
    assert_within(given, by_hand, 4 * unit_roundoff(torch.float64) * by_hand.abs())


def test_given_old_log_probabilities_clip_the_update() -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    old = log_probs(model, ids).detach()
    loss_fn = MaxEntLoss(MaxEntConfig(clip_low=0.0, clip_high=0.0))
    moved = (old + 0.5).requires_grad_()  # every ratio is above 1, every weight positive: all clipped
    loss_fn.prepare(Rollout(rewards, mask, group_sizes=K, old_logps=old)).loss(moved).backward()
    assert torch.equal(moved.grad, torch.zeros_like(old))


def test_statistics_are_of_the_targets_and_of_the_policy_on_them() -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    _, statistics = MaxEntLoss()(log_probs(model, ids), Rollout(rewards, mask, group_sizes=K))
    assert statistics.num_groups == GROUPS
    assert 1 <= statistics.ess <= K
    assert statistics.improvement_gap is not None
    assert statistics.improvement_gap >= 0
    assert statistics.kl_target_anchor is None


@pytest.mark.parametrize("size", [np.int64(K), torch.tensor(K)])
def test_one_group_size_may_be_any_whole_number(size: Any) -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    logps = log_probs(model, ids)
    expected, _ = MaxEntLoss()(logps, Rollout(rewards, mask, group_sizes=K))
    assert torch.equal(MaxEntLoss()(logps, Rollout(rewards, mask, group_sizes=size))[0], expected)


def test_half_precision_log_probabilities_are_summed_in_float32() -> None:
    torch.manual_seed(0)
    logps = (-torch.rand(4, 1000)).to(torch.bfloat16)
    mask, rewards = torch.ones(4, 1000, dtype=torch.bool), [1.0, 0.0, 0.0, 0.0]
    loss_fn = MaxEntLoss(MaxEntConfig(projection="listwise", anchor="old", beta=1.0, tau=0.5))
    rollout = Rollout(rewards, mask, group_sizes=4)
    rounded = loss_fn.prepare(rollout, policy_logps=logps).coefficients
    (exact,) = evaluate(lambda: [loss_fn.prepare(rollout, policy_logps=logps.double()).coefficients])
    exact.assert_near(rounded)


def test_statistics_speak_of_the_policy_where_it_has_left_the_rollout_policy() -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    old = log_probs(model, ids).detach()
    now = old * torch.linspace(0.5, 1.5, len(old))[:, None]
    loss_fn = MaxEntLoss(MaxEntConfig(tau=0.5))
    plain = Rollout(rewards, mask, group_sizes=K)
    clipped = Rollout(rewards, mask, group_sizes=K, old_logps=old)
    both = loss_fn.prepare(clipped, policy_logps=now).statistics
    of_now = loss_fn.prepare(plain, policy_logps=now).statistics
    of_old = loss_fn.prepare(clipped).statistics
    assert both.forward_kl == of_now.forward_kl != of_old.forward_kl


def test_a_loss_for_summed_gradients_is_that_of_averaged_ones_over_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    rollout = Rollout(rewards, mask, group_sizes=K, num_groups=2 * GROUPS)
    logps = log_probs(model, ids)
    averaged, _ = MaxEntLoss()(logps, rollout)
    summed, _ = MaxEntLoss(gradients_averaged=False)(logps, rollout)
    assert torch.equal(averaged, 2 * summed)


def test_a_training_loop_of_thirty_lines_learns_the_rewarded_token() -> None:
    torch.manual_seed(0)
    model = Bigram()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    loss_fn = MaxEntLoss(MaxEntConfig(tau=0.2))
    everyone = torch.ones(32, 1, dtype=torch.bool)

    def share_of_favourite() -> float:
        start = torch.zeros(1, 1, dtype=torch.long)
        return functional_call(model, dict(model.named_parameters()), start).softmax(-1)[0, 0, 7].item()

    before = share_of_favourite()
    for _ in range(40):
        with torch.no_grad():
            logits = model(torch.zeros(32, 1, dtype=torch.long))[:, 0]
            ids = torch.multinomial(logits.softmax(-1), 1)
        loss, _ = loss_fn(log_probs(model, ids), Rollout((ids[:, 0] == 7).double(), everyone, group_sizes=8))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert before < 0.2
    assert share_of_favourite() > 0.9


def test_an_objective_stands_in_for_its_settings() -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    rollout, objective = Rollout(rewards, mask, group_sizes=K), MaxEntObjective(MaxEntConfig(tau=0.7))
    ours, settings = MaxEntLoss(objective), MaxEntLoss(MaxEntConfig(tau=0.7))
    assert ours.objective is objective
    assert torch.equal(ours(log_probs(model, ids), rollout)[0], settings(log_probs(model, ids), rollout)[0])


BANKED = MaxEntConfig(bank_weight=0.5, bank_prompts=2)


def differentiate_with_bank(rows: slice, average: bool = False) -> tuple[ExemplarBank, Tensor]:
    """Return the bank after a step on these rows, and the gradient of the loss with what is rehearsed."""
    model: nn.Module = Bigram()
    model = nn.parallel.DistributedDataParallel(model) if average else model
    ids, mask, rewards = batch()
    loss_fn, bank = MaxEntLoss(BANKED), ExemplarBank()
    constants = loss_fn.prepare(Rollout(rewards[rows], mask[rows], group_sizes=K, ids=ids[rows]))
    prompts = [[row // K] for row in range(len(ids))][rows]
    rehearsal = loss_fn.rehearse(bank, constants, ids[rows], prompts)
    assert rehearsal is not None
    filled = nn.functional.pad(rehearsal.completion_ids, (0, T - rehearsal.completion_ids.size(1)))
    both = torch.cat([ids[rows], filled])
    logps = log_probs(model, both)
    banked = logps[len(prompts) :, : rehearsal.completion_ids.size(1)]
    (constants.loss(logps[: len(prompts)]) + constants.rehearsal_loss(banked, rehearsal)).backward()
    (gradient,) = (weight.grad for name, weight in model.named_parameters() if name.endswith("weight"))
    return bank, gradient


def evaluate_with_bank() -> Bounded:
    """The gradient of the whole batch, and of eq. (9) over the first two prompts with a right answer."""
    model, (ids, mask, rewards) = Bigram(), batch()

    def differentiate() -> list[Tensor]:
        logps, term = log_probs(model, ids), torch.zeros((), dtype=torch.float64)
        loss, _ = MaxEntLoss(BANKED)(logps, Rollout(rewards, mask, group_sizes=K, ids=ids))
        right = (rewards > 0) & mask.any(-1)
        prompts = [group for group in range(GROUPS) if right[group * K : (group + 1) * K].any()][:2]
        for group in prompts:
            rows = [row for row in range(group * K, (group + 1) * K) if right[row]]
            answers = {tuple(ids[row][mask[row]].tolist()): row for row in reversed(rows)}
            term = term - sum(logps[row][mask[row]].mean() for row in answers.values()) / len(answers) / 2
        return list(torch.autograd.grad(loss + 0.5 * (K - 1) / K**2 * term, model.table.weight))

    (exact,) = evaluate(differentiate, torch.float64)
    return exact


def test_rehearsal_adds_the_published_term() -> None:
    bank, gradient = differentiate_with_bank(slice(None))
    evaluate_with_bank().assert_near(gradient)
    assert len(bank) > 2


def rank_rehearsal(rank: int, folder: str) -> None:
    """Save the bank and the gradient of each of two ranks, of which one has one group and the other three."""
    bank, gradient = differentiate_with_bank(slice(0, K) if rank == 0 else slice(K, None), average=True)
    torch.save({"bank": bank.state_dict(), "gradient": gradient}, f"{folder}/rank{rank}.pt")


@pytest.mark.slow
def test_two_ranks_bank_and_rehearse_as_one(tmp_path: Path) -> None:
    on_ranks(rank_rehearsal, str(tmp_path))
    alone, _ = differentiate_with_bank(slice(None))
    for rank in range(RANKS):
        saved = torch.load(tmp_path / f"rank{rank}.pt")
        assert saved["bank"] == alone.state_dict()
        evaluate_with_bank().assert_near(saved["gradient"])


def test_a_verdict_and_counts_of_ones_own_stand_in_for_rewards_and_keys() -> None:
    _, mask, rewards = batch()
    objective = MaxEntObjective(MaxEntConfig(dedup=1.0))
    right, counts = torch.zeros(GROUPS * K, dtype=torch.bool), torch.full((GROUPS * K,), 1.5, dtype=torch.float64)
    right[0] = True
    counts[0] = 3.0
    constants = MaxEntLoss(objective).prepare(Rollout(rewards, mask, group_sizes=K, right=right, counts=counts))
    assert constants.right.tolist() == right.tolist()
    assert constants.target.answers[0] == 1 / 3
    plain = MaxEntLoss(MaxEntConfig()).prepare(Rollout(rewards, mask, group_sizes=K)).coefficients[:3]
    odds = plain / counts[:3]
    torch.testing.assert_close(constants.coefficients[:3], odds / odds.sum())


def test_a_group_that_is_too_small_for_pass_at_k_is_refused() -> None:
    _, mask, rewards = batch()
    with pytest.raises(ValueError, match="Expected pass_k < 2, the size of the smallest group, got pass_k=2"):
        MaxEntLoss(MaxEntConfig(pass_k=2, center=True)).prepare(Rollout(rewards[:5], mask[:5], group_sizes=[3, 2]))
