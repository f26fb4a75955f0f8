"""How a trainer's recipe becomes the method's settings, the same for every trainer's adapter."""

import inspect
import re
from collections.abc import Mapping
from typing import Any, get_type_hints

from maxent_grpo._checks import expect
from maxent_grpo.config import MaxEntConfig


def expect_group_size(config: MaxEntConfig, smallest: int, largest: int) -> None:
    """Expect settings that groups of so many candidates can have.

    Raises:
        ValueError: naming the setting as recipes do.
    """
    expect(largest * config.q_eps <= 1, f"maxent_q_eps <= 1/K with K={largest}", maxent_q_eps=config.q_eps)
    expect(
        config.pass_k is None or config.pass_k < smallest,
        f"maxent_pass_k < K={smallest} candidates per prompt",
        maxent_pass_k=config.pass_k,
    )


def read_settings(
    recipe: Mapping[str, Any],
    *,
    max_length: int | None,
    clip_low: float,
    clip_high: float,
    has_bank: bool = False,
) -> MaxEntConfig:
    """Return the settings of a recipe, on the scale of GRPO's loss.

    A candidate's NLL is divided by the generation limit unless the recipe or its `maxent_preset` says otherwise. That
    is the published direction divided by a constant, and gives its gradient the scale of TRL's loss_type="dr_grpo":
    learning rates and `max_grad_norm` of a GRPO recipe carry over.

    Args:
        recipe: `maxent_*` entries and `init_kl_coeff`; None where one is not set.
        max_length: the trainer's generation limit in tokens; `maxent_max_length` overrides it.
        clip_low: how far below 1 the trainer lets a ratio act; `maxent_clip_low` overrides it.
        clip_high: how far above 1; `maxent_clip_high` overrides it.
        has_bank: whether the trainer can rehearse right answers that were found earlier.

    Raises:
        ValueError: as `MaxEntConfig.from_recipe`; on a bank where the trainer has none.

    >>> read_settings({"maxent_tau": None}, max_length=256, clip_low=0.2, clip_high=0.2).nll_reduction
    'max_length'
    """
    options = {"maxent_max_length": max_length, "maxent_clip_low": clip_low, "maxent_clip_high": clip_high}
    fields = {name: value for name, value in recipe.items() if value is not None}
    config = MaxEntConfig.from_recipe(options | fields, defaults={"nll_reduction": "max_length"})
    expect(
        has_bank or config.bank_weight == 0,
        "maxent_bank_weight=0 (this trainer rehearses nothing)",
        maxent_bank_weight=config.bank_weight,
    )
    return config


def list_types() -> dict[str, Any]:
    """Return the type that each field of `MaxEntConfig` has as a flag: several names are one text with commas."""
    return get_type_hints(MaxEntConfig) | {"utility_transform": str}


def describe_fields() -> dict[str, str]:
    """Return the description of each field of `MaxEntConfig`, from its docstring, as argparse prints it."""
    attributes = inspect.cleandoc(MaxEntConfig.__doc__ or "").split("Attributes:")[1].split("Raises:")[0]
    entries = re.findall(r"^    (\w+): (.+?)(?=^    \w|\Z)", attributes, flags=re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()).replace("%", "%%") for name, text in entries}
