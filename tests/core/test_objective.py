"""The composition: what each setting does to a rollout's groups, and that parts of a batch add up."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

import maxent_grpo as mg
from maxent_grpo import MaxEntConfig, MaxEntObjective
from support.strategies import INF
from support.three_groups import KEYS, LENGTHS, MASK, NAN, OLD, REF, UTILITIES, build, plain_target


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
            {"projection": "regression"},
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
    "no keys": (
        lambda: call({"dedup": 0.5}, keys=None),
        "Expected keys or counts with dedup=0.5, distinct_power=0.0, utility_transform='raw', got keys=None.",
    ),
    "no keys for the number of answers": (
        lambda: call({"distinct_power": 1.0}, keys=None), "Expected keys or counts with dedup=0.0, distinct_power=1.0"
    ),
    "no keys for a transform": (lambda: call({"utility_transform": "ips"}, keys=None), "utility_transform='ips'"),
    "no likelihoods for a transform": (
        lambda: call({"utility_transform": ("zscore", "ucpo")}, old_logps=None),
        "Expected old_logps with utility_transform='ucpo', got old_logps=None.",
    ),
    "no likelihoods": (
        lambda: call({"soft_dedup": 0.5}, old_logps=None),
        "Expected old_logps with soft_dedup=0.5, got old_logps=None.",
    ),
    "counts of another shape": (
        lambda: call({"dedup": 0.5}, counts=KEYS[0]), "Expected counts of shape [3, 4], got counts of shape [4]."
    ),
    "a verdict that is none": (
        lambda: call({}, right=KEYS), "Expected right of dtype torch.bool, got right of dtype torch.int64."
    ),
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
