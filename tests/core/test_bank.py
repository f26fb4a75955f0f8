"""A bank keeps one right answer of each kind, within bounds, and rehearses prompts in turn, eq. (9)."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from maxent_grpo import MaxEntConfig, MaxEntObjective
from maxent_grpo.bank import ExemplarBank, Find, Rehearsal

TOKENS = st.lists(st.integers(0, 150_000), min_size=1, max_size=4)
FINDS = st.lists(st.builds(Find, st.sampled_from([[1], [2, 2], [3]]), st.integers(-3, 3), TOKENS), max_size=12)


def list_rows(rehearsal):
    """The rows without their padding: prompt, completion, share."""
    return [(p[m].tolist(), c[n].tolist(), float(s)) for p, m, c, n, s in zip(*vars(rehearsal).values(), strict=True)]


class TestBank:
    @given(FINDS, st.integers(1, 3))
    def test_keeps_the_first_of_each_kind_up_to_its_capacity(self, finds, capacity):
        bank = ExemplarBank(capacity=capacity)
        expected = {}
        for find in finds:
            answers = expected.setdefault(tuple(find.prompt), {})
            if find.key not in answers and len(answers) < capacity:
                answers[find.key] = list(find.completion)
        assert bank.admit(finds) == sum(map(len, expected.values())) == len(bank)
        if finds:
            shown = list_rows(bank.draw(3))
            assert [(p, c) for p, c, _ in shown] == [
                (list(prompt), answer) for prompt, answers in expected.items() for answer in answers.values()
            ]
            assert sum(share for *_, share in shown) == pytest.approx(1.0)
        else:
            assert bank.draw(3) is None

    @given(FINDS, FINDS)
    def test_hears_of_nothing_more_than_of_news(self, first, second):
        """What `is_news` sorts out changes nothing."""
        told, filtered = ExemplarBank(capacity=2), ExemplarBank(capacity=2)
        for finds in (first, second):
            told.admit(finds)
            filtered.admit([find for find in finds if filtered.is_news(find)])
        assert told.state_dict() == filtered.state_dict()

    def test_prompts_take_turns_and_new_ones_wait_for_theirs(self):
        bank = ExemplarBank()
        bank.admit([Find([prompt], 0, [9]) for prompt in (1, 2, 3)])
        turns = [bank.draw(2).prompt_ids.flatten().tolist() for _ in range(2)]
        bank.admit([Find([4], 0, [9]), Find([2], 1, [8])])
        turns += [bank.draw(2).prompt_ids.flatten().tolist() for _ in range(2)]
        assert turns == [[1, 2], [3, 1], [2, 2, 3], [1, 4]]

    def test_the_answers_of_a_prompt_share_its_part(self):
        bank = ExemplarBank()
        bank.admit([Find([1], 0, [9]), Find([1], 1, [8, 8]), Find([2, 2], 0, [7])])
        rehearsal = bank.draw(5)
        assert rehearsal.shares.tolist() == [1 / 4, 1 / 4, 1 / 2]
        assert rehearsal.prompt_ids.tolist() == [[0, 1], [0, 1], [2, 2]]
        assert rehearsal.completion_mask.tolist() == [[True, False], [True, True], [True, False]]

    @given(FINDS)
    def test_memory_is_bounded(self, finds):
        bank = ExemplarBank(most_tokens=7)
        bank.admit(finds)
        rehearsal = bank.draw(3)
        prompts = {tuple(prompt): 1 for prompt, *_ in (list_rows(rehearsal) if rehearsal else [])}
        held = sum(map(len, prompts)) + (int(rehearsal.completion_mask.sum()) if rehearsal else 0)
        assert held == bank.tokens <= 7

    def test_a_find_that_does_not_fit_is_said_once(self, caplog):
        bank = ExemplarBank(most_tokens=5)
        assert bank.admit([Find([1, 2], 0, [3])]) == 1
        assert not caplog.records
        assert bank.admit([Find([4, 5], 0, [6]), Find([7, 8], 0, [9])]) == 0
        (record,) = caplog.records
        assert "holds 3 tokens of most_tokens=5, and an answer of 3 more was not kept" in record.getMessage()

    def test_is_revisited_once_a_prompt_comes_again(self):
        bank = ExemplarBank()
        bank.admit([Find([1], 0, [9]), Find([1], 1, [9])])
        bank.admit([Find([2], 0, [9])])
        assert not bank.is_revisited
        assert bank.is_news(Find([2], 0, [9]))
        bank.admit([Find([2], 0, [9])])
        assert bank.is_revisited
        assert not bank.is_news(Find([2], 0, [9]))

    @given(FINDS, FINDS, st.integers(0, 3))
    def test_a_saved_bank_goes_on_as_if_it_had_not_been(self, first, second, draws):
        bank, resumed = ExemplarBank(capacity=2, most_tokens=12), ExemplarBank(capacity=2, most_tokens=12)
        bank.admit(first)
        for _ in range(draws):
            bank.draw(1)
        file = io.BytesIO()
        torch.save(bank.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        for each in (bank, resumed):
            each.admit(second)
        assert vars(bank) == vars(resumed)
        assert list(bank._answers) == list(resumed._answers)

    @pytest.mark.parametrize("parts", [1, 2, 3, 4])
    def test_is_dealt_into_parts_of_one_size(self, parts):
        bank = ExemplarBank()
        bank.admit([Find([1], key, [key + 1]) for key in range(3)])
        rehearsal = bank.draw(1)
        dealt = [rehearsal.deal(part, parts) for part in range(parts)]
        assert len({len(part) for part in dealt}) == 1
        rows = sorted(row for part in dealt for row in list_rows(part) if row[-1] > 0)
        assert rows == sorted(list_rows(rehearsal))

    @pytest.mark.parametrize("bounds", [{"capacity": 0}, {"most_tokens": 0}])
    def test_refuses_bounds_that_hold_nothing(self, bounds):
        with pytest.raises(ValueError, match=f"Expected {next(iter(bounds))} >= 1"):
            ExemplarBank(**bounds)


@pytest.mark.numerical
class TestRehearsalTerm:
    REDUCTIONS = ({}, {"nll_reduction": "mean"}, {"nll_reduction": "max_length", "max_length": 6})

    @pytest.mark.parametrize("fields", [*REDUCTIONS, {"projection": "surrogate", "max_length": 6}])
    def test_is_the_published_one_whatever_nlls_are_divided_by(self, fields):
        """λ(K−1)/K² · (1/R) Σ_prompts (1/|B|) Σ_b NLL_b/len_b, whatever G is."""
        objective, K, G = MaxEntObjective(MaxEntConfig(bank_weight=0.1, **fields)), 4, 12
        logps = -torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        mask = torch.tensor([[True] * 4, [True, True, False, False], [True, True, True, False]])
        sets = [[0, 1], [2]]
        lengths = mask.sum(-1)
        shares = torch.tensor([1 / 4, 1 / 4, 1 / 2], dtype=torch.float64)
        c = objective.rehearsal_coefficients(shares, lengths, group_size=K, num_groups=G)
        found = objective.loss(logps, c, mask, num_groups=G)
        expected = 0.0
        for rows in sets:
            nlls = [-sum(float(logps[b, t]) for t in range(int(lengths[b]))) / int(lengths[b]) for b in rows]
            expected += sum(nlls) / len(rows)
        assert_close(found, torch.tensor(0.1 * (K - 1) / K**2 * expected / len(sets), dtype=torch.float64),
                     rtol=1e-12, atol=0.0)  # fmt: skip

    def test_without_a_weight_has_no_gradient(self):
        objective = MaxEntObjective(MaxEntConfig())
        logps = torch.zeros(2, 3, requires_grad=True)
        c = objective.rehearsal_coefficients(torch.ones(2), torch.ones(2), group_size=8, num_groups=3)
        objective.loss(logps, c, torch.ones(2, 3, dtype=torch.bool), num_groups=3).backward()
        assert torch.equal(logps.grad, torch.zeros(2, 3))


def test_rows_move_to_a_device_together():
    rehearsal = Rehearsal(*(torch.zeros(1, 1) for _ in range(4)), torch.ones(1)).to("meta")
    assert {value.device.type for value in vars(rehearsal).values()} == {"meta"}
    assert len(rehearsal) == 1
