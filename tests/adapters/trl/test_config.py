"""Which arguments the TRL trainer accepts, and which it refuses by name."""

import dataclasses
import importlib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser
from trl import GRPOConfig

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters import _require, trl
from maxent_grpo.adapters.trl import MaxEntGRPOConfig, MaxEntGRPOTrainer
from maxent_grpo.adapters.trl.options import REFUSED
from support import trl_tiny
from support.trl_formulas import DEFAULT
from support.trl_options import OTHER_VALUES

HONOURED = {
    "beta", "num_iterations", "steps_per_generation", "generation_batch_size", "epsilon", "epsilon_high",
    "reward_weights", "temperature", "mask_truncated_completions", "sync_ref_model", "ref_model_mixup_alpha",
    "ref_model_sync_steps", "entropy_coef", "router_aux_loss_coef", "use_bias_correction_kl", "cast_lm_head_to_fp32",
    "disable_dropout", "num_generations", "num_generations_eval", "max_completion_length",
    "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min", "vllm_importance_sampling_cap",
}  # fmt: skip
WITH_ADAPTIVE_ENTROPY = {"entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"}
BESIDE_THE_LOSS = {
    "model_init_kwargs", "trust_remote_code", "shuffle_dataset", "pad_to_multiple_of", "ds3_gather_for_generation",
    "top_p", "top_k", "min_p", "generation_kwargs", "chat_template_kwargs", "repetition_penalty",
    "cache_implementation", "max_tool_calling_iterations", "log_completions", "log_multimodal",
    "num_completions_to_print", "log_unique_prompts", "log_completions_hub_repo",
    "use_transformers_continuous_batching", "transformers_continuous_batching_config", "use_transformers_paged",
    "use_vllm", "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex",
    "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port",
    "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size", "learning_rate",
    "remove_unused_columns",
}  # fmt: skip


def test_every_option_of_trl_is_honoured_refused_or_beside_the_loss() -> None:
    own = {name for name in GRPOConfig.__annotations__ if not name.startswith("_")}
    assert own - HONOURED - set(REFUSED) - WITH_ADAPTIVE_ENTROPY - BESIDE_THE_LOSS == set()


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_an_option_that_would_change_the_method_is_refused_by_name(name: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=rf"Expected {name} to be left out .*got {name}="):
        trl_tiny.build_arguments(tmp_path, **{name: OTHER_VALUES[name]})


def test_every_refused_option_is_tried() -> None:
    assert set(OTHER_VALUES) == set(REFUSED)


def test_unset_fields_are_the_published_method_on_the_scale_of_grpo(tmp_path: Any) -> None:
    args = trl_tiny.build_arguments(tmp_path)
    assert args.maxent_config() == DEFAULT


def test_the_clip_is_that_of_trl_unless_the_method_sets_its_own(tmp_path: Any) -> None:
    config = trl_tiny.build_arguments(tmp_path, epsilon=0.1, epsilon_high=0.28, maxent_clip_high=0.3).maxent_config()
    assert (config.clip_low, config.clip_high) == (0.1, 0.3)


def test_every_field_of_the_method_has_a_flag_that_says_what_it_is(tmp_path: Any) -> None:
    parser = HfArgumentParser(MaxEntGRPOConfig)
    described = {action.dest: action.help for action in parser._actions}
    of_trl = {"nll_reduction", "max_length", "clip_low", "clip_high", "beta", "bank_weight"}
    for known in dataclasses.fields(MaxEntConfig):
        default = "Unset: " if known.name in of_trl else f"Unset: {known.default!r}."
        assert default in str(described[f"maxent_{known.name}"])
    assert "--maxent_q_temperature" in parser.format_help()


def test_a_recipe_with_every_field_of_ours_can_be_read_without_trl(tmp_path: Any) -> None:
    args = trl_tiny.build_arguments(tmp_path, maxent_preset="diverse", maxent_measure_every=5, init_kl_coeff=0.1)
    ours = {field.name: getattr(args, field.name) for field in dataclasses.fields(args) if "maxent_" in field.name}
    recipe = {name: value for name, value in ours.items() if value is not None} | {"init_kl_coeff": 0.1}
    assert MaxEntConfig.from_recipe(recipe) == dataclasses.replace(MaxEntConfig.diverse(), beta=0.1)


def test_help_says_whose_mean_the_entropy_bonus_is() -> None:
    described = {action.dest: action.help for action in HfArgumentParser(MaxEntGRPOConfig)._actions}
    assert "mean over the tokens of a rollout" in str(described["entropy_coef"])


def test_flags_are_read(tmp_path: Any) -> None:
    flags = "--maxent_tau 0.5 --maxent_anchor none --maxent_center true --maxent_surrogate_tau inf --use_cpu true"
    parser = HfArgumentParser(MaxEntGRPOConfig)
    (args,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--bf16", "false", *flags.split()])
    expected = MaxEntConfig(
        tau=0.5, anchor="none", center=True, max_length=args.max_completion_length, nll_reduction="max_length"
    )
    assert args.maxent_config() == expected


@pytest.mark.parametrize(
    "names", [{"init_kl_coeff": 0.1}, {"maxent_beta": 0.1}, {"maxent_beta": 0.1, "init_kl_coeff": 0.1}]
)
def test_the_targets_beta_goes_by_either_of_its_names(names: dict[str, float], tmp_path: Any) -> None:
    args = trl_tiny.build_arguments(tmp_path, **names)
    assert (args.maxent_config().beta, args.init_kl_coeff, args.beta) == (0.1, 0.1, 0.0)


def test_names_of_the_targets_beta_that_disagree_are_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="init_kl_coeff and maxent_beta to agree"):
        trl_tiny.build_arguments(tmp_path, maxent_beta=0.0, init_kl_coeff=0.1)


def test_trls_beta_is_not_the_targets(tmp_path: Any) -> None:
    args = trl_tiny.build_arguments(tmp_path, beta=0.04)
    assert (args.maxent_config().beta, args.beta) == (0.0, 0.04)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.0),
        ({"init_kl_coeff": 0.1}, 0.1),
        ({"init_kl_coeff": 0.1, "maxent_anchor": "old"}, 0.0),
        ({"beta": 0.3}, 0.3),
        ({"beta": 0.3, "init_kl_coeff": 0.2, "maxent_anchor": "old"}, 0.3),
        ({"beta": 0.3, "init_kl_coeff": 0.2}, 0.3),
    ],
)
def test_trl_is_asked_for_a_reference_exactly_when_one_is_needed(
    settings: dict[str, Any], expected: float, tmp_path: Any
) -> None:
    assert trl_tiny.build_arguments(tmp_path, **settings).reference_beta == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"init_kl_coeff": 0.1},
        {"beta": 0.1},
        {"init_kl_coeff": 0.1, "maxent_anchor": "old", "beta": 0.3},
        {"maxent_preset": "diverse", "maxent_tau": 0.4},
    ],
)
def test_arguments_can_be_built_again_from_what_they_became(settings: dict[str, Any], tmp_path: Any) -> None:
    args = trl_tiny.build_arguments(tmp_path, **settings)
    shown = {field.name: getattr(args, field.name) for field in dataclasses.fields(args) if field.init}
    shown |= {"generation_batch_size": None}
    again = MaxEntGRPOConfig(**shown)
    assert (again.maxent_config(), again.beta) == (args.maxent_config(), args.beta)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"maxent_preset": "diverse"}, MaxEntConfig.diverse(max_length=trl_tiny.COMPLETION)),
        ({"maxent_preset": "published"}, MaxEntConfig(max_length=trl_tiny.COMPLETION)),
        (
            {"maxent_preset": "diverse", "maxent_dedup": 0.5, "init_kl_coeff": 0.1, "epsilon": 0.1},
            dataclasses.replace(
                MaxEntConfig.diverse(max_length=trl_tiny.COMPLETION), dedup=0.5, beta=0.1, clip_low=0.1, clip_high=0.1
            ),
        ),
    ],
)
def test_a_preset_is_a_whole_recipe_that_fields_beside_it_override(
    settings: dict[str, Any], expected: MaxEntConfig, tmp_path: Any
) -> None:
    assert trl_tiny.build_arguments(tmp_path, **settings).maxent_config() == expected


def test_the_environment_beats_the_defaults_and_is_beaten_by_a_preset(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAXENT_TAU", "0.4375")
    assert trl_tiny.build_arguments(tmp_path).maxent_config() == dataclasses.replace(DEFAULT, tau=0.4375)
    assert trl_tiny.build_arguments(tmp_path, maxent_preset="published").maxent_config().tau == MaxEntConfig().tau
    assert trl_tiny.build_arguments(tmp_path, maxent_preset="published", maxent_tau=0.3).maxent_config().tau == 0.3


@pytest.mark.parametrize("settings", [{"beta": 0.1}, {"entropy_coef": 0.1}])
def test_pruning_is_refused_beside_what_needs_every_candidate(settings: dict[str, Any], tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="with maxent_keep_fraction"):
        trl_tiny.build_arguments(tmp_path, maxent_keep_fraction=0.5, **settings)


def test_a_checkpoint_that_cannot_wait_for_the_end_of_a_rollout_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="updates end in mid-rollout"):
        trl_tiny.build_arguments(
            tmp_path,
            num_iterations=2,
            save_strategy="best",
            eval_strategy="steps",
            do_eval=True,
            metric_for_best_model="loss",
        )


def test_a_checkpoint_at_any_moment_is_refused_where_it_could_fall_in_mid_rollout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"updates end in mid-rollout .*enable_jit_checkpoint=True"):
        trl_tiny.build_arguments(tmp_path, num_iterations=2, enable_jit_checkpoint=True)
    assert trl_tiny.build_arguments(tmp_path, enable_jit_checkpoint=True).enable_jit_checkpoint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"entropy_coef": -1.0}, r"entropy_coef >= 0, got entropy_coef=-1\.0"),
        ({"temperature": 0.0}, r"temperature > 0, got temperature=0\.0"),
        ({"vllm_importance_sampling_mode": "nope"}, "to be one of .*got vllm_importance_sampling_mode='nope'"),
        ({"sync_ref_model": True}, "sync_ref_model=False without a reference"),
        (
            {"sync_ref_model": True, "init_kl_coeff": 0.1, "maxent_anchor": "old"},
            "sync_ref_model=False without a ref",
        ),
        (
            {"maxent_projection": "surrogate", "init_kl_coeff": 0.1},
            r"init_kl_coeff=0 with maxent_projection='surrogate' .*got init_kl_coeff=0\.1",
        ),
    ],
)
def test_values_that_could_not_have_their_effect_are_refused_by_name(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        trl_tiny.build_arguments(tmp_path, **settings)


def test_a_reference_may_move_with_the_policy_where_only_the_kl_term_needs_it(tmp_path: Path) -> None:
    assert trl_tiny.build_arguments(tmp_path, sync_ref_model=True, beta=0.1).reference_beta == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_device_train_batch_size": 6}, "must be divisible by num_generations"),
        ({"num_generations": 1}, "at least 2 generations per prompt"),
    ],
)
def test_batches_that_hold_no_whole_groups_are_refused(settings: dict[str, Any], message: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=message):
        trl_tiny.build_arguments(tmp_path, **settings)


def test_too_high_a_floor_for_the_group_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="maxent_q_eps <= 1/K with K=4"):
        trl_tiny.build_arguments(tmp_path, maxent_q_eps=0.3)


def test_arguments_of_trl_itself_are_refused_before_a_model_is_loaded(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="args to be a MaxEntGRPOConfig, got args='GRPOConfig'"):
        MaxEntGRPOTrainer("no/such-model", trl_tiny.reward, GRPOConfig(str(tmp_path), use_cpu=True, bf16=False))


def test_options_set_after_construction_are_refused_before_a_model_is_loaded(tmp_path: Any) -> None:
    args = trl_tiny.build_arguments(tmp_path)
    args.delta = 2.0
    with pytest.raises(ValueError, match=r"got delta=2\.0"):
        MaxEntGRPOTrainer("no/such-model", trl_tiny.reward, args)


@pytest.mark.parametrize("installed", ["1.15.0", "1.17.0", None])
def test_an_untested_or_missing_version_says_what_to_install(
    installed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        if installed is None:
            raise PackageNotFoundError(package)
        return installed

    monkeypatch.setattr(_require, "version", version)
    message = rf"Expected trl>=1.16,<1.17, got {installed or 'none'}.*: pip install 'maxent-grpo\[trl\]'"
    with pytest.raises(ImportError, match=message):
        importlib.reload(trl)
