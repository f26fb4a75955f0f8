"""Whether values of `MaxEntConfig` are in range and go together; complaints call each field as its user does."""

import math
from collections.abc import Mapping
from typing import Any

from maxent_grpo._checks import LARGEST, expect, expect_in, expect_number

Names = Mapping[str, str]
Choices = Mapping[str, tuple[str, ...]]


def expect_settings(values: Mapping[str, Any], names: Names, choices: Choices) -> None:
    """Check every field, then the fields against one another.

    Args:
        values: all fields.
        names: what the user calls a field, where that is not its name.
        choices: what the fields that are a choice may be.
    """
    names = {name: names.get(name, name) for name in values}
    _expect_kinds(values, names, choices)
    _expect_ranges(values, names)
    _expect_combinations(values, names)


def _expect_kinds(values: Mapping[str, Any], names: Names, choices: Choices) -> None:
    for field, known in choices.items():
        name, value = names[field], values[field]
        expect(value in known, f"{name} to be one of {list(known)}", **{name: value})
    for field in ("length_normalize_ref", "center", "pass_k_normalize"):
        name, value = names[field], values[field]
        expect(isinstance(value, bool), f"{name} to be True or False", **{name: value})


def _expect_ranges(values: Mapping[str, Any], names: Names) -> None:
    whole = [field for field in ("pass_k", "bank_capacity", "bank_prompts") if values[field] is not None]
    for field in whole:
        name, value = names[field], values[field]
        number = isinstance(value, int) and not isinstance(value, bool)
        expect(number and value >= 1, f"{name} to be a whole number >= 1", **{name: value})
    for field in ("tau", "beta", "clip_high"):
        _expect_float32(names[field], values[field])
    for field in ("q_temperature", "surrogate_tau"):
        _expect_float32(names[field], values[field], open_low=True)
    expect_in(names["q_eps"], values["q_eps"], 0.0, LARGEST)
    for field in ("dedup", "clip_low"):
        expect_in(names[field], values[field], 0.0, 1.0)
    for field in ("soft_dedup", "bank_weight"):
        expect_in(names[field], values[field], 0.0, LARGEST)
    for field in ("success_power", "failure_power", "distinct_power", "min_utility"):
        expect_in(names[field], values[field], -LARGEST, LARGEST)
    for field in ("max_length", "target_ess"):
        if values[field] is not None:
            expect_in(names[field], values[field], 1.0, LARGEST)
    if values["keep_fraction"] is not None:
        expect_in(names["keep_fraction"], values["keep_fraction"], 0.0, 1.0, open_low=True)


def _expect_float32(name: str, value: object, *, open_low: bool = False) -> None:
    """Check a number from 0 that is infinite or has a float32: halves and float32 are calculated in float32."""
    expect_in(name, value, 0.0, math.inf if expect_number(name, value) == math.inf else LARGEST, open_low=open_low)


def _expect_combinations(values: Mapping[str, Any], names: Names) -> None:
    def expect_if(holds: bool, expectation: str, *fields: str) -> None:
        expect(holds, expectation, **{names[field]: values[field] for field in fields})

    tau, beta, projection = names["tau"], names["beta"], names["projection"]
    expect_if(not values["tau"] == values["beta"] == math.inf, f"{tau} or {beta} to be finite", "tau", "beta")
    total = values["tau"] + values["beta"]
    expect_if(total <= LARGEST or total == math.inf, f"{tau} + {beta} <= {LARGEST:g}, or inf", "tau", "beta")
    expect_if(values["anchor"] != "none" or values["beta"] == 0, f"{beta}=0 with {names['anchor']}='none'", "beta")
    expect_if(
        not values["center"] or values["projection"] == "mle",
        f"{projection}='mle' with {names['center']}=True (the other projections are centred by themselves)",
        "projection",
    )
    expect_if(
        values["projection"] != "regression" or (total > 0 and values["target_ess"] is None),
        f"{tau} + {beta} > 0 and {names['target_ess']}=None with {projection}='regression' (a weight of 0 has no "
        "logarithm)",
        "tau",
        "beta",
        "target_ess",
    )
    expect_if(
        values["projection"] != "surrogate"
        or (values["nll_reduction"] != "mean" and values["target_ess"] is None and values["soft_dedup"] == 0),
        f"{names['nll_reduction']} other than 'mean', {names['target_ess']}=None and {names['soft_dedup']}=0 with "
        f"{projection}='surrogate' (it divides by max_length and has no target)",
        "nll_reduction",
        "target_ess",
        "soft_dedup",
    )
    expect_if(
        values["soft_dedup"] == 0 or values["dedup"] == 0,
        f"{names['dedup']}=0 or {names['soft_dedup']}=0 (each takes back what was sampled often)",
        "dedup",
        "soft_dedup",
    )
    expect_if(
        values["baseline"] == "mean" or values["projection"] == "surrogate",
        f"{projection}='surrogate' with {names['baseline']}='none' (targets have no baseline; see center)",
        "projection",
    )
    expect_if(
        values["pass_k"] is not None or not values["pass_k_normalize"],
        f"{names['pass_k']} with {names['pass_k_normalize']}=True",
        "pass_k",
    )
    expect_if(
        values["target_ess"] is None or values["beta"] < math.inf,
        f"a finite {beta} with {names['target_ess']} (no τ changes the target of an infinite one)",
        "beta",
    )
