"""The arguments of `MaxEntGRPOTrainer`: TRL's, the `maxent_*` fields of `MaxEntConfig`, and what is refused."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from trl import GRPOConfig

from maxent_grpo._checks import expect, expect_in
from maxent_grpo.adapters._settings import describe_fields, expect_group_size, list_types, read_settings
from maxent_grpo.adapters.trl.options import REFUSED
from maxent_grpo.config import MaxEntConfig

_CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def _make_fields() -> list[tuple[str, Any, Any]]:
    """Return a `maxent_<name>` field for each field of `MaxEntConfig`; None leaves its default to that class."""
    descriptions, types = describe_fields(), list_types()
    defaults = {known.name: repr(known.default) for known in dataclasses.fields(MaxEntConfig)} | {
        "nll_reduction": "'max_length', the scale of GRPO's loss",
        "max_length": "max_completion_length",
        "clip_low": "epsilon",
        "clip_high": "epsilon_high, or epsilon",
        "beta": "init_kl_coeff",
        "bank_weight": "no bank",
    }
    return [
        (
            f"maxent_{name}",
            types[name] | None,
            field(default=None, metadata={"help": f"{descriptions[name]} Unset: {default}."}),
        )
        for name, default in defaults.items()
    ]


_WithMaxEntFields: Any = dataclasses.make_dataclass("_WithMaxEntFields", _make_fields(), bases=(GRPOConfig,))


@dataclass
class MaxEntGRPOConfig(_WithMaxEntFields):  # type: ignore[misc]
    """`GRPOConfig` with one `maxent_<name>` field for each field of `MaxEntConfig`.

    A recipe that trained with GRPO trains with this class in place of `GRPOConfig`: options keep TRL's meaning, and
    gradients have the scale of TRL's `loss_type="dr_grpo"`. Loss values are not comparable.

    A field that is set beats `maxent_preset`, which beats the environment (`MaxEntConfig.from_env`), which beats the
    default: the method as published, its loss divided by the constant `maxent_max_length`.

    | options of TRL that touch the loss | |
    |---|---|
    | `num_iterations`, `steps_per_generation`, `epsilon`, `epsilon_high`, `reward_weights`, `temperature`, `mask_truncated_completions`, `vllm_importance_sampling_*`, `sync_ref_model`, `router_aux_loss_coef`, `use_bias_correction_kl`, `cast_lm_head_to_fp32`, `disable_dropout` | honoured |
    | `beta` | honoured: the coefficient of a token-level KL to the reference, which the method itself does not have, divided as the candidates' NLLs are. The target's own pull to its anchor is `init_kl_coeff` |
    | `entropy_coef` | honoured: the mean over the rollout's tokens, of which TRL takes the mean over a micro-batch's, which depends on how the rollout is split |
    | `loss_type`, `scale_rewards`, `multi_objective_aggregation`, `importance_sampling_level`, `delta`, `off_policy_mask_threshold`, `top_entropy_quantile`, `use_adaptive_entropy`, `use_liger_kernel`, `sapo_*`, `vespo_*` | refused unless left as they are here: `REFUSED` says what is lost |
    | images in prompts or tool results; tools or a router's auxiliary loss beside a bank | refused |
    | `init_kl_coeff` > 0 with the surrogate; `maxent_keep_fraction` beside `beta`, `entropy_coef` or a router's auxiliary loss | refused: the one would do nothing, the others need the candidates that are dropped |
    | `save_strategy="best"`, `load_best_model_at_end` or `enable_jit_checkpoint` where an update can end in mid-rollout | refused: such a checkpoint cannot be resumed exactly |
    | `IterableDataset` | honoured; resumed bit by bit within the first epoch only, since a stream's later orders are not kept |

    Of TRL's metrics, `entropy` and `kl` are means over the tokens that are trained on (`kl` is there whenever a
    reference is), `clip_ratio/{low,high,region}_mean` over those of clipped updates. `clip_ratio/low_min`,
    `clip_ratio/high_max` and `policy_loss` are not logged, nor are clip ratios where nothing is clipped.

    Args:
        init_kl_coeff: β, the target's pull towards its anchor; `maxent_beta` is another name for it.
        maxent_preset: a whole recipe of `MaxEntConfig` by name: "published", whose NLLs are summed, or "diverse".
        maxent_fused_head: take the weighted NLL through the LM head in one pass, a chunk of logits at a time.
        maxent_measure_every: number of optimiser steps between measurements of the improvement gap and the
            forward KL before and after an update on the same candidates (two scoring passes); 0 for never.

    Raises:
        ValueError: naming the option and its value, on an option that is refused, names of β that disagree, or
            values that `MaxEntConfig` refuses.
    """  # noqa: E501

    loss_type: str = field(default="maxent", metadata={"help": f"Not a choice here: {REFUSED['loss_type'].lost}."})
    scale_rewards: str = field(
        default="none", metadata={"help": f"Not a choice here: {REFUSED['scale_rewards'].lost}."}
    )
    init_kl_coeff: float | None = field(
        default=None, metadata={"help": "β, the target's pull towards its anchor. Unset: 0.0."}
    )
    maxent_preset: Literal["published", "diverse"] | None = field(
        default=None,
        metadata={"help": "A whole recipe of the method: published (NLLs are summed) or diverse. Unset: neither."},
    )
    maxent_fused_head: bool = field(
        default=False, metadata={"help": "Take the weighted NLL through the LM head in one pass."}
    )
    maxent_measure_every: int = field(
        default=0,
        metadata={"help": "Optimiser steps between measurements of gap and KL before and after an update; 0: never."},
    )
    entropy_coef: float = field(
        default=0.0, metadata={"help": "Coefficient of an entropy bonus: the mean over the tokens of a rollout."}
    )

    def __post_init__(self) -> None:
        """Let TRL check its fields, then refuse what would change the method, then settle β."""
        super().__post_init__()
        self.expect_supported()
        self.init_kl_coeff = self.maxent_config().beta

    @property
    def reference_beta(self) -> float:
        """What TRL is to take for its beta: other than 0 exactly where the loss or the target needs a reference."""
        config = self.maxent_config()
        return config.beta if self.beta == 0 and config.needs_reference else float(self.beta)

    @property
    def updates_off_policy(self) -> bool:
        """Whether some updates train on candidates of an earlier policy, so that they must be clipped."""
        return bool(self.gradient_accumulation_steps % self.micro_steps_per_rollout)

    @property
    def micro_steps_per_rollout(self) -> int:
        """Number of forward-backward passes between two generations."""
        return int(self.steps_per_generation * self.num_iterations)

    def maxent_config(self) -> MaxEntConfig:
        """Return the method's settings that these arguments amount to."""
        names = [
            "init_kl_coeff",
            "maxent_preset",
            *(f"maxent_{known.name}" for known in dataclasses.fields(MaxEntConfig)),
        ]
        return read_settings(
            {name: getattr(self, name) for name in names},
            max_length=self.max_completion_length,
            clip_low=self.epsilon,
            clip_high=self.epsilon if self.epsilon_high is None else self.epsilon_high,
            has_bank=True,
        )

    @property
    def rehearses(self) -> bool:
        """Whether right answers are banked and rehearsed, be it with a weight of 0."""
        return self.maxent_bank_weight is not None or self.maxent_config().bank_weight > 0

    def expect_supported(self) -> None:
        """Refuse, by name, the options that the trainer cannot honour."""
        for name, refusal in REFUSED.items():
            value = getattr(self, name)
            expect(value == refusal.value, f"{name} to be left out ({refusal.lost})", **{name: value})
        expect_in("entropy_coef", self.entropy_coef, 0.0)
        expect_in("maxent_measure_every", self.maxent_measure_every, 0)
        expect_in("temperature", self.temperature, 0.0, open_low=True)
        expect(
            self.vllm_importance_sampling_mode in _CORRECTIONS,
            f"vllm_importance_sampling_mode to be one of {_CORRECTIONS}",
            vllm_importance_sampling_mode=self.vllm_importance_sampling_mode,
        )
        self._expect_terms_that_go_together(self.maxent_config())
        self._expect_checkpoints_between_rollouts()

    def _expect_terms_that_go_together(self, config: MaxEntConfig) -> None:
        needs_all = self.beta != 0 or self.entropy_coef != 0
        expect(
            config.keep_fraction is None or not needs_all,
            "beta=0 and entropy_coef=0 with maxent_keep_fraction (they need the candidates that it drops)",
            beta=self.beta,
            entropy_coef=self.entropy_coef,
        )
        sizes = (self.num_generations, self.num_generations_eval or self.num_generations)
        expect_group_size(config, min(sizes), max(sizes))
        expect(
            config.projection != "surrogate" or config.beta == 0,
            "init_kl_coeff=0 with maxent_projection='surrogate' (its weights have no anchor; see beta)",
            init_kl_coeff=config.beta,
        )
        expect(
            not self.sync_ref_model or self.reference_beta != 0,
            "sync_ref_model=False without a reference (init_kl_coeff > 0 with maxent_anchor='reference', or a beta)",
            sync_ref_model=self.sync_ref_model,
        )

    def _expect_checkpoints_between_rollouts(self) -> None:
        names = ("load_best_model_at_end", "enable_jit_checkpoint")
        anywhere = self.save_strategy == "best" or any(getattr(self, name) for name in names)
        expect(
            not (self.updates_off_policy and anywhere),
            "save_strategy 'steps' or 'epoch', load_best_model_at_end=False and enable_jit_checkpoint=False where "
            "updates end in mid-rollout (a checkpoint there cannot be resumed exactly)",
            save_strategy=str(self.save_strategy),
            **{name: getattr(self, name) for name in names},
        )
