"""Eq. (4c), soft κ: right candidates are discounted for their likelihood, and keep their share of the target."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import maxent_grpo as mg
from maxent_grpo import MaxEntConfig, MaxEntObjective
from support.strategies import INF, masks, problems, values_of
from support.three_groups import LENGTHS, MASK, NAN, OLD, build, plain_target

pytestmark = pytest.mark.numerical
ALPHA = st.sampled_from([0.0, 0.25, 1.0, 3.0])


@st.composite
def cases(draw):
    """A target's log weights with junk where masked, likelihoods, and who is right."""
    problem = draw(problems())
    shape = tuple(problem.mask.shape)
    log_weights = mg.tempered_log_target(
        problem.log_q, problem.anchor_logps, tau=problem.tau, beta=problem.beta, mask=problem.mask
    )
    logps = draw(values_of(shape, st.floats(-50.0, 0.0, allow_subnormal=False)))
    return log_weights, torch.where(problem.mask, logps, NAN), draw(masks(*shape)), problem.mask


class TestSoftDiscount:
    @given(cases(), ALPHA)
    def test_is_its_definition_candidate_by_candidate(self, case, alpha):
        log_weights, logps, right, mask = case
        found = mg.discount_likely(log_weights, logps, right, strength=alpha, mask=mask).exp()
        for g, weights in enumerate(log_weights.exp()):
            R = [i for i in range(len(weights)) if mask[g, i] and right[g, i]]
            share = sum(float(weights[i]) for i in R)
            expected = weights.clone()
            if share > 0:
                lowest = min(float(logps[g, i]) for i in R)
                f = {i: math.exp(-min(alpha * (float(logps[g, i]) - lowest), 5.0)) for i in R}
                total = sum(float(weights[i]) * f[i] for i in R)
                for i in R:
                    expected[i] = float(weights[i]) * f[i] * share / total
            assert_close(found[g], expected, rtol=1e-12, atol=1e-14)

    @given(cases(), ALPHA)
    def test_right_candidates_keep_their_share_and_the_others_their_weights(self, case, alpha):
        log_weights, logps, right, mask = case
        before, found = (
            log_weights.exp(),
            mg.discount_likely(log_weights, logps, right, strength=alpha, mask=mask).exp(),
        )
        counted = right & mask
        assert torch.equal(found[~counted], before[~counted])
        assert_close(
            found.masked_fill(~counted, 0.0).sum(-1),
            before.masked_fill(~counted, 0.0).sum(-1),
            rtol=1e-13,
            atol=1e-15,
        )

    def test_off_is_nothing_and_a_likely_answer_loses_at_most_five_nats(self):
        halves, logps = torch.full((2,), 0.5, dtype=torch.float64).log(), torch.tensor([0.0, -1e3])
        right = torch.tensor([True, True])
        assert_close(mg.discount_likely(halves, logps, right, strength=0.0), halves)
        f = math.exp(-5)
        expected = torch.tensor([f / (1 + f), 1 / (1 + f)], dtype=torch.float64)
        assert_close(mg.discount_likely(halves, logps, right, strength=1.0).exp(), expected)

    def test_right_candidates_without_weight_stay_without(self):
        log_weights = torch.tensor([0.0, -INF, -INF])
        right = torch.tensor([False, True, True])
        found = mg.discount_likely(log_weights, torch.tensor([-1.0, -2.0, -3.0]), right, strength=1.0)
        assert torch.equal(found, log_weights)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"strength": -1.0}, "Expected strength >= 0, got strength=-1.0."),
            ({"logps": torch.zeros(3)}, "Expected logps of shape [2], got logps of shape [3]."),
            ({"right": torch.ones(2)}, "Expected right of dtype torch.bool, got right of dtype torch.float32."),
        ],
    )
    def test_refuses_bad_input_by_name(self, options, message):
        good = {"logps": torch.zeros(2), "right": torch.ones(2, dtype=torch.bool), "strength": 1.0}
        with pytest.raises(ValueError) as error:  # noqa: PT011
            mg.discount_likely(torch.zeros(2), **{**good, **options})
        assert str(error.value) == message


class TestInAnObjective:
    @pytest.mark.parametrize("reduction", ["sum", "mean"])
    def test_likelihoods_are_per_token_iff_the_nll_is(self, reduction):
        _, target = build(soft_dedup=0.5, nll_reduction=reduction, tau=0.3)
        scores = OLD / LENGTHS if reduction == "mean" else OLD
        right = MASK & (torch.tensor([[1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]) > 0)
        expected = mg.discount_likely(plain_target(tau=0.3).log(), scores, right, strength=0.5, mask=MASK)
        assert_close(target.weights, expected.exp())
        assert torch.equal(target.right, right)

    def test_its_log_q_belongs_to_it(self):
        """The target of the shifted log q is the returned target."""
        _, target = build(soft_dedup=1.0, beta=0.3)
        again = mg.tempered_log_target(target.log_q, target.anchor_logps, tau=0.2, beta=0.3, mask=MASK)
        assert_close(again, target.log_weights, rtol=1e-12, atol=1e-12)

    def test_the_verifier_may_say_who_is_right(self):
        right = torch.zeros_like(MASK)
        right[0, 1] = right[0, 3] = True
        objective = MaxEntObjective(MaxEntConfig(soft_dedup=1.0))
        utilities = torch.tensor([[1.0, 0.0, 0.5, 0.0]] * 3, dtype=torch.float64)
        target = objective.target(utilities, mask=MASK, lengths=LENGTHS, old_logps=OLD, right=right)
        plain = plain_target(utilities)
        assert_close(target.weights[1:], plain[1:])
        assert_close(target.weights[0, [0, 2]], plain[0, [0, 2]])
        # ℓ = −2 and −6: the first is discounted by 4 nats.
        share = plain[0, 1] + plain[0, 3]
        odds = torch.tensor([math.exp(-4), 1.0], dtype=torch.float64)
        assert_close(target.weights[0, [1, 3]], share * odds / odds.sum())

    def test_counts_of_a_similarity_take_the_place_of_equal_keys(self):
        counts = torch.tensor([[1.5, 2.0, 1.25, 3.0]] * 3, dtype=torch.float64)
        objective = MaxEntObjective(MaxEntConfig(dedup=1.0))
        utilities = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 3, dtype=torch.float64)
        target = objective.target(utilities, mask=MASK, lengths=LENGTHS, counts=counts)
        assert_close(target.weights, mg.discount_duplicates(plain_target(utilities), counts, strength=1.0, mask=MASK))
        assert_close(target.answers[0], torch.tensor(1 / 1.5 + 1 / 1.25, dtype=torch.float64))
