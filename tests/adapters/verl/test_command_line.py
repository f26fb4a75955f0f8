"""A command line of verl: what the adapter makes of it, what it refuses, and the check before a job."""

import logging
import math
from typing import Any

import pytest
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters.verl.__main__ import load_config, main
from maxent_grpo.adapters.verl.options import UNBOUNDED, prepare_config
from support.verl_golden import ONE_CHANGE, PLAIN_GRPO

ACTOR = "actor_rollout_ref.actor"
BYPASS = "algorithm.rollout_correction.bypass_mode=True"


def prepare(*overrides: str) -> tuple[Any, MaxEntConfig]:
    config = load_config([*ONE_CHANGE, *overrides], None, "ppo_trainer")
    return config, prepare_config(config)


def test_a_grpo_command_line_trains_with_ours_after_one_change() -> None:
    assert [change for change in ONE_CHANGE if change not in PLAIN_GRPO] == ["trainer.v1.trainer_mode=maxent_sync"]
    config, method = prepare()
    actor = config.actor_rollout_ref.actor
    assert config.algorithm.adv_estimator == "maxent"
    assert config.trainer.v1.trainer_mode == "sync"
    assert (actor.policy_loss.loss_mode, actor.loss_agg_mode) == ("gpg", "seq-mean-token-sum-norm")
    assert actor.loss_scale_factor == method.max_length == config.data.max_response_length
    assert not need_critic(config)
    assert not need_reference_policy(config)


@pytest.mark.parametrize(
    ("preset", "aggregation"), [("published", "seq-mean-token-sum"), ("diverse", "seq-mean-token-sum-norm")]
)
def test_a_preset_decides_how_tokens_are_added_up(preset: str, aggregation: str) -> None:
    config, method = prepare(f"+algorithm.maxent.preset={preset}")
    assert config.actor_rollout_ref.actor.loss_agg_mode == aggregation
    assert method.center == (preset == "diverse")


@pytest.mark.parametrize(
    "overrides", [("data.train_batch_size=10",), (f"{ACTOR}.ppo_epochs=2",)], ids=["batch", "epochs"]
)
def test_several_updates_per_rollout_are_clipped_by_verls_loss(overrides: tuple[str, ...]) -> None:
    config, method = prepare(*overrides, f"{ACTOR}.clip_ratio_high=0.28")
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "vanilla"
    assert (method.clip_low, method.clip_high) == (0.2, 0.28)
    assert config.actor_rollout_ref.actor.clip_ratio_c == UNBOUNDED > math.exp(20)  # verl's own second clip is at 3


def test_an_update_on_the_engines_log_probabilities_is_clipped() -> None:
    config, _ = prepare(BYPASS, "actor_rollout_ref.rollout.calculate_log_probs=True")
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "vanilla"


@pytest.mark.parametrize(("updates", "loss"), [(1, "gpg"), (2, "vanilla")])
def test_the_separate_trainer_clips_where_weights_are_sent_after_several_updates(updates: int, loss: str) -> None:
    steps = "trainer.v1.separate_async.parameter_sync_step"
    sizes = [f"data.train_batch_size={5 * updates}", f"{steps}={updates}", "actor_rollout_ref.rollout.nnodes=1"]
    config, _ = prepare("trainer.v1.trainer_mode=maxent_separate_async", *sizes)
    assert config.trainer.v1.trainer_mode == "separate_async"
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == loss
    assert issubclass(TRAINER_REGISTRY["maxent_separate_async"], PPOTrainerSeparateAsync)


def test_several_updates_without_a_clip_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    config, _ = prepare(f"{ACTOR}.ppo_epochs=2", f"{ACTOR}.policy_loss.loss_mode=gpg")
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "gpg"
    assert "does not clip" in caplog.text


def test_a_pull_to_the_reference_starts_one_and_adds_no_penalty() -> None:
    config, _ = prepare("+algorithm.maxent.beta=0.1")
    assert need_reference_policy(config)
    assert config.actor_rollout_ref.actor.kl_loss_coef == 0


def test_verls_own_kl_penalty_stays() -> None:
    config, _ = prepare("+algorithm.maxent.beta=0.1", f"{ACTOR}.use_kl_loss=True", f"{ACTOR}.kl_loss_coef=0.003")
    assert config.actor_rollout_ref.actor.kl_loss_coef == 0.003


def test_every_change_is_said_with_the_value_it_replaces(caplog: pytest.LogCaptureFixture) -> None:
    prepare()
    assert f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm in place of token-mean." in caplog.text
    assert "algorithm.adv_estimator=maxent in place of grpo." in caplog.text


REFUSED = {
    "trainer.v1.trainer_mode=sync": "trainer.v1.trainer_mode",
    "trainer.use_v1=False": "trainer.use_v1",
    "algorithm.adv_estimator=rloo": "algorithm.adv_estimator",
    "algorithm.use_kl_in_reward=True": "algorithm.use_kl_in_reward",
    "algorithm.use_pf_ppo=True": "algorithm.use_pf_ppo",
    "critic.enable=True": "critic.enable",
    "distillation.enabled=True": "distillation.enabled",
    f"{ACTOR}.policy_loss.loss_mode=gspo": "policy_loss.loss_mode",
    f"{ACTOR}.policy_loss.loss_mode=bypass_mode": "policy_loss.loss_mode",
    f"{BYPASS} actor_rollout_ref.rollout.calculate_log_probs=False": "calculate_log_probs",
    "actor_rollout_ref.rollout.n=1": "actor_rollout_ref.rollout.n",
    "+algorithm.maxent.clip_low=0.1": f"{ACTOR}.clip_ratio_low",
    "+algorithm.maxent.tau=-1": "algorithm.maxent.tau",
    "+algorithm.maxent.tua=1": "algorithm.maxent.tua",
    "+algorithm.maxent.pass_k=6": "algorithm.maxent.pass_k < K=6",
    "+algorithm.maxent.q_eps=0.5": "algorithm.maxent.q_eps <= 1/K with K=6",
    "+algorithm.maxent.projection=surrogate +algorithm.maxent.beta=0.1": "algorithm.maxent.beta=0",
    "+algorithm.maxent.fused_head=True": "algorithm.maxent.fused_head",
    "+algorithm.maxent.key_func.path=nowhere.py +algorithm.maxent.key_func.name=f": "nowhere.py",
}


@pytest.mark.parametrize(("override", "name"), REFUSED.items(), ids=REFUSED)
def test_the_check_refuses_by_name_what_changes_the_method(
    override: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["--check", *ONE_CHANGE, *override.split()]) == 1
    assert name in [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR][-1]


def test_the_check_passes_what_trains() -> None:
    assert main(["--check", *ONE_CHANGE, "+algorithm.maxent.tau=0.3"]) == 0


def test_the_check_says_what_verl_itself_refuses(caplog: pytest.LogCaptureFixture) -> None:
    overrides = [
        *ONE_CHANGE,
        "+algorithm.maxent.beta=0.1",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=null",
    ]
    assert main(["--check", *overrides]) == 1
    assert "log_prob_micro_batch_size" in caplog.text


@pytest.mark.parametrize(("policy", "status"), [("none", 1), ("other", 1), ("other, maxent", 0)])
def test_the_check_knows_whether_verl_will_load_the_plugin(
    policy: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", policy)
    assert main(["--check", *ONE_CHANGE]) == status


def test_the_check_reads_a_config_of_ones_own(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    text = "defaults:\n  - ppo_trainer\n  - _self_\nhydra:\n  searchpath: [pkg://verl.trainer.config]\n"
    (tmp_path / "mine.yaml").write_text(text + "algorithm:\n  maxent:\n    tau: -3\n")
    arguments = ["--config-path", str(tmp_path), "--config-name", "mine"]
    assert main([*arguments, "--check", *ONE_CHANGE]) == 1
    assert "algorithm.maxent.tau >= 0" in caplog.text
    assert main([*arguments, "--check", *ONE_CHANGE, "algorithm.maxent.tau=3"]) == 0
