"""What a real TRL run logs, against its formula."""

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from maxent_grpo import MaxEntConfig, MaxEntObjective
from support import trl_tiny
from support.precision import Bounded, evaluate, unit_roundoff
from support.trl_formulas import (
    build_policy_and_reference,
    compute_coefficients,
    compute_gradient,
    compute_token_logps,
    compute_utilities,
    list_groups,
    make_fields,
)

HEADS = pytest.mark.parametrize("fused", [False, True], ids=["TRL's head", "one-pass head"])
SURROGATE = MaxEntConfig(
    projection="surrogate", surrogate_tau=0.1, max_length=trl_tiny.COMPLETION, clip_low=0.02, clip_high=0.03
)


def test_the_logged_statistics_are_those_of_the_whole_batch(tmp_path: Any) -> None:
    run = trl_tiny.build_trainer(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, maxent_projection="listwise"
    )
    run.train()
    policy, utilities = trl_tiny.build_model().double(), torch.as_tensor(compute_utilities())
    lengths = torch.tensor([[len(completion) for _, completion in group] for group in list_groups()])
    objective, everyone = (
        MaxEntObjective(MaxEntConfig(projection="listwise")),
        torch.ones_like(lengths, dtype=torch.bool),
    )

    def compute() -> dict[str, torch.Tensor]:
        target = objective.target(utilities, mask=everyone, lengths=lengths)
        sums = [[compute_token_logps(policy, *pair).sum().item() for pair in group] for group in list_groups()]
        return objective.statistics(target, policy_logps=torch.tensor(sums, dtype=torch.float64)).as_dict()

    for name, exact in zip(compute(), evaluate(lambda: list(compute().values())), strict=True):
        exact.assert_near(torch.tensor(run.state.log_history[0][name]))


def compute_entropies(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    logps = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return -(logps.exp() * logps).sum(-1)


def test_gap_and_forward_kl_are_measured_before_and_after_an_update_on_the_same_candidates(tmp_path: Any) -> None:
    policy = trl_tiny.build_model()
    settings = {"maxent_projection": "listwise", "learning_rate": 1e-4, "maxent_measure_every": 2, "max_steps": 3}
    run = trl_tiny.build_trainer(tmp_path, policy=policy, **settings)
    after: list[Bounded] = []

    class Measure(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            after.append(evaluate_forward_kl(policy))

    run.add_callback(Measure())
    before = evaluate_forward_kl(trl_tiny.build_model())
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    before.assert_near(torch.tensor(logs[0]["maxent/forward_kl_before"]))
    after[0].assert_near(torch.tensor(logs[0]["maxent/forward_kl_after"]))
    assert logs[0]["maxent/forward_kl_after"] < logs[0]["maxent/forward_kl_before"]
    assert {"maxent/improvement_gap_before", "maxent/improvement_gap_after"} <= set(logs[2])
    assert not {"maxent/forward_kl_before", "maxent/forward_kl_after"} & set(logs[1])


MEASURED = ("maxent/forward_kl", "maxent/improvement_gap")


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 1},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "steps_per_generation": 2},
    ],
    ids=["a rollout an update", "two rollouts an update", "a rollout of two updates"],
)
@pytest.mark.parametrize("logging_steps", [1, 4])
def test_an_update_that_moves_nothing_measures_the_same_before_and_after(
    logging_steps: int, layout: dict[str, Any], tmp_path: Any
) -> None:
    settings = {"maxent_projection": "listwise", "maxent_measure_every": 4, "max_steps": 8, **layout}
    run = trl_tiny.build_trainer(tmp_path, logging_steps=logging_steps, **settings)
    run.train()
    logs = [entry for entry in run.state.log_history if f"{MEASURED[0]}_before" in entry]
    assert len(logs) == 2
    for log, name in itertools.product(logs, MEASURED):
        assert log[f"{name}_after"] == log[f"{name}_before"]


def test_a_log_of_several_steps_holds_the_mean_of_what_they_measured(tmp_path: Any) -> None:
    def logs(logging_steps: int) -> list[dict[str, float]]:
        settings = {"maxent_measure_every": 2, "max_steps": 4, "learning_rate": 1e-3, "maxent_projection": "listwise"}
        run = trl_tiny.build_trainer(tmp_path, logging_steps=logging_steps, **settings)
        run.train()
        return [entry for entry in run.state.log_history if "loss" in entry]

    each, (together,) = logs(1), logs(4)
    for name in (f"{name}_{when}" for name in MEASURED for when in ("before", "after")):
        mean = (each[0][name] + each[2][name]) / 2
        assert together[name] == pytest.approx(mean, rel=4 * unit_roundoff(torch.float32))


@HEADS
def test_entropy_is_the_mean_over_the_tokens_that_are_trained_on(fused: bool, tmp_path: Any) -> None:
    run = trl_tiny.build_trainer(tmp_path, maxent_tau=0.0, maxent_q_eps=0.0, maxent_fused_head=fused)
    run.train()
    evaluate_entropy(best=True).assert_near(torch.tensor(run.state.log_history[0]["entropy"]))


@pytest.mark.parametrize(("fused", "best"), [(False, False), (True, True)])
def test_entropy_in_evaluation_is_over_all_tokens_or_those_that_the_one_pass_head_sees(
    fused: bool, best: bool, tmp_path: Any
) -> None:
    settings = {"maxent_tau": 0.0, "maxent_q_eps": 0.0, "maxent_fused_head": fused, "per_device_eval_batch_size": 8}
    run = trl_tiny.build_trainer(tmp_path, extra={"eval_dataset": trl_tiny.make_prompts(2)}, **settings)
    evaluate_entropy(best=best).assert_near(torch.tensor(run.evaluate()["eval_entropy"]))


def evaluate_entropy(*, best: bool) -> Bounded:
    """The mean entropy of the tokens of all candidates, or of the best of each group only."""
    counted = (
        compute_utilities() == compute_utilities().max(-1, keepdims=True) if best else np.ones((2, 4), dtype=bool)
    )
    pairs = [pair for pair, counts in zip(itertools.chain(*list_groups()), counted.flatten(), strict=True) if counts]
    policy = trl_tiny.build_model().double()
    (exact,) = evaluate(lambda: [torch.cat([compute_entropies(policy, *pair) for pair in pairs]).mean()])
    return exact


@pytest.mark.parametrize("fused", [False, True], ids=["TRL's head", "one-pass head"])
def test_kl_to_the_reference_is_logged_wherever_there_is_one(fused: bool, tmp_path: Any) -> None:
    policy, frozen = build_policy_and_reference(tmp_path)
    precise = [copy.deepcopy(frozen).double(), copy.deepcopy(policy).double()]

    def average_kl() -> list[torch.Tensor]:
        values = []
        for pair in itertools.chain(*list_groups()):
            refs, logps = (compute_token_logps(model, *pair) for model in precise)
            values.append((refs - logps).exp() - (refs - logps) - 1)
        return [torch.cat(values).mean()]

    run = trl_tiny.build_trainer(tmp_path, policy=policy, init_kl_coeff=0.1, maxent_fused_head=fused)
    run.train()
    (exact,) = evaluate(average_kl)
    exact.assert_near(torch.tensor(run.state.log_history[0]["kl"]))


@pytest.mark.parametrize(
    "config", [MaxEntConfig(center=True, clip_low=0.02, clip_high=0.03), SURROGATE], ids=["centred", "surrogate"]
)
def test_clip_ratios_are_shares_of_tokens_out_of_bounds_in_the_direction_of_their_gain(
    config: MaxEntConfig, tmp_path: Any
) -> None:
    before, after = trl_tiny.build_model(), trl_tiny.build_model()
    step = 0.05 * compute_gradient(before, before, config, compute_utilities()).float()
    start = torch.nn.utils.parameters_to_vector(before.parameters()).detach()
    torch.nn.utils.vector_to_parameters(start - step, after.parameters())
    low, high = [], []
    for group, u in zip(list_groups(), compute_utilities(), strict=True):
        old = [compute_token_logps(before, *pair).detach() for pair in group]
        lengths = np.array([len(one) for one in old])
        gains = compute_coefficients(config, u, lengths, lengths, lengths, [0] * 4)
        for pair, then, gain in zip(group, old, gains, strict=True):
            ratio = (compute_token_logps(after, *pair).detach() - then).exp().numpy()
            low.extend(((ratio < 1 - config.clip_low) & (gain < 0)).tolist())
            high.extend(((ratio > 1 + config.clip_high) & (gain > 0)).tolist())
    assert any(low)
    assert any(high)
    run = trl_tiny.build_trainer(
        tmp_path, policy=before, num_iterations=2, max_steps=2, learning_rate=0.05, **make_fields(config)
    )
    run.train()
    first, second = run.state.log_history[:2]
    assert first["clip_ratio/region_mean"] == 0.0
    assert second["clip_ratio/low_mean"] == pytest.approx(np.mean(low))
    assert second["clip_ratio/high_mean"] == pytest.approx(np.mean(high))
    assert second["clip_ratio/region_mean"] == pytest.approx(np.mean(low) + np.mean(high))


def test_a_rollout_that_nothing_scores_logs_no_statistics_of_a_target(tmp_path: Any) -> None:
    run = trl_tiny.build_trainer(tmp_path, rewards=lambda completion_ids, **_: [None] * len(completion_ids))
    run.train()
    log = run.state.log_history[0]
    assert log["grad_norm"] == 0.0
    assert "maxent/ess" not in log


def test_metrics_reach_what_report_to_names(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trl_tiny.build_trainer(tmp_path, report_to="tensorboard")
    run.train()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    written = EventAccumulator(str(events)).Reload()
    (scalar,) = written.Scalars("train/maxent/ess")
    assert scalar.value == pytest.approx(run.state.log_history[0]["maxent/ess"])


def evaluate_forward_kl(model: Any) -> Bounded:
    """The mean over groups of KL(π*‖p) at the published settings, by the oracle."""
    model = copy.deepcopy(model).double()

    def average() -> list[torch.Tensor]:
        values = []
        for group, u in zip(list_groups(), compute_utilities(), strict=True):
            scores = torch.stack([compute_token_logps(model, *pair).sum() for pair in group]).detach()
            anchors = scores.numpy()
            weights = torch.as_tensor(compute_coefficients(MaxEntConfig(), u, anchors, anchors, np.full(4, 1), []))
            values.append((weights * (weights.log() - scores.log_softmax(-1))).sum())
        return [torch.stack(values).mean()]

    (exact,) = evaluate(average)
    return exact
