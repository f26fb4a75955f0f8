"""OpenRLHF's command line with ours: what is read, what is refused by name before Ray starts, what a worker gets."""

import pickle
from typing import Any

import pytest

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters.openrlhf import __main__ as driver
from maxent_grpo.adapters.openrlhf.options import REFUSED, trim_rollout
from maxent_grpo.adapters.openrlhf.workers import MaxEntAsyncTrainer, MaxEntPolicyActor, MaxEntTrainer
from support.openrlhf_tiny import read_command

SIZES = ("--rollout.n_samples_per_prompt", 8, "--rollout.batch_size", 16, "--rollout.max_new_tokens", 64)

WRONG = {
    "algo.advantage.estimator": ["reinforce_baseline"],
    "algo.advantage.no_std_norm": [],
    "algo.advantage.gamma": [0.9],
    "algo.advantage.lambd": [0.9],
    "reward.normalize_enable": [],
    "reward.clip_range": [-1, 1],
    "actor.policy_loss_type": ["gspo"],
    "actor.dual_clip": [3],
    "actor.loss_agg_mode": ["seq-mean-token-mean"],
    "data.max_images_per_prompt": [1],
}


def test_a_plain_grpo_command_line_trains_with_the_method_on_its_scale() -> None:
    method = read_command(*SIZES).maxent
    assert method.config == MaxEntConfig(nll_reduction="max_length", max_length=64)
    assert not method.clipped
    assert method.kl_coef == 0


def test_options_of_ours_are_read_as_a_recipe_is() -> None:
    options = ("--maxent.tau", "0.5", "--maxent.center", "--maxent.dedup=1", "--maxent.length_normalize_ref", "false")
    config = read_command(*SIZES, *options).maxent.config
    assert (config.tau, config.center, config.dedup, config.length_normalize_ref) == (0.5, True, 1.0, False)
    assert read_command(*SIZES, "--maxent.preset", "diverse").maxent.config == MaxEntConfig.diverse(max_length=64)


@pytest.mark.parametrize(
    ("options", "limit"),
    [((), 64), (("--train.agent_func_path", "agent.py"), 2048), (("--rollout.max_new_tokens", 32), 32)],
)
def test_the_length_that_nlls_are_divided_by_is_the_generation_limit(options: Any, limit: int) -> None:
    assert read_command(*SIZES, *options).maxent.config.max_length == limit


@pytest.mark.parametrize(
    "options", [("--train.max_epochs", 2), ("--train.batch_size", 64), ("--actor.eps_clip_low_high", 0.1, 0.3)]
)
def test_updates_are_clipped_where_a_rollout_serves_several(options: Any) -> None:
    method = read_command(*SIZES, *options).maxent
    assert method.clipped == (options[0] != "--actor.eps_clip_low_high")
    assert (method.config.clip_low, method.config.clip_high) == ((0.2, 0.2) if method.clipped else (0.1, 0.3))


def test_every_refused_option_is_tried_here() -> None:
    assert WRONG.keys() == REFUSED.keys()


@pytest.mark.parametrize("name", WRONG)
def test_an_option_that_changes_the_method_is_refused_by_name(name: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        read_command(*SIZES, f"--{name}", *WRONG[name])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert f"--{name}=" in message
    assert REFUSED[name].lost in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--algo.kl.init_coef", 0.01), "--algo.kl.use_loss with --algo.kl.init_coef > 0"),
        (("--maxent.tau", -1), "Expected --maxent.tau >= 0, got --maxent.tau=-1.0."),
        (("--maxent.tau", "warm"), "--maxent.tau to be a float"),
        (("--maxent.q_eps", 0.5), "--maxent.q_eps <= 1/K with K=8"),
        (("--maxent.pass_k", 8), "--maxent.pass_k < K=8"),
        (("--maxent.projection", "surrogate", "--maxent.beta", 1), "--maxent.beta=0 with --maxent.projection"),
        (("--maxent.projection", "sideways"), "--maxent.projection"),
        (("--maxent.temprature", 1), "unrecognized arguments: --maxent.temprature"),
        (("--maxent.key_func", "nowhere.py"), "nowhere.py"),
        (
            ("--actor.num_gpus_per_node", 4, "--rollout.micro_batch_size", 24),
            "--rollout.micro_batch_size to deal evenly to 4 ranks the 128 candidates of a rollout",
        ),
        (
            ("--train.micro_batch_size", 48),
            "--train.micro_batch_size to divide, on each of 1 ranks, its part of the 128 candidates",
        ),
        (("--train.batch_size", 48), "--train.batch_size to divide, or be a multiple of, the 128 candidates"),
        (
            ("--rollout.vllm_generate_batch_size", 5, "--rollout.micro_batch_size", 1),
            "--train.batch_size to divide, or be a multiple of, the 40 candidates",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_in_the_users_own_words(options: Any, expected: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        read_command(*SIZES, *options)
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_target_that_needs_the_reference_starts_one_without_a_kl_term() -> None:
    args = read_command(*SIZES, "--maxent.beta", 0.04)
    assert args.algo.kl.init_coef > 0
    assert args.algo.kl.use_loss
    assert args.maxent.kl_coef == 0
    assert read_command(*SIZES, "--maxent.beta", 0.04, "--maxent.anchor", "old").algo.kl.init_coef == 0


def test_a_kl_term_keeps_its_coefficient_beside_the_targets() -> None:
    kl = ("--algo.kl.init_coef", 1e-3, "--algo.kl.use_loss", "--algo.kl.estimator", "k3")
    args = read_command(*SIZES, "--maxent.beta", 0.04, *kl)
    assert (args.algo.kl.init_coef, args.maxent.kl_coef, args.maxent.config.beta) == (1e-3, 1e-3, 0.04)


def test_what_does_not_fill_an_update_on_all_ranks_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    two = read_command(
        *SIZES, "--actor.num_gpus_per_node", 2, "--rollout.micro_batch_size", 4, "--train.batch_size", 16
    )
    assert len(trim_rollout([*range(128)], two)) == 128
    assert not caplog.records
    assert trim_rollout([*range(120)], two) == [*range(112)]
    assert "The last 8 of 120 candidates of this rollout are left out" in caplog.text
    assert trim_rollout([*range(8)], two) == []
    one = read_command(*SIZES, "--rollout.micro_batch_size", 24)
    assert len(trim_rollout([*range(128)], one)) == 128
    dynamic = read_command(*SIZES, "--train.dynamic_batch_enable", "--train.batch_size", 32)
    assert len(trim_rollout([*range(120)], dynamic)) == 96


def test_a_rollout_may_be_a_part_of_an_update_but_with_dynamic_batches() -> None:
    assert read_command(*SIZES, "--train.batch_size", 256).train.batch_size == 256
    with pytest.raises(SystemExit):
        read_command(*SIZES, "--train.batch_size", 256, "--train.dynamic_batch_enable")


def test_help_shows_our_options_and_openrlhfs(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["openrlhf"])
    with pytest.raises(SystemExit):
        driver.main(["--help"])
    shown = capsys.readouterr().out
    assert "--maxent.tau" in shown
    assert "--maxent.key_func" in shown
    assert "--algo.advantage.estimator" in shown


@pytest.mark.parametrize("worker", [MaxEntTrainer, MaxEntAsyncTrainer, MaxEntPolicyActor])
def test_what_rays_workers_run_is_imported_there_by_name(worker: type) -> None:
    assert worker.__name__.encode() in pickle.dumps(worker)
    assert pickle.loads(pickle.dumps(worker)) is worker


def test_the_arguments_that_travel_survive_the_way(tmp_path: Any) -> None:
    method = read_command(*SIZES, "--maxent.dedup", 1).maxent
    assert pickle.loads(pickle.dumps(method)) == method
