"""The losses: against plain loops, their analytic gradients, over splits of a batch, at the edges of their masks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import maxent_grpo as mg
from maxent_grpo import reference
from maxent_grpo.kernels._rows import accumulation_dtype
from support.precision import evaluate
from support.reference_gradients import (
    clipped_surrogate_grad,
    listwise_cross_entropy_grad,
    maxent_weighted_nll_grad,
)
from support.strategies import INF, mild_problems, policies, problems, tokens

pytestmark = pytest.mark.numerical

NAN = math.nan
CLIPS = {"clip_low": 0.2, "clip_high": 0.3}
REDUCTIONS = [{}, {"length_normalize": True}, {"max_length": 7.0}]


def gradient(loss, *inputs):
    return torch.autograd.grad(loss, inputs, allow_unused=True)


def in_numpy(*tensors):
    return [None if tensor is None else tensor.detach().numpy() for tensor in tensors]


class TestWeightedNll:
    @given(tokens(), st.sampled_from(REDUCTIONS), st.none() | st.integers(1, 9))
    def test_equals_a_plain_loop(self, batch, reduction, num_groups):
        total, groups = 0.0, 0
        for g in range(batch.mask.shape[0]):
            groups += bool(batch.mask[g].any())
            for i in range(batch.mask.shape[1]):
                counted = [t for t in range(batch.mask.shape[2]) if batch.mask[g, i, t]]
                scale = [1.0 if batch.token_scale is None else float(batch.token_scale[g, i, t]) for t in counted]
                nll = -sum(s * float(batch.logps[g, i, t]) for s, t in zip(scale, counted, strict=True))
                length = max(len(counted), 1) if reduction.get("length_normalize") else reduction.get("max_length", 1)
                total += float(batch.weights[g, i]) * nll / length
        actual = mg.maxent_weighted_nll(
            batch.logps,
            batch.weights,
            batch.mask,
            token_scale=batch.token_scale,
            num_groups=num_groups,
            **reduction,
        )
        assert_close(actual.item(), total / (num_groups or max(groups, 1)), rtol=1e-12, atol=1e-12)

    @given(tokens(), st.sampled_from(REDUCTIONS), st.none() | st.integers(1, 9))
    def test_value_and_gradient_equal_the_oracle(self, batch, reduction, num_groups):
        logps = batch.logps.clone().requires_grad_()
        options = {**reduction, "num_groups": num_groups, "token_scale": batch.token_scale}
        loss = mg.maxent_weighted_nll(logps, batch.weights, batch.mask, **options)
        args = in_numpy(batch.logps, batch.weights, batch.mask)
        options["token_scale"] = in_numpy(batch.token_scale)[0]
        assert_close(loss.item(), reference.maxent_weighted_nll(*args, **options), rtol=1e-12, atol=1e-12)
        expected = torch.from_numpy(maxent_weighted_nll_grad(*args, **options))
        assert_close(gradient(loss, logps)[0], expected, rtol=1e-12, atol=1e-15)

    def test_gradient_is_minus_the_weight_over_the_number_of_groups(self):
        logps = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
        weights = torch.randn(2, 3, dtype=torch.float64)
        mask = torch.rand(2, 3, 4) < 0.7
        lengths = mask.sum(-1, keepdim=True).clamp(min=1)
        for reduction, scale in zip(REDUCTIONS, (1.0, lengths, 7.0), strict=True):
            loss = mg.maxent_weighted_nll(logps, weights, mask, num_groups=5, **reduction)
            assert_close(gradient(loss, logps)[0], -weights.unsqueeze(-1) * mask / scale / 5)

    def test_groups_without_a_counted_token_are_no_groups(self):
        logps = -torch.ones(3, 2, 2)
        mask = torch.zeros(3, 2, 2, dtype=torch.bool)
        mask[0], mask[2, 1, 0] = True, True
        weights = torch.full((3, 2), 0.5)
        assert_close(mg.maxent_weighted_nll(logps, weights, mask), torch.tensor((0.5 * 2 + 0.5 * 2 + 0.5) / 2))

    def test_a_token_weight_of_zero_silences_any_log_probability(self):
        logps = torch.tensor([[-INF, -1.0]], requires_grad=True)
        silence = torch.tensor([[0.0, 2.0]])
        loss = mg.maxent_weighted_nll(logps, torch.ones(1), torch.ones(1, 2, dtype=torch.bool), token_scale=silence)
        assert_close(loss.detach(), torch.tensor(2.0))
        assert_close(*gradient(loss, logps), torch.tensor([[0.0, -2.0]]))


class TestListwiseCrossEntropy:
    @given(problems(), st.none() | st.integers(1, 9))
    def test_value_and_gradient_equal_the_oracle(self, problem, num_groups):
        scores = problem.anchor_logps.clone().requires_grad_()
        weights = mg.tempered_target(problem.log_q.exp(), problem.anchor_logps, **problem.knobs, mask=problem.mask)
        loss = mg.listwise_cross_entropy(scores, weights, mask=problem.mask, num_groups=num_groups)
        args = in_numpy(problem.anchor_logps, weights)
        options = {"mask": problem.mask.numpy(), "num_groups": num_groups}
        assert_close(loss.item(), reference.listwise_cross_entropy(*args, **options), rtol=1e-12, atol=1e-12)
        expected = torch.from_numpy(listwise_cross_entropy_grad(*args, **options))
        assert_close(gradient(loss, scores)[0], expected, rtol=1e-12, atol=1e-14)

    @given(mild_problems(), st.data())
    def test_gradient_is_policy_minus_target(self, problem, data):
        weights = mg.tempered_target(problem.log_q.exp(), problem.anchor_logps, **problem.knobs, mask=problem.mask)
        scores = (3.0 + data.draw(policies(problem.mask))).masked_fill(~problem.mask, NAN).requires_grad_()
        policy = scores.detach().masked_fill(~problem.mask, -INF).softmax(-1)
        loss = mg.listwise_cross_entropy(scores, weights, mask=problem.mask, num_groups=2)
        expected = torch.where(problem.mask, policy - weights, 0.0) / 2
        actual = gradient(loss, scores)[0]
        assert_close(actual, expected, rtol=0.0, atol=1e-12)
        assert_close(actual.sum(-1), torch.zeros(len(actual), dtype=torch.float64), rtol=0.0, atol=1e-12)

    def test_stops_where_policy_and_target_agree(self):
        scores = torch.tensor([[-1.0, -2.0, -0.5]], requires_grad=True)
        loss = mg.listwise_cross_entropy(scores, scores.detach().softmax(-1))
        assert_close(gradient(loss, scores)[0], torch.zeros(1, 3))

    def test_without_a_mask_every_group_counts(self):
        loss = mg.listwise_cross_entropy(torch.zeros(3, 4), torch.full((3, 4), 0.25))
        assert_close(loss, torch.tensor(math.log(4)))


class TestClippedSurrogate:
    @given(tokens(), st.none() | st.integers(1, 9), st.booleans(), st.sampled_from(REDUCTIONS))
    def test_value_and_gradient_equal_the_oracle(self, batch, num_groups, on_policy, reduction):
        logps = (batch.old_logps if on_policy else batch.logps).clone().requires_grad_()
        args = (batch.old_logps, batch.weights, batch.mask)
        options = {**CLIPS, **reduction, "num_groups": num_groups, "token_scale": batch.token_scale}
        loss = mg.clipped_surrogate(logps, *args, **options)
        args = in_numpy(logps.detach(), *args)
        options["token_scale"] = in_numpy(batch.token_scale)[0]
        assert_close(loss.item(), reference.clipped_surrogate(*args, **options), rtol=1e-12, atol=1e-12)
        expected = torch.from_numpy(clipped_surrogate_grad(*args, **options))
        assert_close(gradient(loss, logps)[0], expected, rtol=1e-11, atol=1e-14)

    @given(tokens(), st.sampled_from(REDUCTIONS))
    def test_at_the_rollout_policy_it_has_the_gradient_of_the_nll(self, batch, reduction):
        logps = batch.old_logps.clone().requires_grad_()
        args = (batch.weights, batch.mask)
        clipped = mg.clipped_surrogate(logps, batch.old_logps, *args, **CLIPS, **reduction, num_groups=3)
        plain = mg.maxent_weighted_nll(logps, *args, **reduction, num_groups=3)
        assert_close(gradient(clipped, logps)[0], gradient(plain, logps)[0], rtol=1e-12, atol=0.0)

    @pytest.mark.parametrize(
        ("log_ratio", "coefficient", "slope"),
        [
            (math.log(1.29), 2.0, -2.0 * 1.29),
            (math.log(1.31), 2.0, 0.0),
            (math.log(1.31), -2.0, 2.0 * 1.31),
            (math.log(0.81), -2.0, 2.0 * 0.81),
            (math.log(0.79), -2.0, 0.0),
            (math.log(0.79), 2.0, -2.0 * 0.79),
        ],
    )
    def test_clip_stops_what_has_moved_far_enough(self, log_ratio, coefficient, slope):
        logps = torch.tensor([[log_ratio - 1.0]], dtype=torch.float64, requires_grad=True)
        old = torch.tensor([[-1.0]], dtype=torch.float64)
        loss = mg.clipped_surrogate(
            logps,
            old,
            torch.tensor([coefficient]),
            torch.ones(1, 1, dtype=torch.bool),
            clip_low=0.2,
            clip_high=0.3,
        )
        assert_close(gradient(loss, logps)[0], torch.tensor([[slope]], dtype=torch.float64))

    @pytest.mark.parametrize("old", [-100.0, -1e4, -INF])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_a_ratio_that_overflows_is_clipped_without_a_trace_in_the_gradient(self, old, dtype):
        logps = torch.zeros(2, 1, dtype=dtype, requires_grad=True)
        before = torch.tensor([[old], [0.0]], dtype=dtype)
        mask = torch.ones(2, 1, dtype=torch.bool)
        loss = mg.clipped_surrogate(logps, before, torch.ones(2), mask, **CLIPS, max_length=4)
        assert_close(loss.detach(), torch.tensor(-(1.3 + 1.0) / 4, dtype=dtype))
        assert_close(*gradient(loss, logps), torch.tensor([[0.0], [-0.25]], dtype=dtype))


class TestAllLosses:
    @given(tokens(max_groups=4), st.data(), st.sampled_from(REDUCTIONS))
    def test_parts_of_any_split_add_up(self, batch, data, reduction):
        """Sequences scattered over micro-batches, torn groups and all: same loss, same gradient."""
        G, K = batch.weights.shape
        home = data.draw(st.lists(st.integers(0, 2), min_size=G * K, max_size=G * K))
        logps = batch.logps.clone().requires_grad_()

        def losses(rows):
            pick = [tensor.flatten(0, 1)[rows] for tensor in (logps, batch.mask, batch.old_logps)]
            weights = batch.weights.flatten()[rows]
            nll = mg.maxent_weighted_nll(pick[0], weights, pick[1], num_groups=G, **reduction)
            clipped = mg.clipped_surrogate(pick[0], pick[2], weights, pick[1], **CLIPS, num_groups=G, **reduction)
            return nll + clipped

        whole = losses(list(range(G * K)))
        parts = sum(losses([row for row in range(G * K) if home[row] == part]) for part in range(3))
        assert_close(parts, whole, rtol=1e-12, atol=1e-12)
        assert_close(gradient(parts, logps)[0], gradient(whole, logps)[0], rtol=1e-12, atol=1e-14)

    @given(problems(max_groups=4), st.integers(0, 4))
    def test_groups_of_the_cross_entropy_add_up(self, problem, cut):
        weights = mg.tempered_target(problem.log_q.exp(), problem.anchor_logps, **problem.knobs, mask=problem.mask)

        def loss(part):
            return mg.listwise_cross_entropy(
                problem.anchor_logps[part], weights[part], mask=problem.mask[part], num_groups=4
            )

        assert_close(loss(slice(0, cut)) + loss(slice(cut, None)), loss(slice(None)), rtol=1e-12, atol=1e-12)

    def test_float64_gradcheck(self):
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
        logps = draw(2, 3, 4).requires_grad_()
        old = logps.detach() + 0.1 * draw(2, 3, 4)
        mask = torch.rand(2, 3, 4, generator=generator) < 0.7
        weights = draw(2, 3)
        for reduction in REDUCTIONS:
            assert torch.autograd.gradcheck(
                lambda x, r=reduction: mg.maxent_weighted_nll(x, weights, mask, **r), logps
            )
            assert torch.autograd.gradcheck(
                lambda x, r=reduction: mg.clipped_surrogate(x, old, weights, mask, **CLIPS, **r), logps
            )
        scores = draw(2, 3).requires_grad_()
        cross_entropy = lambda x: mg.listwise_cross_entropy(x, weights.softmax(-1), mask=mask[..., 0])  # noqa: E731
        assert torch.autograd.gradcheck(cross_entropy, scores)

    def test_everything_but_the_policy_is_a_constant(self):
        logps, old, per_token = (torch.randn(2, 3, 4, requires_grad=True) for _ in range(3))
        weights, scores = (torch.rand(2, 3, requires_grad=True) for _ in range(2))
        mask = torch.ones(2, 3, 4, dtype=torch.bool)
        nll = mg.maxent_weighted_nll(logps, weights, mask, token_scale=per_token)
        clipped = mg.clipped_surrogate(logps, old, weights, mask, **CLIPS, token_scale=per_token)
        listwise = mg.listwise_cross_entropy(scores, weights)
        assert gradient(nll + clipped + listwise, weights, old, per_token) == (None,) * 3

    @pytest.mark.parametrize("junk", [NAN, INF, -INF])
    def test_masked_tokens_and_silenced_candidates_hold_anything(self, junk):
        logps, old = torch.full((2, 2, 2), -1.0), torch.full((2, 2, 2), -1.0)
        per_token = torch.ones(2, 2, 2)
        mask = torch.ones(2, 2, 2, dtype=torch.bool)
        mask[0, 0, 1] = False
        weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
        for tensor in (logps, old, per_token):
            tensor[0, 0, 1] = junk  # masked
            tensor[0, 1] = junk  # silenced by its weight of 0
        logps.requires_grad_()
        nll = mg.maxent_weighted_nll(logps, weights, mask, token_scale=per_token, num_groups=1)
        clipped = mg.clipped_surrogate(
            logps,
            old,
            weights,
            mask,
            token_scale=per_token,
            clip_low=0.2,
            clip_high=0.2,
            num_groups=1,
        )
        expected = -torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]])
        assert_close(nll, torch.tensor(1.0 + 0.5 * 4))
        assert_close(clipped, -torch.tensor(1.0 + 0.5 * 4))
        assert_close(gradient(nll, logps)[0], expected)
        assert_close(gradient(clipped, logps)[0], expected)

    def test_a_coefficient_of_zero_silences_infinite_ratios(self):
        logps = torch.full((1, 2, 1), -1.0, requires_grad=True)
        old = torch.tensor([[[-INF], [-1.0]]])
        loss = mg.clipped_surrogate(
            logps, old, torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, 1, dtype=torch.bool), **CLIPS
        )
        assert_close(loss, torch.tensor(-1.0))
        assert_close(gradient(loss, logps)[0], torch.tensor([[[0.0], [-1.0]]]))

    def test_a_nan_weight_stays_visible(self):
        logps, mask = -torch.ones(1, 2, 1), torch.ones(1, 2, 1, dtype=torch.bool)
        weights = torch.tensor([[NAN, 0.5]])
        assert mg.maxent_weighted_nll(logps, weights, mask).isnan()
        assert mg.listwise_cross_entropy(logps.squeeze(-1), weights).isnan()
        assert mg.clipped_surrogate(logps, logps, weights, mask, **CLIPS).isnan()

    def test_an_empty_batch_is_a_differentiable_zero(self):
        logps = torch.randn(2, 3, 4, requires_grad=True)
        weights, nothing = torch.rand(2, 3), torch.zeros(2, 3, 4, dtype=torch.bool)
        for loss in (
            mg.maxent_weighted_nll(logps, weights, nothing, length_normalize=True),
            mg.clipped_surrogate(logps, logps.detach(), weights, nothing, **CLIPS),
            mg.listwise_cross_entropy(logps.sum(-1), torch.zeros(2, 3), mask=nothing[..., 0]),
        ):
            assert loss == 0
            assert torch.equal(gradient(loss, logps)[0], torch.zeros(2, 3, 4))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_dtype_of_the_policy_comes_back_summed_in_float32(self, dtype):
        generator = torch.Generator().manual_seed(1)
        logps = -torch.rand(2, 3, 300, generator=generator).to(dtype).requires_grad_()
        old = logps.detach() - (torch.rand(2, 3, 300, generator=generator) / 10).to(dtype)
        weights = torch.randn(2, 3, generator=generator)
        mask = torch.rand(2, 3, 300, generator=generator) < 0.9

        def compute(logps, old, weights, mask):
            return [
                mg.maxent_weighted_nll(logps, weights, mask),
                mg.clipped_surrogate(logps, old, weights, mask, **CLIPS),
                mg.listwise_cross_entropy(logps[..., 0], weights),
            ]

        widened = [logps.detach().double(), old.double(), weights.double(), mask]
        bounds = evaluate(lambda: compute(*widened), accumulation_dtype(dtype))
        losses = compute(logps, old, weights, mask)
        for loss, exact in zip(losses, bounds, strict=True):
            assert loss.dtype == dtype
            exact.round_to(dtype).assert_near(loss)
        assert gradient(sum(losses), logps)[0].dtype == dtype

    def test_number_of_groups_may_be_a_tensor(self):
        logps, mask = -torch.ones(1, 2, 1), torch.ones(1, 2, 1, dtype=torch.bool)
        weights = torch.tensor([[0.5, 0.5]])
        assert_close(mg.maxent_weighted_nll(logps, weights, mask, num_groups=torch.tensor(4)), torch.tensor(0.25))
