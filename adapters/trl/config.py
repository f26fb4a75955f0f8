"""The arguments of `MaxEntGRPOTrainer`: TRL's, the `maxent_*` fields of `MaxEntConfig`, and what is refused."""

import dataclasses
import inspect
import re
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from trl import GRPOConfig

from maxent_grpo._checks import expect, expect_in
from maxent_grpo.config import MaxEntConfig

_CHOSEN = "maxent_projection and maxent_nll_reduction choose the loss"
_RAW = "the target is built from raw rewards; maxent_utility_transform='zscore' standardises them in their group"
_TOKENS = "the method weighs all tokens of a candidate alike"
_CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
REFUSED: dict[str, tuple[Any, str]] = {
    "loss_type": ("maxent", _CHOSEN),
    "scale_rewards": ("none", _RAW),
    "multi_objective_aggregation": ("sum_then_normalize", _RAW),
    "importance_sampling_level": ("token", "a clipped update compares token by token"),
    "delta": (None, "the clip is epsilon and epsilon_high"),
    "off_policy_mask_threshold": (None, "clipping is what bounds an update that is off-policy"),
    "top_entropy_quantile": (1.0, _TOKENS),
    "use_adaptive_entropy": (False, "the target's τ and maxent_dedup hold up entropy; entropy_coef is a constant"),
    "use_liger_kernel": (False, "TRL deprecates it; use model_init_kwargs={'use_kernels': True}"),
    **{
        name: (default, _CHOSEN)
        for name, default in (
            ("sapo_temperature_neg", 1.05),
            ("sapo_temperature_pos", 1.0),
            ("vespo_k_pos", 2.0),
            ("vespo_lambda_pos", 3.0),
            ("vespo_k_neg", 3.0),
            ("vespo_lambda_neg", 2.0),
        )
    },
}
"""Options of TRL that would change the loss, with the one value that leaves it alone and why it is that one."""


def _help_of_fields() -> dict[str, str]:
    """Return the description of each field of `MaxEntConfig`, from its docstring."""
    attributes = inspect.cleandoc(MaxEntConfig.__doc__ or "").split("Attributes:")[1].split("Raises:")[0]
    entries = re.findall(r"^    (\w+): (.+?)(?=^    \w|\Z)", attributes, flags=re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()).replace("%", "%%") for name, text in entries}


def _maxent_fields() -> list[tuple[str, Any, Any]]:
    """Return a `maxent_<name>` field for each field of `MaxEntConfig`; None leaves its default to that class."""
    help_of, type_of = _help_of_fields(), get_type_hints(MaxEntConfig)
    return [
        (
            f"maxent_{known.name}",
            type_of[known.name] | None,
            field(default=None, metadata={"help": f"{help_of[known.name]} Unset: {known.default!r}."}),
        )
        for known in dataclasses.fields(MaxEntConfig)
    ]


_WithMaxEntFields: Any = dataclasses.make_dataclass("_WithMaxEntFields", _maxent_fields(), bases=(GRPOConfig,))


@dataclass
class MaxEntGRPOConfig(_WithMaxEntFields):  # type: ignore[misc]
    """`GRPOConfig` with one `maxent_<name>` field for each field of `MaxEntConfig`.

    Unset fields are those of the method as published (or of the environment, see `MaxEntConfig.from_env`).
    `maxent_max_length` is by default `max_completion_length`; `maxent_clip_low` and `maxent_clip_high` are by
    default `epsilon` and `epsilon_high`.

    | options of TRL that touch the loss | |
    |---|---|
    | `beta`, `num_iterations`, `steps_per_generation`, `epsilon`, `epsilon_high`, `reward_weights`, `temperature`, `mask_truncated_completions`, `vllm_importance_sampling_*`, `sync_ref_model`, `router_aux_loss_coef`, `use_bias_correction_kl` (on `kl_penalty`), `cast_lm_head_to_fp32`, `disable_dropout` | honoured |
    | `entropy_coef` | honoured, as the mean over tokens, candidates and groups: TRL's mean over the tokens of a micro-batch depends on how the batch is split |
    | `loss_type`, `scale_rewards`, `multi_objective_aggregation`, `importance_sampling_level`, `delta`, `off_policy_mask_threshold`, `top_entropy_quantile`, `use_adaptive_entropy`, `use_liger_kernel`, `sapo_*`, `vespo_*` | refused unless left as they are here: `REFUSED` says why |
    | images in prompts or tool results | refused |
    | β > 0 with the surrogate; `maxent_keep_fraction` beside `kl_penalty`, `entropy_coef` or a router's auxiliary loss | refused: the one would do nothing, the others need the candidates that are dropped |
    | `save_strategy="best"`, `load_best_model_at_end` or `enable_jit_checkpoint` where an update can end in mid-rollout | refused: such a checkpoint cannot be resumed exactly |
    | `IterableDataset` | honoured; resumed bit by bit within the first epoch only, since a stream's later orders are not kept |

    Of TRL's metrics, `entropy` and `kl` are means over the tokens that are trained on (`kl` is there whenever a
    reference is), `clip_ratio/{low,high,region}_mean` over those of clipped updates. `clip_ratio/low_min`,
    `clip_ratio/high_max` and `policy_loss` are not logged, nor are clip ratios where nothing is clipped.

    Args:
        init_kl_coeff: β, the target's pull towards its anchor; `beta` and `maxent_beta` are other names for it.
        kl_penalty: coefficient of TRL's token-level KL to the reference, which the method itself does not have:
            mean over tokens, candidates and groups.
        maxent_fused_head: take the weighted NLL through the LM head in one pass, a chunk of logits at a time.
        maxent_measure_every: number of optimiser steps between measurements of the improvement gap and the
            forward KL before and after an update on the same candidates (two scoring passes); 0 for never.

    Raises:
        ValueError: naming the option and its value, on an option that is refused, names of β that disagree, or
            values that `MaxEntConfig` refuses.
    """  # noqa: E501

    loss_type: str = field(default="maxent", metadata={"help": f"Not a choice here: {_CHOSEN}."})
    scale_rewards: str = field(default="none", metadata={"help": f"Not a choice here: {_RAW}."})
    beta: float | None = field(default=None, metadata={"help": "Another name for init_kl_coeff."})
    init_kl_coeff: float | None = field(
        default=None, metadata={"help": "β, the target's pull towards its anchor. Unset: 0.0."}
    )
    kl_penalty: float = field(
        default=0.0, metadata={"help": "Coefficient of a token-level KL to the reference, beside the method."}
    )
    maxent_fused_head: bool = field(
        default=False, metadata={"help": "Take the weighted NLL through the LM head in one pass."}
    )
    maxent_measure_every: int = field(
        default=0,
        metadata={"help": "Optimiser steps between measurements of gap and KL before and after an update; 0: never."},
    )
    entropy_coef: float = field(
        default=0.0,
        metadata={"help": "Coefficient of an entropy bonus: the mean over tokens, candidates and groups."},
    )

    def __post_init__(self) -> None:
        """Let TRL check its fields, then refuse what would change the method, then settle β."""
        super().__post_init__()
        self.expect_supported()
        self.beta = self.init_kl_coeff = self.maxent_config().beta

    @property
    def beta_of_trl(self) -> float:
        """What TRL is to take for its beta, which only makes it load a reference model and score with it."""
        config = self.maxent_config()
        return config.beta if config.needs_reference else self.kl_penalty

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
        names = [f"maxent_{known.name}" for known in dataclasses.fields(MaxEntConfig)]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        defaults = {
            "maxent_max_length": self.max_completion_length,
            "maxent_clip_low": self.epsilon,
            "maxent_clip_high": self.epsilon if self.epsilon_high is None else self.epsilon_high,
        }
        return MaxEntConfig.from_recipe(defaults | given | {"init_kl_coeff": self._init_kl_coeff()})

    def expect_supported(self) -> None:
        """Refuse, by name, the options that the trainer cannot honour."""
        for name, (value, reason) in REFUSED.items():
            expect(getattr(self, name) == value, f"{name}={value!r} ({reason})", **{name: getattr(self, name)})
        expect_in("kl_penalty", self.kl_penalty, 0.0)
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
        whole_batch = self.kl_penalty != 0 or self.entropy_coef != 0
        expect(
            config.keep_fraction is None or not whole_batch,
            "kl_penalty=0 and entropy_coef=0 with maxent_keep_fraction (they need the candidates that it drops)",
            kl_penalty=self.kl_penalty,
            entropy_coef=self.entropy_coef,
        )
        candidates = max(self.num_generations, self.num_generations_eval or 0)
        expect(
            candidates * config.q_eps <= 1,
            f"maxent_q_eps <= 1/K with K={candidates} generations a prompt",
            maxent_q_eps=config.q_eps,
        )
        expect(
            config.projection != "surrogate" or config.beta == 0,
            "init_kl_coeff=0 with maxent_projection='surrogate' (its weights have no anchor; see kl_penalty)",
            init_kl_coeff=config.beta,
        )
        expect(
            not self.sync_ref_model or self.beta_of_trl != 0,
            "sync_ref_model=False without a reference (init_kl_coeff > 0 with maxent_anchor='reference', or "
            "kl_penalty > 0)",
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

    def _init_kl_coeff(self) -> float:
        """Return β, once all of its names agree."""
        names = ("init_kl_coeff", "beta", "maxent_beta")
        given = {name: float(value) for name in names if (value := getattr(self, name)) is not None}
        expect(len(set(given.values())) <= 1, "init_kl_coeff, beta and maxent_beta to agree", **given)
        return next(iter(given.values()), 0.0)
