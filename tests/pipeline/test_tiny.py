"""What the demo is made of: what is sampled, scored and learned from."""

import copy
import dataclasses
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import PreTrainedModel

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters.torch_loop import Rollout
from maxent_grpo.bank import ExemplarBank
from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict
from maxent_grpo.pipeline.tiny import sampling
from maxent_grpo.pipeline.tiny.groups import describe_groups
from maxent_grpo.pipeline.tiny.model import build_model, build_tokenizer
from maxent_grpo.pipeline.tiny.sampling import (
    Samples,
    Task,
    completion_logits,
    sample,
    shared_prompt_logits,
    token_logps,
)
from maxent_grpo.pipeline.tiny.training import LoopSettings, Reinforcement
from support.precision import evaluate

TOKENIZER = build_tokenizer()
PAD, END = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id
SUM = Task(  # a problem is a pair of numbers, whose sum is asked for
    prompt=lambda problem: f"{problem[0]}+{problem[1]}=",
    verify=lambda problem, text: Verdict(True, text) if text == str(sum(problem)) else WRONG,
)
LONG_SUM = Task(prompt=lambda problem: "+".join(map(str, problem)) + "=", verify=SUM.verify)
ALIKE = [(2, 3), (2, 3, 4), (2, 10)]
"""Problems whose prompts begin alike and are not equally long."""


def tokens(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


class Scripted:
    """A model that says what it is told to, whatever it is asked."""

    def __init__(self, *completions: list[int]) -> None:
        self.completions = torch.tensor(completions)
        self.settings: dict[str, object] = {}
        self.model = build_model(TOKENIZER)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def generate(self, *, input_ids: torch.Tensor, **settings: object) -> torch.Tensor:
        self.settings = settings
        return torch.cat([input_ids, self.completions], dim=1)


def scripted_samples(**settings: float) -> tuple[Samples, Scripted]:
    model = Scripted(
        [*tokens("5"), END, PAD],  # right
        [*tokens("4"), END, *tokens("7")],  # wrong, and goes on after its end
        [*tokens("5 5 5")],  # wrong, cut off
        [*tokens("3"), END, PAD],  # right for the second problem alone
    )
    limits = {"num_samples": 2, "max_new_tokens": 3, "static_cache": True}  # with one the model's own loop writes
    return sample(model, TOKENIZER, SUM, [(2, 3), (1, 2)], **limits, **settings), model


def test_every_completion_is_judged_by_its_own_problem_and_rewarded_by_the_verdict() -> None:
    samples, _ = scripted_samples()
    assert [verdict.correct for verdict in samples.verdicts] == [True, False, False, True]
    assert samples.rewards.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_the_mask_counts_the_end_token_and_nothing_after_it() -> None:
    samples, _ = scripted_samples()
    assert samples.mask.tolist() == [[True, True, False]] * 2 + [[True, True, True], [True, True, False]]
    assert samples.texts[:2] == ["5", "4"]


def test_sampling_is_from_the_whole_distribution_at_the_temperature_and_greedy_at_none() -> None:
    _, model = scripted_samples(temperature=0.7)
    assert model.settings.items() >= {"do_sample": True, "temperature": 0.7, "top_k": 0, "max_new_tokens": 3}.items()
    _, model = scripted_samples(temperature=0.0)
    assert model.settings["do_sample"] is False


def test_prompts_that_are_read_once_are_answered_as_if_read_for_each_completion() -> None:
    for seed in range(4):  # some completions end before others do
        model = build_model(TOKENIZER, seed=seed)
        samples = sample(model, TOKENIZER, LONG_SUM, ALIKE, num_samples=2, max_new_tokens=6, temperature=0.0)
        expected = model.generate(
            input_ids=samples.prompts,
            attention_mask=(samples.prompts != PAD).long(),
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=PAD,
        )
        assert samples.ids.tolist() == expected[:, samples.prompts.shape[1] :].tolist()


def test_every_token_is_drawn_from_the_logits_after_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of completions that part, meet no more, and end at different places."""
    model, generator, offered = build_model(TOKENIZER, seed=0), torch.Generator().manual_seed(0), []
    drawn = torch.tensor([END, *tokens("12 + 7")])

    def choose(logits: torch.Tensor, branches: torch.Tensor, temperature: float) -> torch.Tensor:
        offered.append((len(logits), logits[branches]))
        return drawn[torch.randint(len(drawn), (len(branches),), generator=generator)]

    monkeypatch.setattr(sampling, "_choose", choose)
    samples = sample(model, TOKENIZER, LONG_SUM, ALIKE, num_samples=16, max_new_tokens=4)
    assert (samples.prompts == PAD).any()
    with torch.no_grad():
        expected = completion_logits(model, samples.prompts, samples.ids)
    for place, (computed, logits) in enumerate(offered):
        still = samples.mask[:, place]
        assert computed < still.sum()  # fewer beginnings than completions
        torch.testing.assert_close(logits, expected[still, place], rtol=1e-4, atol=1e-5)
    assert len(offered) == 4


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_completions_are_as_frequent_as_they_are_likely(temperature: float) -> None:
    """Those of two tokens, the first of which may be the end, by a chi-squared test at 1 in 10,000."""
    model, drawn = build_model(TOKENIZER, seed=0), 40_000
    with torch.no_grad():  # some tokens are likelier than others
        model.get_output_embeddings().weight.mul_(2.0)
    torch.manual_seed(0)
    samples = sample(model, TOKENIZER, SUM, [(2, 3)], num_samples=drawn, max_new_tokens=2, temperature=temperature)
    counts = Counter(map(tuple, samples.ids.tolist()))
    vocabulary = range(len(TOKENIZER))
    pairs = torch.tensor([(first, second) for first in vocabulary for second in vocabulary if first != END])
    prompt = samples.prompts[:1]
    with torch.no_grad():
        logits = completion_logits(model, prompt.expand(len(pairs), -1), pairs)
    logps = (logits / temperature).log_softmax(-1).gather(-1, pairs.unsqueeze(-1)).squeeze(-1)
    chances = dict(zip(map(tuple, pairs.tolist()), logps.sum(-1).exp().tolist(), strict=True))
    chances[END, PAD] = 1 - sum(chances.values())
    assert counts.keys() <= chances.keys()
    likely = [pair for pair, chance in chances.items() if chance * drawn >= 5]
    observed = [counts[pair] for pair in likely] + [drawn - sum(counts[pair] for pair in likely)]
    expected = [chances[pair] * drawn for pair in likely] + [drawn * (1 - sum(chances[pair] for pair in likely))]
    assert (END, PAD) in likely
    assert len(likely) > 20
    assert chisquare(observed, expected).pvalue > 1e-4


def alone(model: PreTrainedModel, prompt: list[int], completion: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Return the log-probabilities of one completion in a batch of its own, nowhere padded."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)[range(len(completion)), completion]


@pytest.mark.numerical
@torch.no_grad()
def test_log_probabilities_of_a_padded_batch_are_those_of_each_completion_alone() -> None:
    model = build_model(TOKENIZER, seed=1).eval()
    prompts = [tokens("2 3 14 = 15 :"), tokens("7+1="), tokens("20 =")]
    completions = [[*tokens("14+3-2"), END], [*tokens("8"), END], tokens("4*5")]
    width = max(map(len, completions))
    left = TOKENIZER.pad({"input_ids": prompts}, return_tensors="pt")["input_ids"]
    right = torch.tensor([each + [PAD] * (width - len(each)) for each in completions])
    batched = token_logps(model, left, right)
    for row, prompt, completion in zip(batched, prompts, completions, strict=True):
        (exact,) = evaluate(lambda prompt=prompt, completion=completion: [alone(model, prompt, completion)])
        exact.assert_near(row[: len(completion)])


def learner(config: MaxEntConfig, reference: Any = None, **settings: Any) -> Reinforcement:
    loop = {"learning_rate": 1e-3, "prompts_per_step": 4, "num_samples": 4, "max_new_tokens": 3, **settings}
    return Reinforcement(
        build_model(TOKENIZER, seed=0), TOKENIZER, SUM, config, LoopSettings(**loop), reference=reference
    )


@pytest.mark.numerical
@torch.no_grad()
def test_the_policy_in_training_is_the_model_at_the_sampling_temperature() -> None:
    run, (samples, _) = learner(MaxEntConfig(tau=1.0, q_eps=0.0), num_samples=2, temperature=0.5), scripted_samples()
    loss, _ = run._loss(samples)
    weights = torch.tensor([1.0, 0.0]).double().softmax(-1)  # q of each group; at τ = 1 and β = 0 also π*

    def by_hand() -> list[torch.Tensor]:
        losses = []
        for row, weight in enumerate([*weights, *weights.flip(0)]):
            prompt = [token for token in samples.prompts[row].tolist() if token != PAD]
            completion = samples.ids[row][samples.mask[row]].tolist()
            losses.append(-weight * alone(run.model, prompt, completion, temperature=0.5).sum() / 2)  # of two groups
        return [torch.stack(losses).sum()]

    evaluate(by_hand)[0].assert_near(loss)


@pytest.mark.parametrize("shorter", ["7+1=", "2 3 8 ="])
@pytest.mark.parametrize("width", [1, 3])
def test_a_prompt_that_is_read_once_gives_the_same_logits_and_gradients(shorter: str, width: int) -> None:
    model = build_model(TOKENIZER, seed=1).double().train()
    prompts = TOKENIZER.pad({"input_ids": [tokens("2 3 14 = 15 :"), tokens(shorter)]}, return_tensors="pt")[
        "input_ids"
    ]
    owners, ids = torch.tensor([0, 1, 0]), torch.tensor([tokens("1+2"), tokens("8-0"), tokens("4*5")])[:, :width]
    results = []
    for compute in (
        lambda: completion_logits(model, prompts[owners], ids),
        lambda: shared_prompt_logits(model, prompts, ids, owners),
    ):
        model.zero_grad()
        logits = compute()
        logits.pow(2).sum().backward()
        results.append([logits.detach(), *(each.grad.clone() for each in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)  # logits leave in float32


@pytest.mark.parametrize("rewarded", [[0, 1, 0, 0], [0, 0, 0, 1]])
@pytest.mark.parametrize("one_pass_head", [False, True])
def test_a_step_is_the_same_with_prompts_that_are_read_once(rewarded: list[int], one_pass_head: bool) -> None:
    samples, _ = scripted_samples()
    samples.verdicts[:] = [Verdict(correct=bool(right), mode=None) for right in rewarded]
    runs = [
        learner(MaxEntConfig(center=True, skip="all_min"), num_samples=2, active_only=True, temperature=0.7, **shared)
        for shared in ({}, {"share_prompts": True, "one_pass_head": one_pass_head})
    ]
    for run in runs:
        run.model.double()
        run.learn(samples)
    ours, theirs = ([each.grad for each in run.model.parameters()] for run in runs)
    assert max(each.abs().max() for each in ours) > 0.1
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # logits leave in float32


def test_an_entropy_bonus_needs_the_logits() -> None:
    with pytest.raises(
        ValueError, match="no entropy_bonus with one_pass_head, got share_prompts=True, entropy_bonus="
    ):
        learner(MaxEntConfig(), share_prompts=True, one_pass_head=True, entropy_bonus=0.1)


def test_a_static_cache_gives_the_same_answers() -> None:
    model, problems = build_model(TOKENIZER, seed=1), [(2, 3), (17, 20)]
    settings = {"num_samples": 2, "max_new_tokens": 6, "temperature": 0.0}
    one, other = (
        sample(model, TOKENIZER, SUM, problems, static_cache=static, **settings) for static in (False, True)
    )
    assert one.ids.tolist() == other.ids.tolist()


def test_a_second_pass_is_clipped_at_the_policy_that_sampled() -> None:
    config, (samples, _) = MaxEntConfig(tau=1.0, clip_high=0.0, clip_low=0.0), scripted_samples()
    once, twice = (learner(config, num_samples=2, passes=passes, learning_rate=0.01) for passes in (1, 2))
    for run in (once, twice):
        run.model.double()  # where what is left of a gradient that cancels out is far below Adam's ε
    old = once._score_without_grad(once.model, samples)
    once.learn(samples)
    logps = once._log_probs(once.model, samples, slice(None)).gather(-1, samples.ids.unsqueeze(-1)).squeeze(-1)
    rollout = Rollout(samples.rewards, samples.mask, group_sizes=2, old_logps=old, ids=samples.ids)
    once.optimizer.zero_grad()
    once.loss_fn.prepare(rollout).loss(logps).backward()
    once.optimizer.step()
    twice.learn(samples)
    assert ((logps > old) & samples.mask).any()  # there is something to clip
    assert twice.step == 1
    for one, other in zip(once.model.parameters(), twice.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def build_banked_learner() -> Reinforcement:
    run = learner(MaxEntConfig(center=True, skip="all_min", bank_weight=0.5), active_only=True)
    run.bank = ExemplarBank()
    return run


def test_a_run_with_a_bank_goes_on_bit_by_bit_and_learns_from_it_where_no_sample_is_right() -> None:
    samples, _ = scripted_samples()
    assert samples.rewards.any()
    whole, resumed = build_banked_learner(), build_banked_learner()
    for run in (whole, resumed):
        run.settings = dataclasses.replace(run.settings, num_samples=2)
    whole.learn(samples)
    assert whole.bank is not None
    assert len(whole.bank) > 0
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    wrong = dataclasses.replace(samples, verdicts=[WRONG] * len(samples.verdicts))
    before = [parameter.detach().clone() for parameter in whole.model.parameters()]
    for run in (whole, resumed):
        run.learn(wrong)
    assert not all(torch.equal(a, b) for a, b in zip(before, whole.model.parameters(), strict=True))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert whole.bank.state_dict() == resumed.bank.state_dict()


@pytest.mark.numerical
def test_logged_groups_are_the_first_that_tell_candidates_apart_with_the_methods_own_coefficients() -> None:
    prompts = ["all wrong", "one right"]
    samples = SimpleNamespace(
        prompts=torch.tensor([tokens("1+1=")] * 8),
        ids=torch.tensor([[token] for token in tokens("3 3 4 5") + tokens("2 3 3 4")]),
        mask=torch.ones(8, 1, dtype=torch.bool),
        texts=["3", "3", "4", "5", "2", "3", "3", "4"],
        rewards=torch.tensor([0.0, 0, 0, 0, 1, 0, 0, 0]),
    )
    surrogate = MaxEntConfig(projection="surrogate", max_length=3)
    (row,) = describe_groups(samples, learner(surrogate).prepare(samples), prompts)
    assert (row["group"], row["prompt"], row["texts"]) == (1, "one right", ["2", "3", "3", "4"])
    assert row["rewards"] == [1, 0, 0, 0]
    assert row["coefficients"] == pytest.approx([(reward - 1 / 4) / 4 for reward in row["rewards"]])

    method = MaxEntConfig(tau=0.5, dedup=1.0, q_eps=0.0)
    (row,) = describe_groups(samples, learner(method).prepare(samples), prompts)

    def by_hand() -> list[torch.Tensor]:
        q = torch.tensor([1.0, 0, 0, 0]).double().softmax(-1)
        discounted = q**2 / torch.tensor([1.0, 2, 2, 1])
        return [q, discounted / discounted.sum()]

    for name, exact in zip(("q", "weights"), evaluate(by_hand), strict=True):
        exact.assert_near(torch.tensor(row[name]))
    assert row["coefficients"] == row["weights"]
