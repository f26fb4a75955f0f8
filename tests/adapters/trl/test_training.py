"""What a real TRL run does beside its gradient: what it skips, logs, evaluates, saves and resumes."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig

from maxent_grpo import MaxEntConfig, reference
from support import trl_tiny
from support.precision import evaluate, store
from support.trl_formulas import (
    build_policy_and_reference,
    compute_coefficients,
    compute_token_logps,
    compute_utilities,
    list_groups,
)

HEADS = pytest.mark.parametrize("fused", [False, True], ids=["TRL's head", "one-pass head"])


def record_forwards(run: Any) -> list[int]:
    """Return a list that fills with the number of rows of every training forward."""
    rows: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and module.training:
            rows.append(len(kwargs["input_ids"]))

    run.model.register_forward_pre_hook(note, with_kwargs=True)
    return rows


@HEADS
def test_pruned_candidates_see_no_forward_and_survivors_are_spread_over_micro_batches(
    fused: bool, tmp_path: Any
) -> None:
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "maxent_fused_head": fused}
    run = trl_tiny.build_trainer(tmp_path, maxent_keep_fraction=0.5, **settings)
    rows = record_forwards(run)
    run.train()
    assert sum(rows) in (15, 16, 17)  # half of 32, up to the rounding of one draw
    assert max(rows) - min(rows) <= 1
    assert run.state.log_history[0]["maxent/frac_trained_on"] == sum(rows) / 32


def test_a_micro_batch_without_survivors_still_runs_one_row(tmp_path: Any) -> None:
    run = trl_tiny.build_trainer(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, maxent_keep_fraction=0.13
    )
    rows = record_forwards(run)
    run.train()
    assert rows == [1, 1, 1, 1]
    assert run.state.log_history[0]["maxent/frac_trained_on"] in (1 / 8, 2 / 8)


def test_skipped_groups_see_no_forward(tmp_path: Any) -> None:
    run = trl_tiny.build_trainer(
        tmp_path, rewards=lambda completion_ids, **_: [0.0] * len(completion_ids), maxent_skip="equal"
    )
    rows = record_forwards(run)
    run.train()
    assert rows == [1]
    assert run.state.log_history[0]["grad_norm"] == 0.0


def test_a_rollout_in_which_every_group_is_skipped_warns(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Successes at 0 and failures at -1, with the highest utility of a failure left at 0."""
    run = trl_tiny.build_trainer(
        tmp_path,
        rewards=lambda completion_ids, **_: [-float(number % 2) for number in range(len(completion_ids))],
        maxent_preset="diverse",
        max_steps=2,
    )
    run.train()
    (message,) = [record.getMessage() for record in caplog.records if "Nothing to learn" in record.getMessage()]
    assert "maxent_min_utility=0 and utilities from -1 to 0" in message


def test_a_bonus_that_lifts_failures_warns(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    def verify(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [0.0] * len(completion_ids)

    rewards, weights = [verify, lambda completion_ids, **_: [0.1] * len(completion_ids)], [1.0, 0.5]
    trl_tiny.build_trainer(tmp_path, rewards=rewards, reward_weights=weights, maxent_preset="diverse").train()
    (message,) = [record.getMessage() for record in caplog.records if "count as right" in record.getMessage()]
    assert message.startswith(
        "8 of 8 candidates count as right, with a utility over maxent_min_utility=0, though ver"
    )


def test_candidates_without_weight_see_no_forward(tmp_path: Any) -> None:
    run = trl_tiny.build_trainer(tmp_path, maxent_tau=0.0, maxent_q_eps=0.0)
    rows = record_forwards(run)
    run.train()
    assert rows == [sum(int((u == u.max()).sum()) for u in compute_utilities())]
    assert run.state.log_history[0]["maxent/frac_trained_on"] == rows[0] / 8


@pytest.mark.parametrize("settings", [{"maxent_projection": "surrogate"}, {"maxent_center": True}])
def test_candidates_without_an_advantage_see_no_forward(settings: dict[str, Any], tmp_path: Any) -> None:
    """One group is right altogether: its four candidates have no gradient, and were half of all forwards."""
    run = trl_tiny.build_trainer(
        tmp_path,
        rewards=lambda completion_ids, **_: [0.1] * 4 + [float(number == 0) for number in range(4)],
        maxent_anchor="none",
        **settings,
    )
    rows = record_forwards(run)
    run.train()
    assert rows == [4]
    assert run.state.log_history[0]["maxent/frac_trained_on"] == 4 / 8


@pytest.mark.parametrize("settings", [{"beta": 0.1}, {"entropy_coef": 0.1}])
def test_every_candidate_is_trained_on_beside_a_penalty(settings: dict[str, Any], tmp_path: Any) -> None:
    policy, _ = build_policy_and_reference(tmp_path)
    run = trl_tiny.build_trainer(tmp_path, policy=policy, maxent_tau=0.0, maxent_q_eps=0.0, **settings)
    rows = record_forwards(run)
    run.train()
    assert rows == [8]
    assert run.state.log_history[0]["maxent/frac_trained_on"] == 1.0


def test_every_candidate_is_trained_on_where_nothing_is_dropped(tmp_path: Any) -> None:
    run = trl_tiny.build_trainer(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    rows = record_forwards(run)
    run.train()
    assert rows == [4, 4]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"maxent_projection": "listwise"},
        {"num_iterations": 2},
        {"maxent_keep_fraction": 0.5},
        {"maxent_fused_head": True},
    ],
)
def test_evaluation_takes_the_same_loss_of_its_own_groups(settings: dict[str, Any], tmp_path: Any) -> None:
    extra, policy = {"eval_dataset": trl_tiny.make_prompts(2)}, trl_tiny.build_model()

    def compute_metrics(policy: Any, rows: int) -> dict[str, float]:
        layout = {"per_device_eval_batch_size": rows, "num_generations_eval": 2}
        run = trl_tiny.build_trainer(tmp_path, policy=copy.deepcopy(policy), extra=extra, **layout, **settings)
        return run.evaluate()

    precise = copy.deepcopy(policy).double()
    (exact,) = evaluate(lambda: [torch.tensor(compute_metrics(precise, 8)["eval_loss"], dtype=torch.float64)])
    for rows in (8, 2):
        metrics = compute_metrics(policy, rows)
        exact.assert_near(torch.tensor(metrics["eval_loss"]))
        assert 1 <= metrics["eval_maxent/ess"] <= 2


def test_the_evaluation_loss_is_that_of_training(tmp_path: Any) -> None:
    def compute_losses(policy: Any) -> list[torch.Tensor]:
        extra = {"eval_dataset": trl_tiny.make_prompts(2)}
        run = trl_tiny.build_trainer(
            tmp_path, policy=copy.deepcopy(policy), extra=extra, per_device_eval_batch_size=8
        )
        run.train()
        losses = run.state.log_history[0]["loss"], run.evaluate()["eval_loss"]
        return [torch.tensor(loss, dtype=torch.float64) for loss in losses]

    policy = trl_tiny.build_model()
    precise = copy.deepcopy(policy).double()
    exact, _ = evaluate(lambda: compute_losses(precise))
    for loss in compute_losses(policy):
        exact.assert_near(loss)


def test_the_table_of_completions_holds_rewards_target_weights_and_coefficients(tmp_path: Path) -> None:
    trl_tiny.build_trainer(tmp_path, log_completions=True, maxent_center=True).train()
    table = pd.read_parquet(next((tmp_path / "completions").glob("*.parquet")))
    assert len(table) == 8
    columns = [torch.tensor(table[name].to_numpy()) for name in ("reward", "target_weight", "coefficient")]
    for u, weights, coefficients in zip(*(column.view(2, 4) for column in columns), strict=True):

        def compute(u: torch.Tensor = u) -> list[torch.Tensor]:
            log_target = reference.tempered_log_target(store(reference.listwise_log_q(u.numpy())), tau=0.2)
            weights = torch.as_tensor(store(log_target)).exp()
            return [weights, weights - 1 / 4]

        for found, exact in zip((weights, coefficients), evaluate(compute), strict=True):
            exact.assert_near(found)


def test_candidates_of_a_group_must_share_their_prompt(tmp_path: Any) -> None:
    def torn(prompts: list[str], trainer: Any) -> dict[str, Any]:
        output = trl_tiny.replay_completions(prompts, trainer)
        return output | {"prompt_ids": [[3 + row] for row in range(len(prompts))]}

    with pytest.raises(ValueError, match="candidates of a group to share their prompt, got torn_groups=2"):
        trl_tiny.build_trainer(tmp_path, rollout=torn).train()


def test_gradient_checkpointing_leaves_the_gradient_alone(tmp_path: Any) -> None:
    exact = trl_tiny.evaluate_run(tmp_path)
    for settings in (
        {},
        {"gradient_checkpointing": True, "maxent_fused_head": True},
        {"gradient_checkpointing": True},
    ):
        exact.assert_near(trl_tiny.measure_gradient(tmp_path, **settings))


@HEADS
def test_a_lora_is_anchored_at_the_model_without_it(fused: bool, tmp_path: Any) -> None:
    base = trl_tiny.build_model()
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    run = trl_tiny.build_trainer(
        tmp_path, policy=base, extra={"peft_config": lora}, init_kl_coeff=0.5, maxent_fused_head=fused
    )
    kept = trl_tiny.Gradients()
    run.add_callback(kept)
    run.train()
    assert run.ref_model is None
    model = run.model.double()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(kept.steps[0]) == set(trained)

    def anchor_at_base() -> list[torch.Tensor]:
        loss = torch.zeros((), dtype=torch.float64)
        for group, u in zip(list_groups(), compute_utilities(), strict=True):
            with model.disable_adapter(), torch.no_grad():
                refs = np.array([compute_token_logps(model, *pair).sum().item() for pair in group])
            logps = [compute_token_logps(model, *pair).sum() for pair in group]
            lengths = np.array([len(completion) for _, completion in group])
            weights = compute_coefficients(MaxEntConfig(beta=0.5), u, refs, refs, lengths, [])
            terms = sum(weight * one for weight, one in zip(weights, logps, strict=True))
            loss = loss - terms / trl_tiny.COMPLETION / len(list_groups())
        gradients = torch.autograd.grad(loss, list(trained.values()))
        return [torch.cat([gradient.flatten() for gradient in gradients])]

    (exact,) = evaluate(anchor_at_base)
    exact.assert_near(kept.total())


@pytest.mark.parametrize(
    "settings",
    [{}, {"maxent_skip": "equal", "rewards": lambda completion_ids, **_: [0.0] * len(completion_ids)}],
    ids=["every group trained on", "every group skipped"],
)
def test_the_routers_auxiliary_loss_is_that_of_every_candidate_added_once_per_update(
    settings: dict[str, Any], tmp_path: Any
) -> None:
    policy, pairs = trl_tiny.build_mixture_of_experts(), [pair for group in list_groups() for pair in group]
    width, tail = max(len(prompt) for prompt, _ in pairs), max(len(completion) for _, completion in pairs)
    ids = torch.tensor([[0] * (width - len(p)) + p + c + [0] * (tail - len(c)) for p, c in pairs])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p + c) + [0] * (tail - len(c)) for p, c in pairs])

    def differentiate_aux() -> list[torch.Tensor]:
        model = copy.deepcopy(policy).double()
        aux = 0.2 * model(ids, attention_mask=mask, output_router_logits=True).aux_loss
        gradients = torch.autograd.grad(aux, list(model.parameters()), allow_unused=True, materialize_grads=True)
        return [torch.cat([gradient.flatten() for gradient in gradients])]

    (aux,) = evaluate(differentiate_aux)
    runs = [
        {"router_aux_loss_coef": 0.2, "maxent_fused_head": True, **settings},
        {"router_aux_loss_coef": 0.0, **settings},
    ]
    with_aux, without = (trl_tiny.measure_gradient(tmp_path, policy=copy.deepcopy(policy), **run) for run in runs)
    errors = [trl_tiny.evaluate_run(tmp_path, policy=policy, **run).error for run in runs]
    assert aux.distance(with_aux - without) <= aux.error + sum(errors)


@HEADS
def test_the_head_is_projected_in_float32_on_request(
    fused: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two passes agree on a processor, but not where `evaluate` moves every result at random.
    monkeypatch.setattr("maxent_grpo.adapters.trl.trainer.expect_own_logits", lambda *_: None)
    policy = trl_tiny.build_model().to(torch.bfloat16)

    def differentiate_head(policy: Any, **settings: Any) -> torch.Tensor:
        kept = trl_tiny.Gradients()
        trl_tiny.build_trainer(tmp_path, policy=copy.deepcopy(policy), callbacks=[kept], **settings).train()
        return kept.steps[0]["lm_head.weight"]

    precise = copy.deepcopy(policy).double()
    (exact,) = evaluate(lambda: [differentiate_head(precise)], torch.bfloat16)
    found = differentiate_head(policy, cast_lm_head_to_fp32=True, maxent_fused_head=fused)
    assert not torch.equal(found, found.bfloat16().float())
    exact.assert_near(found)


def test_the_reference_can_follow_the_policy(tmp_path: Any) -> None:
    policy = trl_tiny.build_model()
    policy.config._name_or_path = trl_tiny.save_model(tmp_path / "reference")
    settings = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0, "init_kl_coeff": 0.1}
    run = trl_tiny.build_trainer(tmp_path, policy=policy, learning_rate=1e-3, max_steps=2, **settings)
    run.train()
    for mine, reference_parameter in zip(policy.parameters(), run.ref_model.parameters(), strict=True):
        assert torch.equal(mine, reference_parameter)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_iterations": 2}, "updates are clipped"),
        ({"entropy_coef": 0.1}, "entropy_coef > 0"),
        ({"beta": 0.1}, "beta is not 0"),
        (
            {"extra": {"peft_config": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")}},
            "the adapter learns a prompt",
        ),
    ],
)
def test_the_one_pass_head_says_once_why_it_is_not_used(
    settings: dict[str, Any], reason: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    policy, _ = build_policy_and_reference(tmp_path)
    run = trl_tiny.build_trainer(tmp_path, policy=policy, maxent_fused_head=True, **settings)
    run.train()
    (message,) = [record.getMessage() for record in caplog.records if "falls back" in record.getMessage()]
    assert reason in message
    assert math.isfinite(run.state.log_history[0]["loss"])


def test_prompts_can_be_streamed(tmp_path: Any) -> None:
    run = trl_tiny.build_trainer(tmp_path)
    streamed = trl_tiny.MaxEntGRPOTrainer(
        trl_tiny.build_model(),
        trl_tiny.reward,
        trl_tiny.build_arguments(tmp_path),
        trl_tiny.make_prompts(8).to_iterable_dataset(),
        processing_class=trl_tiny.build_tokenizer(),
        rollout_func=trl_tiny.replay_completions,
    )
    run.train()
    streamed.train()
    expected = run.state.log_history[0]["loss"]  # but for the last bits of float32: threads add in any order
    assert streamed.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-6)


def test_chats_are_prompts_too(tmp_path: Any) -> None:
    words = trl_tiny.build_tokenizer()
    words.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": letter * 3}] for letter in "abcd"]})
    run = trl_tiny.MaxEntGRPOTrainer(
        trl_tiny.build_model(), trl_tiny.reward, trl_tiny.build_arguments(tmp_path), dataset, processing_class=words
    )
    run.train()
    assert math.isfinite(run.state.log_history[0]["loss"])


def test_the_model_card_has_the_tags_and_the_paper_of_the_method(tmp_path: Path) -> None:
    run = trl_tiny.build_trainer(tmp_path)
    run.create_model_card(model_name="tiny")
    card = (Path(run.args.output_dir) / "README.md").read_text()
    assert {"- trl", "- grpo", "- maxent-grpo"} <= set(card.splitlines())
    assert "title  = {{MaxEnt-GRPO: Maximum-Entropy Group-Relative Policy Optimization}}" in card
