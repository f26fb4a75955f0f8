"""The composition: what each setting does to a rollout's groups, and that parts of a batch add up."""

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import maxent_grpo as mg
from maxent_grpo import MaxEntConfig, MaxEntObjective, reference
from support.strategies import INF, problems

NAN = math.nan
UTILITIES = torch.tensor([[1.0, 0.0, 0.5, 0.0], [1.0, 1.0, 1.0, 9.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
MASK = torch.tensor([[True] * 4, [True, True, True, False], [True] * 4])
LENGTHS = torch.tensor([[3, 2, 1, 4], [2, 2, 5, 1], [1, 2, 3, 4]])
KEYS = torch.tensor([[5, 6, 7, 6], [1, 1, 2, 1], [3, 3, 3, 3]])
REF = -torch.tensor([[3.0, 1.0, 2.0, 8.0], [1.0, 4.0, 2.0, NAN], [1.0, 1.0, 2.0, 2.0]], dtype=torch.float64)
OLD = -torch.tensor([[2.0, 2.0, 1.0, 6.0], [3.0, 1.0, 5.0, NAN], [2.0, 1.0, 1.0, 4.0]], dtype=torch.float64)


def build(**fields):
    objective = MaxEntObjective(MaxEntConfig(**fields))
    target = objective.target(UTILITIES, mask=MASK, lengths=LENGTHS, ref_logps=REF, old_logps=OLD, keys=KEYS)
    return objective, target


def coefficients(**fields):
    objective, target = build(**fields)
    return objective.coefficients(target, old_logps=OLD)


def plain_target(utilities=UTILITIES, anchors=None, tau=0.2, beta=0.0, mask=MASK):
    q = mg.listwise_q(utilities, mask=mask)
    return mg.tempered_target(q, anchors, tau=tau, beta=beta, mask=mask)


class TestTarget:
    def test_is_the_tempered_target_of_the_utilities(self):
        _, target = build()
        assert_close(target.weights, plain_target())
        assert_close(target.log_weights.exp(), target.weights)
        assert_close(target.log_q, mg.listwise_log_q(UTILITIES, mask=MASK))
        assert torch.equal(target.tau, torch.full((3,), 0.2, dtype=torch.float64))
        assert target.informative.tolist() == [True, False, False]
        assert torch.equal(target.mask, MASK)

    @pytest.mark.parametrize(
        ("fields", "anchors"),
        [
            ({}, REF / LENGTHS),
            ({"length_normalize_ref": False}, REF),
            ({"anchor": "old"}, OLD),
            ({"anchor": "old", "nll_reduction": "mean"}, OLD / LENGTHS),
            ({"anchor": "old", "nll_reduction": "max_length", "max_length": 8}, OLD),
        ],
    )
    def test_anchor_is_whose_and_how_the_setting_says(self, fields, anchors):
        _, target = build(beta=0.4, **fields)
        assert_close(target.weights, plain_target(anchors=anchors, beta=0.4))
        assert_close(target.anchor_logps[MASK], anchors[MASK])

    def test_anchor_none_has_none(self):
        _, target = build(anchor="none")
        assert target.anchor_logps is None
        assert_close(target.weights, plain_target())

    def test_ranks_and_z_scores_replace_the_utilities(self):
        _, ranked = build(utility_transform="rank")
        assert_close(ranked.weights, plain_target(mg.rank_utilities(UTILITIES, mask=MASK)))
        _, standard = build(utility_transform="zscore")
        assert_close(standard.weights, plain_target(mg.standardize_utilities(UTILITIES, mask=MASK)))

    def test_empty_completions_do_not_count(self):
        lengths = LENGTHS.clone()
        lengths[0, 1] = 0
        mask = MASK.clone()
        mask[0, 1] = False
        target = MaxEntObjective(MaxEntConfig()).target(UTILITIES, mask=MASK, lengths=lengths)
        assert torch.equal(target.mask, mask)
        assert_close(target.weights, plain_target(mask=mask))

    def test_discount_and_its_log_q_belong_together(self):
        """The target of the shifted log q in the returned target is the returned target, eq. (4b)."""
        _, target = build(dedup=0.7, beta=0.3)
        counts = mg.duplicate_counts(KEYS, mask=MASK)
        plain = plain_target(anchors=REF / LENGTHS, beta=0.3)
        assert_close(target.weights, mg.discount_duplicates(plain, counts, strength=0.7, mask=MASK))
        shifted = mg.listwise_log_q(UTILITIES, mask=MASK) - 0.5 * 0.7 * counts.clamp(min=1).double().log()
        assert_close(target.log_q, shifted, rtol=1e-14, atol=1e-14)
        again = mg.tempered_log_target(target.log_q, target.anchor_logps, tau=0.2, beta=0.3, mask=MASK)
        assert_close(again, target.log_weights, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(("tau", "beta"), [(0.0, 0.0), (INF, 0.0), (0.0, INF)])
    def test_discount_at_the_limits_is_by_its_definition(self, tau, beta):
        _, target = build(tau=tau, beta=beta, dedup=1.0)
        plain = plain_target(anchors=REF / LENGTHS, tau=tau, beta=beta)
        counts = mg.duplicate_counts(KEYS, mask=MASK)
        assert_close(target.weights, mg.discount_duplicates(plain, counts, strength=1.0, mask=MASK))

    def test_effective_size_sets_tau_of_informative_groups(self):
        _, target = build(target_ess=2.0)
        assert_close(mg.effective_sample_size(target.weights)[0], torch.tensor(2.0, dtype=torch.float64))
        assert target.tau[1:].tolist() == [0.2, 0.2]
        _, unreachable = build(target_ess=100.0)
        assert unreachable.tau.tolist() == [INF, 0.2, 0.2]
        assert_close(unreachable.weights[0], torch.full((4,), 0.25, dtype=torch.float64))
        _, too_low = build(target_ess=1.0)
        assert too_low.tau[0] == 0.0

    def test_a_nan_utility_is_seen_in_its_group_alone(self):
        utilities = UTILITIES.clone()
        utilities[0, 2] = NAN
        for fields in (
            {},
            {"utility_transform": "rank"},
            {"skip": "all_min"},
            {"center": True},
            {"success_power": 1.0},
        ):
            objective = MaxEntObjective(MaxEntConfig(**fields))
            target = objective.target(utilities, mask=MASK, lengths=LENGTHS)
            c = objective.coefficients(target)
            assert c[0].isnan().all()
            assert c[1:].isfinite().all()

    def test_takes_integers_and_halves(self):
        objective = MaxEntObjective(MaxEntConfig())
        for dtype in (torch.int64, torch.bfloat16, torch.float16):
            target = objective.target(UTILITIES.to(dtype), mask=MASK, lengths=LENGTHS)
            assert target.weights.dtype == torch.float32
            assert_close(target.weights, plain_target(UTILITIES.to(dtype).float()))

    def test_is_detached(self):
        ref = REF.clone().requires_grad_()
        _, target = build(beta=0.1)
        target = MaxEntObjective(MaxEntConfig(beta=0.1)).target(
            UTILITIES.clone().requires_grad_(), mask=MASK, lengths=LENGTHS, ref_logps=ref
        )
        for field in dataclasses.fields(target):
            value = getattr(target, field.name)
            assert value is None or not value.requires_grad


class TestCoefficients:
    def test_are_the_weights_centred_or_less_the_policy(self):
        weights = plain_target()
        assert_close(coefficients(), weights)
        assert_close(coefficients(center=True), mg.center_weights(weights, mask=MASK))
        policy = OLD.masked_fill(~MASK, -INF).softmax(-1)
        assert_close(coefficients(projection="listwise"), weights - policy)
        per_token = (OLD / LENGTHS).masked_fill(~MASK, -INF).softmax(-1)
        assert_close(coefficients(projection="listwise", nll_reduction="mean"), weights - per_token)

    def test_scale_is_a_power_of_the_mean_utility(self):
        means = torch.tensor([1.5 / 4, 1.0, 0.0], dtype=torch.float64).unsqueeze(-1)
        for a in (0.5, 1.0, 2.0):
            assert_close(coefficients(success_power=a), means**a * plain_target())
        assert_close(
            coefficients(success_power=1.0, utility_transform="rank")[1], coefficients(utility_transform="rank")[1]
        )

    @pytest.mark.parametrize("a", [0.5, 1.0, 2.0])
    @pytest.mark.parametrize("utilities", [[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, -1.0]])
    def test_negative_utilities_show_where_the_scale_would_turn_them_around(self, a, utilities):
        mask = torch.ones(2, 4, dtype=torch.bool)
        objective = MaxEntObjective(replace(MaxEntConfig.diverse(max_length=8), success_power=a))
        u = torch.tensor([utilities, [1.0, 0.0, 0.0, 0.0]])
        keys = torch.arange(4).expand(2, 4)
        target = objective.target(u, mask=mask, lengths=mask.long(), keys=keys)
        found = objective.coefficients(target)
        assert found[0].isnan().all()
        assert found[1].isfinite().all()
        masked = objective.target(u, mask=mask & (u >= 0), lengths=mask.long(), keys=keys)
        assert objective.coefficients(masked).isfinite().all()
        assert np.isnan(reference.group_coefficients(utilities, success_power=a)).all()

    def test_skipped_groups_are_zero_and_the_others_untouched(self):
        plain = coefficients()
        kept = {"none": [1, 1, 1], "equal": [1, 0, 0], "all_min": [1, 1, 0]}
        for skip, factor in kept.items():
            expected = plain * torch.tensor(factor, dtype=torch.float64).unsqueeze(-1)
            assert torch.equal(coefficients(skip=skip), expected)

    def test_a_group_failed_where_no_utility_is_above_the_least(self):
        plain, nothing = coefficients(), torch.zeros(3, 4, dtype=torch.float64)
        assert torch.equal(coefficients(skip="all_min", min_utility=-0.5), plain)
        assert torch.equal(coefficients(skip="all_min", min_utility=0.5)[:2], plain[:2])
        assert torch.equal(coefficients(skip="all_min", min_utility=1.0), nothing)

    @pytest.mark.parametrize("fields", [{"center": True, "anchor": "none"}, {"projection": "surrogate"}])
    @pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e8 + 8])
    def test_groups_without_information_are_exact_zeros_of_a_centred_projection(self, fields, reward):
        """In float32 the mean of equal rewards is off by a rounding; their candidates would look trained on."""
        counted = torch.ones(2, 7, dtype=torch.bool)
        rewards = torch.full((2, 7), reward)
        rewards[1, 0] = 0.0
        objective = MaxEntObjective(MaxEntConfig(max_length=8, **fields))
        c = objective.coefficients(objective.target(rewards, mask=counted, lengths=5 * counted.long()))
        assert torch.equal(c[0], torch.zeros(7))
        assert (c[1] != 0).all()

    def test_a_skipped_group_is_zero_even_where_its_anchor_is_broken(self):
        ref = REF.clone()
        ref[1:] = NAN
        objective = MaxEntObjective(MaxEntConfig(beta=0.1, skip="equal"))
        c = objective.coefficients(objective.target(UTILITIES, mask=MASK, lengths=LENGTHS, ref_logps=ref))
        assert torch.equal(c[1:], torch.zeros(2, 4, dtype=torch.float64))
        assert_close(c[0].sum(), torch.tensor(1.0, dtype=torch.float64))

    @pytest.mark.parametrize("skip", ["equal", "all_min"])
    @pytest.mark.parametrize("projection", ["mle", "listwise", "surrogate"])
    def test_skipping_holds_for_every_projection(self, skip, projection):
        c = coefficients(skip=skip, projection=projection, max_length=8)
        assert torch.equal(c[2], torch.zeros(4, dtype=torch.float64))
        assert (c[0] != 0).all()

    def test_listwise_with_the_policy_as_its_own_anchor_moves_nothing_without_information(self):
        """τ = κ = 0 and anchor "old": an uninformative group has π* = p."""
        c = coefficients(projection="listwise", anchor="old", tau=0.0, beta=0.5)
        assert_close(c[1:], torch.zeros(2, 4, dtype=torch.float64), rtol=0.0, atol=1e-15)
        assert c[0].abs().max() > 0.1

    def test_pruning_draws_from_the_generator(self):
        objective, target = build(keep_fraction=0.5, center=True)
        c = objective.coefficients(target, generator=torch.Generator().manual_seed(3))
        plain = mg.center_weights(target.weights, mask=MASK)
        expected = mg.prune_candidates(plain, keep=0.5, generator=torch.Generator().manual_seed(3))
        assert torch.equal(c, expected)

    @given(problems(max_groups=4), st.sampled_from([{}, {"center": True}, {"skip": "equal"}, {"success_power": 1.0}]))
    def test_groups_are_alone_and_masked_candidates_silent(self, problem, fields):
        objective = MaxEntObjective(MaxEntConfig(tau=problem.tau, beta=problem.beta, q_eps=1e-6, **fields))
        lengths = torch.ones_like(problem.mask, dtype=torch.int64)
        target = objective.target(
            problem.utilities, mask=problem.mask, lengths=lengths, ref_logps=problem.anchor_logps
        )
        c = objective.coefficients(target)
        assert (c[~problem.mask] == 0).all()
        for g in range(len(c)):
            alone = objective.target(
                problem.utilities[g], mask=problem.mask[g], lengths=lengths[g], ref_logps=problem.anchor_logps[g]
            )
            assert_close(objective.coefficients(alone), c[g], atol=0, rtol=0, equal_nan=True)


class TestLoss:
    LOGPS = -torch.rand(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    OLD = LOGPS + 0.4 * torch.rand(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.2
    TOKENS = torch.arange(5) < LENGTHS.flatten().unsqueeze(-1)

    @pytest.mark.parametrize("clipped", [False, True])
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"nll_reduction": "mean"},
            {"nll_reduction": "max_length", "max_length": 8, "center": True},
            {"projection": "listwise"},
            {"projection": "surrogate", "max_length": 8, "surrogate_tau": 0.3},
        ],
    )
    def test_micro_batches_add_up_to_the_batch(self, fields, clipped):
        objective, target = build(**fields)
        c = objective.coefficients(target, old_logps=OLD).flatten()
        logps = self.LOGPS.clone().requires_grad_()

        def loss(rows):
            return objective.loss(
                logps[rows],
                c[rows],
                self.TOKENS[rows],
                num_groups=3,
                old_logps=self.OLD[rows] if clipped else None,
            )

        whole, parts = loss(slice(None)), loss(slice(0, 5)) + loss(slice(5, 6)) + loss(slice(6, None))
        assert_close(parts, whole, rtol=1e-13, atol=1e-13)
        assert_close(torch.autograd.grad(parts, logps), torch.autograd.grad(whole, logps), rtol=1e-13, atol=1e-13)

    @pytest.mark.parametrize("reduction", ["sum", "mean", "max_length"])
    def test_first_update_has_the_plain_gradient(self, reduction):
        """Eq. (7c) at the rollout policy has the gradient of eq. (7)."""
        objective, target = build(nll_reduction=reduction, max_length=8, center=True)
        c = objective.coefficients(target).flatten()
        logps = self.LOGPS.clone().requires_grad_()
        plain = objective.loss(logps, c, self.TOKENS, num_groups=3)
        clipped = objective.loss(logps, c, self.TOKENS, num_groups=3, old_logps=logps.detach())
        assert_close(torch.autograd.grad(clipped, logps), torch.autograd.grad(plain, logps), rtol=1e-12, atol=0.0)

    def test_token_scale_multiplies_every_loss(self):
        for fields in ({}, {"projection": "surrogate", "max_length": 8}):
            objective, target = build(**fields)
            c, twice = objective.coefficients(target).flatten(), torch.full((12, 5), 2.0, dtype=torch.float64)
            plain = objective.loss(self.LOGPS, c, self.TOKENS, num_groups=3)
            doubled = objective.loss(self.LOGPS, c, self.TOKENS, num_groups=3, token_scale=twice)
            assert_close(doubled, 2 * plain)

    def test_clips_follow_the_config(self):
        objective = MaxEntObjective(MaxEntConfig(clip_low=0.1, clip_high=0.5))
        tokens, old = torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1)
        ratio = torch.tensor([[1.4], [0.85]])
        loss = objective.loss(ratio.log(), torch.tensor([1.0, -1.0]), tokens, num_groups=1, old_logps=old)
        assert_close(loss, torch.tensor(-1.4 + 0.9))
        further = torch.tensor([[1.6], [0.95]])
        loss = objective.loss(further.log(), torch.tensor([1.0, -1.0]), tokens, num_groups=1, old_logps=old)
        assert_close(loss, torch.tensor(-1.5 + 0.95))


class TestStatistics:
    def test_are_the_means_of_their_functions(self):
        objective, target = build(beta=0.3, dedup=0.5)
        statistics = objective.statistics(target, policy_logps=OLD)
        log_policy = OLD.masked_fill(~MASK, -INF).log_softmax(-1)
        log_rho = (REF / LENGTHS).masked_fill(~MASK, -INF).log_softmax(-1)
        knobs = {"tau": 0.2, "beta": 0.3, "mask": MASK}
        w, log_w = target.weights, target.log_weights
        expected = {
            "ess": mg.effective_sample_size(w).mean(),
            "weight_entropy": -torch.where(w > 0, w * log_w, 0.0).sum(-1).mean(),
            "max_weight": w.amax(-1).mean(),
            "frac_uninformative_groups": torch.tensor(2 / 3, dtype=torch.float64),
            "kl_target_anchor": torch.where(MASK, w * (log_w - log_rho), 0.0).sum(-1).mean(),
            "potential": mg.regularized_potential(log_policy.exp(), target.log_q, log_rho, **knobs).mean(),
            "improvement_gap": mg.improvement_gap(log_policy, target.log_q, log_rho, **knobs).mean(),
            "forward_kl": torch.where(MASK, w * (log_w - log_policy), 0.0).sum(-1).mean(),
        }
        logged = statistics.as_dict()
        assert logged.keys() == {f"maxent/{name}" for name in expected}
        for name, value in expected.items():
            assert_close(logged[f"maxent/{name}"], value, rtol=1e-10, atol=1e-10)
        assert statistics.num_groups == 3

    def test_what_cannot_be_known_is_absent(self):
        objective, target = build(anchor="none")
        always = {"maxent/ess", "maxent/weight_entropy", "maxent/max_weight", "maxent/frac_uninformative_groups"}
        assert objective.statistics(target).as_dict().keys() == always
        objective, target = build(tau=INF)
        names = objective.statistics(target, policy_logps=OLD).as_dict().keys()
        assert names == always | {"maxent/kl_target_anchor", "maxent/forward_kl"}
        objective, target = build(anchor="none", projection="surrogate", max_length=8)
        assert objective.statistics(target, policy_logps=OLD).as_dict().keys() == always | {"maxent/forward_kl"}

    def test_empty_groups_are_not_averaged(self):
        objective = MaxEntObjective(MaxEntConfig())
        mask = MASK.clone()
        mask[1:] = False
        one = objective.target(UTILITIES, mask=mask, lengths=LENGTHS)
        alone = objective.statistics(one, policy_logps=OLD)
        first = objective.target(UTILITIES[0], mask=mask[0], lengths=LENGTHS[0])
        expected = objective.statistics(first, policy_logps=OLD[0])
        assert alone.num_groups == 1
        for name, value in expected.as_dict().items():
            assert_close(alone.as_dict()[name], value)
        nothing = objective.target(UTILITIES, mask=torch.zeros_like(MASK), lengths=LENGTHS)
        assert all(value == 0 for value in objective.statistics(nothing, policy_logps=OLD).as_dict().values())

    def test_infinite_temperatures_by_size_are_left_out_of_the_potential(self):
        unreachable = MaxEntObjective(MaxEntConfig(target_ess=100.0))
        target = unreachable.target(UTILITIES, mask=MASK, lengths=LENGTHS)
        logged = unreachable.statistics(target, policy_logps=OLD)
        knobs = {"tau": 0.2, "mask": MASK[1:]}
        log_policy = OLD.masked_fill(~MASK, -INF).log_softmax(-1)[1:]
        assert_close(logged.improvement_gap, mg.improvement_gap(log_policy, target.log_q[1:], **knobs).mean())


def call(fields, **changes):
    inputs = {"mask": MASK, "lengths": LENGTHS, "ref_logps": REF, "old_logps": OLD, "keys": KEYS}
    objective = MaxEntObjective(MaxEntConfig(**fields))
    return objective.target(UTILITIES, **{**inputs, **changes})


def after_target(fields, method, *args, **options):
    objective, target = build(**fields)
    return getattr(objective, method)(target, *args, **options)


REFUSED = {
    "no length to divide by": (
        lambda: MaxEntObjective(MaxEntConfig.diverse()),
        "Expected max_length, the generation limit in tokens, with nll_reduction='max_length'",
    ),
    "no length for the surrogate": (
        lambda: MaxEntObjective(MaxEntConfig(projection="surrogate")),
        "and projection='surrogate', got max_length=None.",
    ),
    "no reference": (
        lambda: call({"beta": 0.1}, ref_logps=None),
        "Expected ref_logps with anchor='reference' and beta=0.1, got ref_logps=None.",
    ),
    "no old policy": (
        lambda: call({"beta": 0.1, "anchor": "old"}, old_logps=None),
        "Expected old_logps with anchor='old' and beta=0.1, got old_logps=None.",
    ),
    "no keys": (lambda: call({"dedup": 0.5}, keys=None), "Expected keys with dedup=0.5, got keys=None."),
    "keys of another shape": (
        lambda: call({"dedup": 0.5}, keys=KEYS[:, :2]), "Expected keys of shape [3, 4], got keys of shape [3, 2]."
    ),
    "floor too high": (lambda: call({"q_eps": 0.3}), "Expected K*q_eps <= 1 with K=4 candidates, got q_eps=0.3."),
    "lengths of another shape": (
        lambda: call({}, lengths=LENGTHS[0]), "Expected lengths of shape [3, 4], got lengths of shape [4]."
    ),
    "reference of another shape": (
        lambda: call({}, ref_logps=REF[0]), "Expected ref_logps of shape [3, 4], got ref_logps of shape [4]."
    ),
    "mask of another dtype": (
        lambda: call({}, mask=LENGTHS), "Expected mask of dtype torch.bool, got mask of dtype torch.int64."
    ),
    "listwise without a policy": (
        lambda: after_target({"projection": "listwise"}, "coefficients"),
        "Expected old_logps with projection='listwise', got old_logps=None.",
    ),
    "policy of another shape": (
        lambda: after_target({}, "statistics", policy_logps=OLD[0]),
        "Expected policy_logps of shape [3, 4], got policy_logps of shape [4].",
    ),
    "pruning without a generator": (
        lambda: after_target({"keep_fraction": 0.5}, "coefficients"),
        "Expected a generator with keep_fraction=0.5, got generator=None.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_missing_or_misshapen_input_is_named(case):
    function, message = REFUSED[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011
        function()
    assert message in str(error.value)
