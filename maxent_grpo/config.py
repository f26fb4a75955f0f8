"""The settings of the method: one frozen dataclass, from Python, the environment or a recipe."""

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from maxent_grpo._checks import expect
from maxent_grpo._settings_checks import expect_settings
from maxent_grpo._settings_parsing import parse_setting
from maxent_grpo.transforms import find_transform, list_inputs

logger = logging.getLogger(__name__)

Anchor = Literal["reference", "old", "none"]
Baseline = Literal["mean", "none"]
Projection = Literal["mle", "listwise", "regression", "surrogate"]
Skip = Literal["none", "equal", "all_min"]
NllReduction = Literal["sum", "mean", "max_length"]

_ENVIRONMENT = {
    "MAXENT_TAU": "tau",
    "MAXENT_Q_TEMPERATURE": "q_temperature",
    "MAXENT_Q_EPS": "q_eps",
    "MAXENT_LENGTH_NORM_REF": "length_normalize_ref",
}


@dataclass(frozen=True, kw_only=True)
class MaxEntConfig:
    """All knobs of the method; the defaults are the method as published.

    Attributes:
        tau: τ >= 0, the entropy temperature of the target.
        beta: β >= 0, the pull towards the anchor (`init_kl_coeff` in recipes).
        q_temperature: T > 0 of the listwise softmax.
        q_eps: ε >= 0, the least probability in q; K·ε <= 1.
        length_normalize_ref: divide the reference's sequence log-probabilities by the candidates' lengths.
        anchor: whose log-probabilities make ρ: the frozen reference's, the rollout policy's, or nobody's (β = 0).
        utility_transform: what is done to rewards first, by names of `maxent_grpo.transforms` (raw, rank, zscore,
            ips, gapo, darling, unlikeliness, ucpo) or a function's dotted path; several are applied in order.
        projection: how the policy is fitted to the target: `mle` (coefficients π*), `listwise` (π* − p),
            `regression` (log π* − log p less its mean, over K) or `surrogate` (advantages times
            softmax(U/surrogate_tau), eq. (8); the target is not used).
        center: subtract 1/K from the `mle` coefficients.
        dedup: κ in [0, 1], the part of the sampling frequency that is taken back from duplicates; 1 is IPS-GRPO's
            (arXiv 2601.21669).
        soft_dedup: α >= 0, by which right answers are discounted for their likelihood instead, without keys.
        success_power: a; coefficients are multiplied by (the group's mean utility)^a, utilities in [0, 1]. Where
            one is not, the coefficients of its group are NaN.
        failure_power: b; they are multiplied by (1 - the group's mean utility)^b.
        distinct_power: d; they are multiplied by (the number of different right answers)^d.
        pass_k: k; they are multiplied by what makes pass@k the aim, utilities in [0, 1] and 1 <= k < K.
        pass_k_normalize: divide that by k times the deviation of pass@k in the group.
        skip: which groups get coefficients of 0: none, those of equal utilities, or those without a success.
        min_utility: the highest utility of a failure, for skip="all_min".
        nll_reduction: a candidate's NLL is a sum over tokens, their mean, or their sum over `max_length`.
        max_length: T_max, the constant of nll_reduction="max_length" and of the surrogate.
        clip_low: how far below 1 a token's ratio to the rollout policy may act, in [0, 1].
        clip_high: how far above 1 it may act.
        surrogate_tau: temperature of the surrogate's candidate weights, > 0; inf weighs them equally.
        baseline: what is subtracted from the surrogate's utilities: their mean in the group, or nothing.
        target_ess: effective sample size of the target; replaces τ by each group's own where given.
        keep_fraction: fraction of the non-zero coefficients that survive pruning, in (0, 1]; None prunes nothing.
        bank_weight: λ >= 0, of the rehearsal of right answers found earlier, eq. (9); set to 0 they are drawn and
            change no gradient.
        bank_capacity: answers that are kept for each prompt, one of each kind.
        bank_prompts: R, prompts whose answers are rehearsed in each optimiser step.

    Raises:
        ValueError: naming the field and its value, on values out of range and on settings that exclude
            one another: both τ and β infinite, β > 0 without an anchor, center outside `mle`, both dedup and
            soft_dedup, a surrogate with an NLL per token, an effective sample size or soft_dedup, a regression
            with τ = β = 0 or an effective sample size.

    >>> MaxEntConfig(tau=-1.0)
    Traceback (most recent call last):
    ValueError: Expected tau >= 0, got tau=-1.0.
    """

    tau: float = 0.2
    beta: float = 0.0
    q_temperature: float = 1.0
    q_eps: float = 1e-6
    length_normalize_ref: bool = True
    anchor: Anchor = "reference"
    utility_transform: str | tuple[str, ...] = "raw"
    projection: Projection = "mle"
    center: bool = False
    dedup: float = 0.0
    soft_dedup: float = 0.0
    success_power: float = 0.0
    failure_power: float = 0.0
    distinct_power: float = 0.0
    pass_k: int | None = None
    pass_k_normalize: bool = False
    skip: Skip = "none"
    min_utility: float = 0.0
    nll_reduction: NllReduction = "sum"
    max_length: int | None = None
    clip_low: float = 0.2
    clip_high: float = 0.2
    surrogate_tau: float = math.inf
    baseline: Baseline = "mean"
    target_ess: float | None = None
    keep_fraction: float | None = None
    bank_weight: float = 0.0
    bank_capacity: int = 16
    bank_prompts: int = 1

    def __post_init__(self) -> None:
        """Check every field, then the fields against one another."""
        _expect_fields(vars(self), {})

    @property
    def needs_reference(self) -> bool:
        """Whether the target cannot be had without the reference model's log-probabilities."""
        return self.anchor == "reference" and self.beta > 0

    @property
    def needs_old_logps(self) -> bool:
        """Whether the coefficients cannot be had without the rollout policy's log-probabilities."""
        by_anchor = self.anchor == "old" and self.beta > 0
        by_projection = self.projection in ("listwise", "regression")
        return by_anchor or by_projection or self.soft_dedup > 0 or self._reads("old_logps")

    @property
    def needs_keys(self) -> bool:
        """Whether the target cannot be had without knowing which candidates are the same answer."""
        return self.dedup > 0 or self.distinct_power != 0 or self._reads("counts")

    @property
    def needs_right(self) -> bool:
        """Whether it matters which candidates are right: above `min_utility`, if nobody says otherwise."""
        by_group = self.skip == "all_min" or self.distinct_power != 0 or self.pass_k is not None
        return by_group or self.soft_dedup > 0 or self.bank_weight > 0 or self._reads("right")

    @property
    def moves_equal_groups(self) -> bool:
        """Whether centred weights of candidates that are equally good can differ."""
        return self.dedup > 0 or self.soft_dedup > 0 or self.beta > 0

    @property
    def transforms(self) -> tuple[str, ...]:
        """The names of the transforms of utilities, in order."""
        names = self.utility_transform
        return (names,) if isinstance(names, str) else tuple(names)

    def _reads(self, name: str) -> bool:
        return any(name in list_inputs(find_transform(transform)) for transform in self.transforms)

    @classmethod
    def diverse(cls, *, max_length: int | None = None) -> Self:
        """Return the measured recipe for keeping several kinds of right answer alive.

        Centred weights, the sampling frequency taken back from identical answers, groups without any success
        skipped, and NLLs divided by the constant `max_length` (the generation limit; the adapters of trainers fill
        it in). As τ → 0, κ = 1 is IPS-GRPO (arXiv 2601.21669) up to a positive factor per group.

        Measured in benchmarks/study, on answers short enough to be sampled twice: where reasoning makes every
        text different, answers are the same only by keys of your own (`answer_keys`, TRL's `key_func`).

        >>> MaxEntConfig.diverse(max_length=256).dedup
        1.0
        """
        return cls(
            center=True,
            dedup=1.0,
            skip="all_min",
            nll_reduction="max_length",
            max_length=max_length,
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return the defaults with what the environment sets.

        Reads MAXENT_TAU, MAXENT_Q_TEMPERATURE, MAXENT_Q_EPS and MAXENT_LENGTH_NORM_REF ("1", "0", "true" or
        "false") from `environ`, by default the process's.

        Raises:
            ValueError: on a value that cannot be read, or another variable named MAXENT_…, by its name.

        >>> MaxEntConfig.from_env({"MAXENT_TAU": "0.5"}).tau
        0.5
        """
        variables = {name: variable for variable, name in _ENVIRONMENT.items()}
        return cls._build(_environment_fields(os.environ if environ is None else environ), variables)

    @classmethod
    def from_recipe(
        cls,
        recipe: Mapping[str, Any],
        environ: Mapping[str, str] | None = None,
        *,
        defaults: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return the settings of a recipe: a mapping with `maxent_<field>` entries and `init_kl_coeff` for β.

        `maxent_preset`, "published" or "diverse", stands for a whole recipe. An entry for a field beats the preset,
        which beats the environment (`from_env`), which beats the default. A line says so where a preset overrides the
        environment. Entries that do not start with `maxent_` belong to the trainer, those of `ADAPTER_ENTRIES` to an
        adapter, and are left alone.

        Args:
            recipe: the entries.
            environ: the environment; by default the process's.
            defaults: fields whose defaults are others here.

        Raises:
            ValueError: on an unknown `maxent_` entry, a value that cannot be read, or an `init_kl_coeff`
                that contradicts `maxent_beta`, by its name.

        >>> MaxEntConfig.from_recipe({"maxent_tau": "0.5", "init_kl_coeff": 0.1, "learning_rate": 1e-6}, {}).beta
        0.1
        >>> MaxEntConfig.from_recipe({"maxent_preset": "diverse", "maxent_dedup": 0.5}, {}).center
        True
        """
        entries = _recipe_fields(recipe)
        environment = _environment_fields(os.environ if environ is None else environ)
        names = {name: _name_source(name, recipe, environment) for name in _TYPES}
        preset = recipe.get("maxent_preset")
        if preset is None:
            return cls._build({**(defaults or {}), **environment, **entries}, names)
        expect(preset in PRESETS, f"maxent_preset to be one of {list(PRESETS)}", maxent_preset=preset)
        fields = vars(PRESETS[preset]())
        for variable, name in _ENVIRONMENT.items():
            if name not in entries and environment.get(name, fields[name]) != fields[name]:
                _say_once(f"maxent_preset={preset} overrides {variable}={environment[name]} with {fields[name]}.")
        return cls._build({**fields, **entries}, names)

    @classmethod
    def _build(cls, fields: Mapping[str, Any], names: Mapping[str, str]) -> Self:
        """Return settings; complaints call fields as their source does."""
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        _expect_fields(defaults | dict(fields), names)
        return cls(**fields)


PRESETS: dict[str, Callable[[], MaxEntConfig]] = {"published": MaxEntConfig, "diverse": MaxEntConfig.diverse}
"""Whole recipes by the name that `maxent_preset` gives them."""

ADAPTER_ENTRIES = ("maxent_preset", "maxent_fused_head", "maxent_measure_every")
"""Entries of a recipe that are no fields of the method: adapters read them."""

_TYPES: dict[str, Any] = get_type_hints(MaxEntConfig)
_CHOICES = {name: get_args(hint) for name, hint in _TYPES.items() if get_origin(hint) is Literal}


def _expect_fields(values: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Check fields, and that there are transforms of the names that are asked for."""
    expect_settings(values, names, _CHOICES)
    field, transforms = names.get("utility_transform", "utility_transform"), values["utility_transform"]
    listed = (transforms,) if isinstance(transforms, str) else transforms
    texts = isinstance(listed, tuple) and all(isinstance(name, str) for name in listed)
    expect(texts, f"{field} to be a name or a tuple of names", **{field: transforms})
    for name in listed:
        find_transform(name, field)


def _recipe_fields(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the method that a recipe sets, parsed."""
    fields: dict[str, Any] = {}
    for key, value in recipe.items():
        if key.startswith("maxent_") and key not in ADAPTER_ENTRIES:
            name = key.removeprefix("maxent_")
            known = [*(f"maxent_{field}" for field in _TYPES), *ADAPTER_ENTRIES]
            expect(name in _TYPES, f"a maxent_ entry to be one of {known}", entry=key)
            fields[name] = parse_setting(key, value, _TYPES[name])
    if recipe.get("init_kl_coeff") is not None:
        beta = parse_setting("init_kl_coeff", recipe["init_kl_coeff"], float)
        expect(
            fields.get("beta", beta) == beta,
            "init_kl_coeff and maxent_beta to agree",
            init_kl_coeff=beta,
            maxent_beta=fields.get("beta"),
        )
        fields["beta"] = beta
    return fields


def _name_source(name: str, recipe: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Return what the user calls a field: its entry in a recipe, or the variable that sets it."""
    entry = f"maxent_{name}"
    if name == "beta" and entry not in recipe:
        return "init_kl_coeff"
    variables = {field: variable for variable, field in _ENVIRONMENT.items()}
    return variables[name] if name in environment and entry not in recipe else entry


def _environment_fields(environ: Mapping[str, str]) -> dict[str, Any]:
    fields = {}
    for variable, value in environ.items():
        if variable.startswith("MAXENT_"):
            expect(
                variable in _ENVIRONMENT,
                f"a MAXENT_ variable to be one of {list(_ENVIRONMENT)}",
                variable=variable,
            )
            name = _ENVIRONMENT[variable]
            fields[name] = parse_setting(variable, value, _TYPES[name])
    return fields


@functools.cache
def _say_once(line: str) -> None:
    """Log a line unless it was logged before: adapters read their settings again and again."""
    logger.warning(line)
