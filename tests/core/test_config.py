"""The settings: published defaults, what is refused, and who beats whom between recipe, environment and default."""

import dataclasses
import math

import pytest

from maxent_grpo import MaxEntConfig

INF, NAN = math.inf, math.nan

PUBLISHED = {
    "tau": 0.2, "beta": 0.0, "q_temperature": 1.0, "q_eps": 1e-6, "length_normalize_ref": True,
    "anchor": "reference", "utility_transform": "raw", "projection": "mle", "center": False, "dedup": 0.0,
    "success_power": 0.0, "skip": "none", "min_utility": 0.0, "nll_reduction": "sum", "max_length": None,
    "clip_low": 0.2, "clip_high": 0.2, "surrogate_tau": INF, "target_ess": None, "keep_fraction": None,
    "soft_dedup": 0.0, "failure_power": 0.0, "distinct_power": 0.0, "pass_k": None, "pass_k_normalize": False,
    "baseline": "mean", "bank_weight": 0.0, "bank_capacity": 16, "bank_prompts": 1,
}  # fmt: skip

REFUSED = [
    ({"tau": -0.1}, "Expected tau >= 0, got tau=-0.1."),
    ({"tau": NAN}, "Expected tau >= 0, got tau=nan."),
    ({"tau": "0.2"}, "Expected tau to be a number, got tau='0.2'."),
    ({"tau": True}, "Expected tau to be a number, got tau=True."),
    ({"beta": -1}, "Expected beta >= 0, got beta=-1."),
    ({"beta": NAN}, "Expected beta >= 0, got beta=nan."),
    ({"tau": INF, "beta": INF}, "Expected tau or beta to be finite, got tau=inf, beta=inf."),
    ({"q_temperature": 0}, "Expected q_temperature > 0, got q_temperature=0."),
    ({"q_eps": -1e-6}, "Expected q_eps >= 0, got q_eps=-1e-06."),
    ({"length_normalize_ref": 1}, "Expected length_normalize_ref to be True or False, got length_normalize_ref=1."),
    ({"anchor": "frozen"}, "Expected anchor to be one of ['reference', 'old', 'none'], got anchor='frozen'."),
    ({"utility_transform": "log"}, "Expected utility_transform to be one of ['raw', 'rank', 'zscore', 'ips', "),
    ({"utility_transform": ("gapo", "torch.nonsense")}, "path, got utility_transform='torch.nonsense'."),
    ({"utility_transform": ["gapo"]}, "Expected utility_transform to be a name or a tuple of names, got "),
    ({"utility_transform": "operator.add"}, "Expected utility_transform='operator.add' to read ['mask', 'right', "),
    ({"soft_dedup": -1.0}, "Expected soft_dedup >= 0, got soft_dedup=-1.0."),
    (
        {"soft_dedup": 1.0, "dedup": 0.5},
        "Expected dedup=0 or soft_dedup=0 (each takes back what was sampled often), ",
    ),
    ({"soft_dedup": 1.0, "projection": "surrogate"}, "target_ess=None, soft_dedup=1.0."),
    ({"baseline": "none"}, "Expected projection='surrogate' with baseline='none' (targets have no baseline"),
    ({"failure_power": NAN}, "got failure_power=nan."),
    ({"distinct_power": -INF}, "got distinct_power=-inf."),
    ({"pass_k": 0}, "Expected pass_k to be a whole number >= 1, got pass_k=0."),
    ({"pass_k": 2.0}, "Expected pass_k to be a whole number >= 1, got pass_k=2.0."),
    ({"pass_k_normalize": True}, "Expected pass_k with pass_k_normalize=True, got pass_k=None."),
    ({"bank_weight": -0.1}, "Expected bank_weight >= 0, got bank_weight=-0.1."),
    ({"bank_capacity": 0}, "Expected bank_capacity to be a whole number >= 1, got bank_capacity=0."),
    ({"bank_prompts": 1.5}, "Expected bank_prompts to be a whole number >= 1, got bank_prompts=1.5."),
    (
        {"projection": "kl"},
        "Expected projection to be one of ['mle', 'listwise', 'regression', 'surrogate'], got projection='kl'.",
    ),
    ({"skip": None}, "Expected skip to be one of ['none', 'equal', 'all_min'], got skip=None."),
    (
        {"nll_reduction": "avg"},
        "Expected nll_reduction to be one of ['sum', 'mean', 'max_length'], got nll_reduction='avg'.",
    ),
    ({"center": "yes"}, "Expected center to be True or False, got center='yes'."),
    ({"anchor": "none", "beta": 0.1}, "Expected beta=0 with anchor='none', got beta=0.1."),
    ({"center": True, "projection": "listwise"}, "Expected projection='mle' with center=True "),
    ({"center": True, "projection": "surrogate"}, "got projection='surrogate'."),
    ({"nll_reduction": "mean", "projection": "surrogate"}, "projection='surrogate' (it divides by max_length"),
    ({"target_ess": 2.0, "projection": "surrogate"}, "got nll_reduction='sum', target_ess=2.0, soft_dedup=0.0."),
    ({"dedup": 1.5}, "Expected dedup >= 0 and <= 1, got dedup=1.5."),
    ({"success_power": INF}, "got success_power=inf."),
    ({"min_utility": NAN}, "got min_utility=nan."),
    ({"max_length": 0}, "Expected max_length >= 1, got max_length=0."),
    ({"clip_low": 1.1}, "Expected clip_low >= 0 and <= 1, got clip_low=1.1."),
    ({"clip_high": -0.1}, "Expected clip_high >= 0, got clip_high=-0.1."),
    ({"surrogate_tau": 0.0}, "Expected surrogate_tau > 0, got surrogate_tau=0.0."),
    ({"target_ess": 0.5}, "Expected target_ess >= 1, got target_ess=0.5."),
    ({"target_ess": 2.0, "beta": INF}, "Expected a finite beta with target_ess"),
    ({"keep_fraction": 0.0}, "Expected keep_fraction > 0 and <= 1, got keep_fraction=0.0."),
    ({"keep_fraction": 1.1}, "Expected keep_fraction > 0 and <= 1, got keep_fraction=1.1."),
]


def test_defaults_are_the_method_as_published():
    assert dataclasses.asdict(MaxEntConfig()) == PUBLISHED


def test_diverse_is_the_measured_recipe():
    changed = {"center": True, "dedup": 1.0, "skip": "all_min", "nll_reduction": "max_length"}
    assert dataclasses.asdict(MaxEntConfig.diverse()) == PUBLISHED | changed
    assert MaxEntConfig.diverse(max_length=64).max_length == 64


def test_settings_are_frozen_and_given_by_name():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MaxEntConfig().tau = 1.0
    with pytest.raises(TypeError):
        MaxEntConfig(0.2)


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(fields) for fields, _ in REFUSED])
def test_bad_settings_are_refused_by_name_and_value(fields, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        MaxEntConfig(**fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"tau": 0},
        {"tau": INF},
        {"beta": INF},
        {"tau": 0.0, "beta": 0.0},
        {"keep_fraction": 1.0},
        {"target_ess": 1},
        {"q_eps": 0},
    ],
)
def test_limits_are_allowed(fields):
    MaxEntConfig(**fields)


def test_says_which_log_probabilities_it_needs():
    assert not MaxEntConfig().needs_reference
    assert MaxEntConfig(beta=0.1).needs_reference
    assert not MaxEntConfig(beta=0.1, anchor="old").needs_reference
    assert MaxEntConfig(beta=0.1, anchor="old").needs_old_logps
    assert MaxEntConfig(projection="listwise").needs_old_logps
    assert MaxEntConfig(projection="regression").needs_old_logps
    assert not MaxEntConfig(beta=0.1).needs_old_logps


def test_says_what_its_transforms_and_discounts_need():
    assert not MaxEntConfig(utility_transform="zscore").needs_keys
    assert MaxEntConfig(dedup=0.5).needs_keys
    assert MaxEntConfig(distinct_power=-1.0).needs_keys
    assert MaxEntConfig(utility_transform=("gapo", "zscore")).needs_keys
    assert MaxEntConfig(soft_dedup=0.5).needs_old_logps
    assert MaxEntConfig(utility_transform="unlikeliness").needs_old_logps
    assert not MaxEntConfig(utility_transform="gapo").needs_old_logps


class TestEnvironment:
    def test_sets_four_fields(self):
        environ = {
            "MAXENT_TAU": "0.5", "MAXENT_Q_TEMPERATURE": " 2 ", "MAXENT_Q_EPS": "1e-4",
            "MAXENT_LENGTH_NORM_REF": "0", "HOME": "/root",
        }  # fmt: skip
        expected = MaxEntConfig(tau=0.5, q_temperature=2.0, q_eps=1e-4, length_normalize_ref=False)
        assert MaxEntConfig.from_env(environ) == expected

    def test_is_the_process_environment_by_default(self, monkeypatch):
        monkeypatch.setenv("MAXENT_TAU", "inf")
        assert MaxEntConfig.from_env() == MaxEntConfig(tau=INF)
        assert MaxEntConfig.from_recipe({}) == MaxEntConfig(tau=INF)
        monkeypatch.delenv("MAXENT_TAU")
        assert MaxEntConfig.from_env() == MaxEntConfig()

    @pytest.mark.parametrize(("text", "value"), [("1", True), ("0", False), ("true", True), ("False", False)])
    def test_reads_booleans(self, text, value):
        assert MaxEntConfig.from_env({"MAXENT_LENGTH_NORM_REF": text}).length_normalize_ref is value

    @pytest.mark.parametrize(
        ("variable", "text", "message"),
        [
            ("MAXENT_TAU", "warm", "Expected MAXENT_TAU to be a float, got MAXENT_TAU='warm'."),
            ("MAXENT_TAU", "", "Expected MAXENT_TAU to have a value, got MAXENT_TAU=''."),
            ("MAXENT_TAU", "-1", "Expected MAXENT_TAU >= 0, got MAXENT_TAU=-1.0."),
            ("MAXENT_TAU", "nan", "Expected MAXENT_TAU >= 0, got MAXENT_TAU=nan."),
            (
                "MAXENT_LENGTH_NORM_REF",
                "yes",
                "Expected MAXENT_LENGTH_NORM_REF to be a bool, got MAXENT_LENGTH_NORM_REF='yes'.",
            ),
            ("MAXENT_TEMPERATURE", "1", "got variable='MAXENT_TEMPERATURE'."),
        ],
    )
    def test_names_what_it_cannot_read(self, variable, text, message):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            MaxEntConfig.from_env({variable: text})
        assert message in str(error.value)


class TestRecipe:
    def test_beats_the_environment_which_beats_the_default(self):
        environ = {"MAXENT_TAU": "0.5", "MAXENT_Q_EPS": "1e-3"}
        config = MaxEntConfig.from_recipe({"maxent_tau": 0.7}, environ)
        assert (config.tau, config.q_eps, config.q_temperature) == (0.7, 1e-3, 1.0)

    def test_takes_every_field_as_yaml_or_text(self):
        recipe = {
            "maxent_tau": "0.5", "maxent_center": "true", "maxent_dedup": 0.5, "maxent_skip": "all_min",
            "maxent_max_length": "256", "maxent_nll_reduction": "max_length", "maxent_keep_fraction": None,
            "maxent_target_ess": "none", "init_kl_coeff": "0.1", "learning_rate": 1e-6, "init_kl": 3,
        }  # fmt: skip
        expected = MaxEntConfig(
            tau=0.5, center=True, dedup=0.5, skip="all_min", max_length=256, nll_reduction="max_length", beta=0.1
        )
        assert MaxEntConfig.from_recipe(recipe, {}) == expected

    def test_all_fields_survive_a_round_trip(self):
        config = MaxEntConfig.diverse(max_length=32)
        recipe = {f"maxent_{name}": value for name, value in dataclasses.asdict(config).items()}
        assert MaxEntConfig.from_recipe(recipe, {}) == config

    @pytest.mark.parametrize("names", ["gapo, zscore", ["gapo", "zscore"], ("gapo", "zscore")])
    def test_takes_several_transforms_as_a_list_or_a_text(self, names):
        assert MaxEntConfig.from_recipe({"maxent_utility_transform": names}, {}).transforms == ("gapo", "zscore")
        assert MaxEntConfig.from_recipe({"maxent_utility_transform": "rank"}, {}).utility_transform == "rank"
        with pytest.raises(ValueError, match=r"Expected maxent_utility_transform to be names, got .*\[1\]"):
            MaxEntConfig.from_recipe({"maxent_utility_transform": [1]}, {})
        with pytest.raises(ValueError, match=r"Expected maxent_utility_transform to be one of .*='loud'"):
            MaxEntConfig.from_recipe({"maxent_utility_transform": "zscore,loud"}, {})

    def test_none_is_a_choice_where_it_is_one(self):
        config = MaxEntConfig.from_recipe({"maxent_skip": "none", "maxent_anchor": "none"}, {})
        assert (config.skip, config.anchor) == ("none", "none")

    def test_beta_has_two_names_that_must_agree(self):
        assert MaxEntConfig.from_recipe({"init_kl_coeff": 0.1, "maxent_beta": "0.1"}, {}).beta == 0.1
        assert MaxEntConfig.from_recipe({"init_kl_coeff": None}, {}).beta == 0.0
        with pytest.raises(ValueError, match=r"init_kl_coeff=0.1, maxent_beta=0.2"):
            MaxEntConfig.from_recipe({"init_kl_coeff": 0.1, "maxent_beta": 0.2}, {})

    @pytest.mark.parametrize(
        ("recipe", "message"),
        [
            ({"maxent_temperature": 1.0}, "got entry='maxent_temperature'."),
            ({"maxent_tau": "hot"}, "Expected maxent_tau to be a float, got maxent_tau='hot'."),
            ({"maxent_tau": None}, "Expected maxent_tau to have a value, got maxent_tau=None."),
            ({"maxent_tau": True}, "Expected maxent_tau to be a float, got maxent_tau=True."),
            ({"maxent_tau": [1]}, "Expected maxent_tau to be a float, got maxent_tau=[1]."),
            ({"maxent_center": "maybe"}, "Expected maxent_center to be a bool, got maxent_center='maybe'."),
            ({"maxent_max_length": 2.5}, "Expected maxent_max_length to be a int, got maxent_max_length=2.5."),
            (
                {"maxent_skip": "some"},
                "Expected maxent_skip to be one of ['none', 'equal', 'all_min'], got maxent_skip='some'.",
            ),
            ({"init_kl_coeff": "big"}, "Expected init_kl_coeff to be a float, got init_kl_coeff='big'."),
            (
                {"maxent_keep_fraction": 2},
                "Expected maxent_keep_fraction > 0 and <= 1, got maxent_keep_fraction=2.0.",
            ),
        ],
    )
    def test_names_what_it_cannot_read(self, recipe, message):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            MaxEntConfig.from_recipe(recipe, {})
        assert message in str(error.value)


class TestPreset:
    def test_stands_for_a_whole_recipe(self):
        assert MaxEntConfig.from_recipe({"maxent_preset": "published"}, {}) == MaxEntConfig()
        assert MaxEntConfig.from_recipe({"maxent_preset": "diverse"}, {}) == MaxEntConfig.diverse()
        assert MaxEntConfig.from_recipe({"maxent_preset": None}, {}) == MaxEntConfig()

    def test_is_beaten_by_fields_beside_it(self):
        recipe = {"maxent_preset": "diverse", "maxent_dedup": 0.5, "init_kl_coeff": 0.1, "maxent_max_length": 8}
        expected = dataclasses.replace(MaxEntConfig.diverse(max_length=8), dedup=0.5, beta=0.1)
        assert MaxEntConfig.from_recipe(recipe, {}) == expected

    def test_beats_the_environment_and_says_so_once(self, caplog):
        recipe, environ = {"maxent_preset": "diverse"}, {"MAXENT_TAU": "0.625", "MAXENT_Q_EPS": "1e-6"}
        for _ in range(2):
            assert MaxEntConfig.from_recipe(recipe, environ).tau == MaxEntConfig.diverse().tau
        lines = [record.getMessage() for record in caplog.records]
        assert lines == ["maxent_preset=diverse overrides MAXENT_TAU=0.625 with 0.2."]

    def test_says_nothing_where_the_recipe_has_the_field(self, caplog):
        recipe = {"maxent_preset": "published", "maxent_tau": 0.3}
        assert MaxEntConfig.from_recipe(recipe, {"MAXENT_TAU": "0.875"}).tau == 0.3
        assert caplog.records == []

    def test_beats_other_defaults_which_the_environment_beats(self):
        defaults = {"nll_reduction": "mean", "tau": 0.4}
        assert MaxEntConfig.from_recipe({"maxent_preset": "published"}, {}, defaults=defaults) == MaxEntConfig()
        config = MaxEntConfig.from_recipe({}, {"MAXENT_TAU": "0.5"}, defaults=defaults)
        assert (config.nll_reduction, config.tau) == ("mean", 0.5)

    def test_of_another_name_is_refused(self):
        with pytest.raises(ValueError, match=r"one of \['published', 'diverse'\], got maxent_preset='best'"):
            MaxEntConfig.from_recipe({"maxent_preset": "best"}, {})


def test_entries_of_adapters_are_left_alone_and_no_others():
    entries = {"maxent_fused_head": True, "maxent_measure_every": 10}
    assert MaxEntConfig.from_recipe(entries, {}) == MaxEntConfig()
    with pytest.raises(ValueError, match="got entry='maxent_fused_heads'"):
        MaxEntConfig.from_recipe({"maxent_fused_heads": True}, {})
