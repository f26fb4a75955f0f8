"""What each setting makes of a target: the coefficients of candidates, and groups that get none."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import maxent_grpo as mg
from maxent_grpo import MaxEntConfig, MaxEntObjective, reference
from support.strategies import INF, masks, problems, values_of
from support.three_groups import LENGTHS, MASK, NAN, OLD, REF, UTILITIES, build, coefficients, plain_target

pytestmark = pytest.mark.numerical


@st.composite
def rollouts(draw):
    """Groups of four with repeated answers, utilities in [0, 1], and junk where masked."""
    shape = (draw(st.integers(1, 3)), 4)
    mask = draw(masks(*shape))
    logps = st.floats(-20.0, -0.5, allow_subnormal=False)
    return {
        "utilities": torch.where(mask, draw(values_of(shape, st.sampled_from([0.0, 0.25, 1.0]))), NAN),
        "mask": mask,
        "lengths": draw(values_of(shape, st.integers(1, 8).map(float))).long(),
        "ref_logps": torch.where(mask, draw(values_of(shape, logps)), NAN),
        "old_logps": torch.where(mask, draw(values_of(shape, logps)), NAN),
        "keys": draw(values_of(shape, st.integers(0, 2).map(float))).long(),
    }


TRANSFORM = st.sampled_from(["raw", "rank", "zscore", "ips", "gapo", "darling", "unlikeliness", ("ucpo", "zscore")])
WEIGHTS = {
    "utility_transform": TRANSFORM,
    "skip": st.sampled_from(["none", "equal", "all_min"]),
    "success_power": st.sampled_from([0.0, 1.0, -0.5]),
    "failure_power": st.sampled_from([0.0, 0.5, -0.5]),
    "distinct_power": st.sampled_from([0.0, 1.0, -1.0]),
    "pass_k": st.sampled_from([None, 1, 2, 3]),
    "dedup": st.sampled_from([0.0, 0.5, 1.0]),
}
TARGETS = WEIGHTS | {"beta": st.sampled_from([0.0, 0.3]), "tau": st.sampled_from([0.2, 1.0])}
SETTINGS = st.one_of(
    st.fixed_dictionaries({**TARGETS, "center": st.booleans()}),
    st.fixed_dictionaries({**TARGETS, "dedup": st.just(0.0), "soft_dedup": st.sampled_from([0.25, 1.0])}),
    st.fixed_dictionaries({
        **TARGETS, "projection": st.sampled_from(["listwise", "regression"]), "nll_reduction": st.just("mean"),
    }),
    st.fixed_dictionaries({
        **WEIGHTS, "projection": st.just("surrogate"), "baseline": st.sampled_from(["mean", "none"]),
        "surrogate_tau": st.sampled_from([INF, 0.3]),
    }),
)  # fmt: skip


def compose(group, fields):
    """The oracle's coefficients of the candidates that count."""
    if fields.get("pass_k") is not None and len(group["utilities"]) <= fields["pass_k"]:
        return np.zeros(len(group["utilities"]))  # masking has left too few: no signal
    options = dict(fields)
    scores = group["old_logps"] / (group["lengths"] if options.pop("nll_reduction", "sum") == "mean" else 1)
    return reference.group_coefficients(
        group["utilities"],
        group["ref_logps"] / group["lengths"],
        transform=options.pop("utility_transform"),
        keys=group["keys"],
        policy_scores=scores,
        lengths=group["lengths"],
        max_length=8,
        **options,
    )


class TestCoefficients:
    def test_are_the_weights_centred_or_less_the_policy(self):
        weights = plain_target()
        assert_close(coefficients(), weights)
        assert_close(coefficients(center=True), mg.center_weights(weights, mask=MASK))
        policy = OLD.masked_fill(~MASK, -INF).softmax(-1)
        assert_close(coefficients(projection="listwise"), weights - policy)
        difference = (weights.log() - OLD).masked_fill(~MASK, 0.0)
        counted = MASK.sum(-1, keepdim=True)
        expected = (difference - difference.sum(-1, keepdim=True) / counted) / counted
        assert_close(coefficients(projection="regression"), expected.masked_fill(~MASK, 0.0))
        per_token = (OLD / LENGTHS).masked_fill(~MASK, -INF).softmax(-1)
        assert_close(coefficients(projection="listwise", nll_reduction="mean"), weights - per_token)

    def test_scale_is_a_power_of_the_mean_utility(self):
        means = torch.tensor([1.5 / 4, 1.0, 0.0], dtype=torch.float64).unsqueeze(-1)
        for a in (0.5, 1.0, 2.0):
            assert_close(coefficients(success_power=a), means**a * plain_target())
        assert_close(
            coefficients(success_power=1.0, utility_transform="rank")[1], coefficients(utility_transform="rank")[1]
        )

    @given(rollouts(), SETTINGS)
    def test_are_the_oracles(self, rollout, fields):
        """Whatever the settings; the oracle composes them anew, in another library, one group at a time."""
        objective = MaxEntObjective(MaxEntConfig(max_length=8, **fields))
        inputs = {name: rollout[name] for name in ("lengths", "ref_logps", "old_logps", "keys")}
        target = objective.target(rollout["utilities"], mask=rollout["mask"], **inputs)
        found = objective.coefficients(target, old_logps=rollout["old_logps"])
        for g, mask in enumerate(rollout["mask"]):
            if mask.any():
                group = {name: value[g][mask].numpy() for name, value in rollout.items()}
                expected = torch.zeros(len(mask), dtype=torch.float64)
                expected[mask] = torch.from_numpy(compose(group, fields))
                assert_close(found[g], expected, rtol=1e-9, atol=1e-11)

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
