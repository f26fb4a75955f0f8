"""Ragged groups there and back; pruning that keeps expectations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from maxent_grpo import flatten_groups, pad_groups, prune_candidates
from maxent_grpo.groups import answer_keys, completion_keys
from support.strategies import values_of


def coefficients_of(count: int):
    nonzero = st.floats(1e-6, 10.0).flatmap(lambda size: st.sampled_from([size, -size]))
    return values_of((count,), nonzero | st.just(0.0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def threshold_by_bisection(sizes: torch.Tensor, budget: float) -> float:
    low, high = 0.0, float(sizes.sum()) / budget + float(sizes.max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float((sizes / middle).clamp(max=1).sum()) > budget else (low, middle)
    return high


class TestPadding:
    @given(st.lists(st.integers(0, 4), max_size=5), st.sampled_from([(), (2,), (2, 3)]))
    def test_there_and_back_is_the_identity(self, sizes, row):
        flat = torch.arange(float(sum(sizes) * math.prod(row))).reshape(sum(sizes), *row) + 1
        padded, mask = pad_groups(flat, sizes)
        assert padded.shape == (len(sizes), max([1, *sizes]), *row)
        assert mask.sum(-1).tolist() == sizes
        assert torch.equal(flatten_groups(padded, mask), flat)
        assert (padded[~mask] == 0).all()
        start = 0
        for g, size in enumerate(sizes):
            assert torch.equal(padded[g, :size], flat[start : start + size])
            start += size

    def test_gradients_pass_both_ways(self):
        flat = torch.randn(3, dtype=torch.float64, requires_grad=True)
        padded, mask = pad_groups(flat, torch.tensor([1, 2]))
        (padded * torch.tensor([[1.0, 9.0], [2.0, 3.0]])).sum().backward()
        assert flat.grad.tolist() == [1.0, 2.0, 3.0]
        padded = padded.detach().requires_grad_()
        (flatten_groups(padded, mask) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        assert padded.grad.tolist() == [[1.0, 0.0], [2.0, 3.0]]

    def test_dtypes_are_kept(self):
        for dtype in (torch.bool, torch.int64, torch.bfloat16):
            assert pad_groups(torch.ones(3, dtype=dtype), [2, 1])[0].dtype == dtype


class TestKeys:
    @given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=6), st.integers(0, 3))
    def test_are_equal_where_the_tokens_are_whatever_the_padding(self, texts, gap):
        width = max(len(text) for text in texts) + gap
        ids, mask = (
            torch.randint(9, (2, len(texts), width), generator=seeded()),
            torch.zeros(2, len(texts), width) > 0,
        )
        for i, text in enumerate(texts):
            for side, place in enumerate((slice(0, len(text)), slice(width - len(text), width))):
                ids[side, i, place] = torch.tensor(text, dtype=torch.int64)
                mask[side, i, place] = True
        right, left = completion_keys(ids, mask).tolist()
        assert right == left
        for i, one in enumerate(texts):
            for j, other in enumerate(texts):
                assert (right[i] == right[j]) == (one == other)

    def test_do_not_collide_on_all_short_texts(self):
        """20 000 texts of two ids: a chance collision has probability 20 000²/2 / 2^64 ~ 1e-11."""
        ids = torch.cartesian_prod(torch.arange(200), torch.arange(100))
        assert len(completion_keys(ids, torch.ones_like(ids, dtype=torch.bool)).unique()) == 20_000

    def test_see_the_order_of_tokens(self):
        ids = torch.tensor([[1, 2], [2, 1]], dtype=torch.int32)
        one, other = completion_keys(ids, torch.ones(2, 2, dtype=torch.bool))
        assert one != other


class TestPruning:
    @given(coefficients_of(12), st.floats(0.05, 0.999), st.integers(0, 1000))
    def test_follows_the_threshold_rule(self, coefficients, keep, seed):
        """t solves Σ min(1, |c|/t) = keep·#(c ≠ 0): |c| >= t stay, the rest become ±t or 0."""
        pruned = prune_candidates(coefficients, keep=keep, generator=seeded(seed))
        sizes = coefficients[coefficients != 0].abs()
        if len(sizes) == 0:
            assert torch.equal(pruned, coefficients)
            return
        budget = keep * len(sizes)
        t = threshold_by_bisection(sizes, budget)
        assert_close(float((sizes / t).clamp(max=1).sum()), budget, rtol=1e-9, atol=0.0)
        stay = coefficients.abs() > t * (1 + 1e-9)
        assert torch.equal(pruned[stay], coefficients[stay])
        small = ~stay & (coefficients.abs() < t * (1 - 1e-9))
        dropped = pruned == 0
        assert_close(pruned[small & ~dropped], coefficients[small & ~dropped].sign() * t, rtol=1e-9, atol=0.0)
        assert not dropped[~small & (coefficients != 0)].any()
        assert abs(int((pruned != 0).sum()) - budget) <= 1 + 1e-9  # systematic: next to the expected number

    @pytest.mark.parametrize("keep", [0.15, 0.5, 0.9])
    def test_is_unbiased(self, keep):
        """Means of 4000 draws within 5 standard errors: a sound rule fails with p < 24·6e-7 < 2e-5 a setting."""
        coefficients = torch.randn(4, 6, dtype=torch.float64, generator=seeded(1))
        coefficients[0, 0] = 0.0
        draws = 4000
        pruned = torch.stack(
            [prune_candidates(coefficients, keep=keep, generator=seeded(seed)) for seed in range(draws)]
        )
        errors = pruned.mean(0) - coefficients
        standard_errors = pruned.std(0) / math.sqrt(draws)
        assert (errors.abs() <= 5 * standard_errors + 1e-12).all()
        assert (pruned.std(0) > 0).any()

    def test_large_ones_stay_and_small_ones_share_the_rest(self):
        """keep·4 = 2 of |c| = 5, 1, 1, 2: 5 stays, one of the others survives at their sum 4."""
        coefficients = torch.tensor([5.0, -1.0, 1.0, 2.0])
        survivors = {
            tuple(prune_candidates(coefficients, keep=0.5, generator=seeded(seed)).tolist()) for seed in range(50)
        }
        assert survivors == {(5.0, -4.0, 0.0, 0.0), (5.0, 0.0, 4.0, 0.0), (5.0, 0.0, 0.0, 4.0)}

    def test_the_generator_alone_decides(self):
        coefficients = torch.randn(100, generator=seeded(1))
        first = prune_candidates(coefficients, keep=0.3, generator=seeded(7))
        torch.manual_seed(123)
        assert torch.equal(first, prune_candidates(coefficients, keep=0.3, generator=seeded(7)))
        assert not torch.equal(first, prune_candidates(coefficients, keep=0.3, generator=seeded(8)))

    def test_keeping_all_or_having_none_changes_nothing(self):
        coefficients = torch.randn(5)
        assert torch.equal(prune_candidates(coefficients, keep=1.0, generator=seeded()), coefficients)
        assert torch.equal(prune_candidates(torch.zeros(3), keep=0.5, generator=seeded()), torch.zeros(3))
        assert prune_candidates(torch.zeros(0), keep=0.5, generator=seeded()).shape == (0,)

    def test_equal_sizes_keep_the_wanted_number_exactly(self):
        pruned = prune_candidates(torch.full((4, 5), -0.3), keep=0.25, generator=seeded())
        assert_close(pruned[pruned != 0], torch.full((5,), -0.3 / 0.25))

    def test_a_nan_stays_visible(self):
        coefficients = torch.tensor([math.nan, 1.0, 2.0])
        pruned = prune_candidates(coefficients, keep=0.5, generator=seeded())
        assert_close(pruned, coefficients, equal_nan=True)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_result_is_detached_and_of_the_same_dtype(self, dtype):
        coefficients = torch.randn(8, generator=seeded()).to(dtype).requires_grad_()
        pruned = prune_candidates(coefficients, keep=0.5, generator=seeded())
        assert pruned.dtype == dtype
        assert not pruned.requires_grad
        assert 3 <= (pruned != 0).sum() <= 5


def test_answer_keys_are_the_same_in_every_process_and_differ_between_answers():
    keys = answer_keys(["3 + 5", "", "3 + 5", "½"])
    assert keys.tolist()[:2] == [-6294311401712627150, -1970711489451281740]  # b2sum -l 64
    assert keys[0] == keys[2]
    assert len(keys.unique()) == 3
    assert answer_keys([]).shape == (0,)
    assert answer_keys(["\ud800"]) != answer_keys(["\ud801"])  # half a surrogate pair, as models write them
    with pytest.raises(ValueError, match=r"Expected answers to be texts, got answers=\[3\]"):
        answer_keys([3])  # type: ignore[list-item]
