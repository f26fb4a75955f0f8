"""Reinforcement learning of the tiny model: the loop that a user would write."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo import MaxEntConfig, MaxEntObjective, Statistics
from maxent_grpo.adapters.torch_loop import MaxEntLoss, Rollout, RolloutConstants
from maxent_grpo.bank import ExemplarBank, Rehearsal
from maxent_grpo.kernels import linear_token_logps
from maxent_grpo.pipeline.tiny.sampling import (
    Samples,
    Task,
    completion_logits,
    sample,
    shared_prompt_logits,
    shared_prompt_states,
)


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How a run of reinforcement learning samples and steps.

    Attributes:
        learning_rate: of Adam.
        prompts_per_step: prompts of a batch.
        num_samples: K, completions per prompt.
        max_new_tokens: the generation limit.
        temperature: of the sampling; the policy in training is the model at this temperature.
        entropy_bonus: λ; the loss falls by λ times the entropy of the tokens, divided like the loss by
            `max_new_tokens` and averaged over completions.
        active_only: leave completions whose coefficient is 0 out of forward and backward. The gradient is the
            same; statistics of the policy are left out. An entropy bonus needs all completions.
        passes: optimizer steps per batch; from the second on the loss is clipped at the sampling policy.
        share_prompts: read each prompt once for all of its completions: the same up to rounding, and faster where
            prompts are longer than answers.
        one_pass_head: with `share_prompts`, score tokens without their logits, which are large where the vocabulary
            is. An entropy bonus needs the logits.
        static_cache: sample with a cache of fixed size, for a GPU.
        seed: of batches and samples.
    """

    learning_rate: float
    prompts_per_step: int
    num_samples: int
    max_new_tokens: int
    temperature: float = 1.0
    entropy_bonus: float = 0.0
    active_only: bool = False
    passes: int = 1
    share_prompts: bool = False
    one_pass_head: bool = False
    static_cache: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what goes together."""
        if self.passes < 1:
            raise ValueError(f"Expected passes >= 1, got passes={self.passes!r}.")
        if self.one_pass_head and (self.entropy_bonus or not self.share_prompts):
            raise ValueError(
                "Expected share_prompts and no entropy_bonus with one_pass_head, got "
                f"share_prompts={self.share_prompts!r}, entropy_bonus={self.entropy_bonus!r}."
            )


class Reinforcement:
    """One run of reinforcement learning: on-policy batches, resumable between them.

    Args:
        model: the policy, which is trained in place.
        tokenizer: its tokenizer.
        task: what is asked, and who says what is right.
        method: the loss, by its settings or as an objective.
        settings: of sampling and steps.
        reference: the frozen reference, for β > 0.
        keys: makes integers [N], equal for the same answer, for κ; by default completions are the same if their
            tokens are.
        bank: of right answers to rehearse, by `method`'s weight; none by default.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        method: MaxEntConfig | MaxEntObjective,
        settings: LoopSettings,
        *,
        reference: PreTrainedModel | None = None,
        keys: Callable[[Samples], Tensor] | None = None,
        bank: ExemplarBank | None = None,
    ) -> None:
        self.model, self.tokenizer, self.task, self.settings = model, tokenizer, task, settings
        self.loss_fn = MaxEntLoss(method)
        self.reference = reference if self.loss_fn.objective.config.needs_reference else None
        self.keys, self.bank = keys, bank
        self.optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        self.step = 0

    def update(self, problems: Sequence[Any]) -> tuple[Samples, Statistics]:
        """Draw completions of a batch of `problems`, learn from them, and return what was seen."""
        samples = self.draw(problems)
        return samples, self.learn(samples)

    def draw(self, problems: Sequence[Any]) -> Samples:
        """Return completions of a batch of `problems`, in groups.

        The batch depends on the seed and the step alone, so that all methods see the same prompts. So do the samples
        of a given model: a resumed run continues as if nothing had happened.
        """
        settings = self.settings
        batch = random.Random(f"{settings.seed}/{self.step}").sample(list(problems), settings.prompts_per_step)
        torch.manual_seed(settings.seed * 1_000_003 + self.step)
        return sample(
            self.model,
            self.tokenizer,
            self.task,
            batch,
            num_samples=settings.num_samples,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            static_cache=settings.static_cache,
        )

    def learn(self, samples: Samples) -> Statistics:
        """Take the optimizer steps on what was drawn."""
        self.model.train()
        constants: RolloutConstants | None = None
        rehearsal: Rehearsal | None = None
        for number in range(self.settings.passes):
            loss, constants = self._loss(samples, constants)
            if self.bank is not None and number == 0:  # what was found now is rehearsed now
                prompts = [row[row != self.model.config.pad_token_id].tolist() for row in samples.prompts]
                rehearsal = self.loss_fn.rehearse(self.bank, constants, samples.ids, prompts)
            if rehearsal is not None:
                term = self._rehearse(constants, rehearsal)
                loss = term if loss is None else loss + term
            if loss is None:
                break
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self.step += 1
        assert constants is not None  # there is at least one pass
        return constants.statistics

    def prepare(self, samples: Samples, policy_logps: Tensor | None = None) -> RolloutConstants:
        """Return the constants of an update on these samples: targets, coefficients and their statistics.

        Args:
            policy_logps: [N, T] token log-probabilities of the policy, for settings and statistics that need them.
        """
        if policy_logps is None and self._needs_policy_logps:
            raise ValueError("Expected policy_logps with these settings, got policy_logps=None.")
        ref_logps = self._score_without_grad(self.reference, samples)
        rollout = Rollout(
            samples.rewards,
            samples.mask,
            group_sizes=self.settings.num_samples,
            ids=samples.ids,
            keys=None if self.keys is None else self.keys(samples),
            ref_logps=ref_logps,
            old_logps=policy_logps if self.settings.passes > 1 else None,
            generator=torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step),
        )
        return self.loss_fn.prepare(rollout, policy_logps=policy_logps)

    def _loss(
        self, samples: Samples, constants: RolloutConstants | None = None
    ) -> tuple[Tensor | None, RolloutConstants]:
        """Return the loss of a batch, None where no completion has a coefficient, and the constants it is of.

        Args:
            constants: those from an earlier pass over the batch; in the first they are made here.
        """
        rows: Tensor | slice = slice(None)
        if self.settings.active_only and not self.settings.entropy_bonus:
            # The coefficients come first, so that only completions that have one are scored with a gradient.
            if constants is None:
                scored = self.model if self._needs_policy_logps else None
                constants = self.prepare(samples, self._score_without_grad(scored, samples))
            rows = constants.token_coefficients().any(-1).nonzero().squeeze(-1)
            if len(rows) == 0:
                return None, constants
        log_probs = None
        if self.settings.entropy_bonus:
            log_probs = self._log_probs(self.model, samples, rows)
            logps = _gather_logps(log_probs, samples.ids[rows])
        else:
            logps = self._score(self.model, samples, rows)
        if constants is None:
            constants = self.prepare(samples, logps.detach())
        loss = constants.loss(logps, rows)
        if log_probs is not None:
            entropy = -(log_probs.exp() * log_probs).sum(-1).masked_fill(~samples.mask, 0.0).sum(-1)
            loss = loss - self.settings.entropy_bonus * entropy.mean() / self.settings.max_new_tokens
        return loss, constants

    def _rehearse(self, constants: RolloutConstants, rehearsal: Rehearsal) -> Tensor:
        """Return the term of the banked answers in the loss."""
        pad = self.model.config.pad_token_id
        prompts = rehearsal.prompt_ids.masked_fill(~rehearsal.prompt_mask, pad)
        logits = completion_logits(self.model, prompts, rehearsal.completion_ids) / self.settings.temperature
        return constants.rehearsal_loss(_gather_logps(logits.log_softmax(-1), rehearsal.completion_ids), rehearsal)

    @property
    def _needs_policy_logps(self) -> bool:
        """Whether the constants of an update cannot be had without the sampling policy's log-probabilities."""
        return self.loss_fn.objective.config.needs_old_logps or self.settings.passes > 1

    def _score(self, model: PreTrainedModel, samples: Samples, rows: Tensor | slice) -> Tensor:
        """Return the log-probabilities [n, T] of completion tokens at the training temperature."""
        ids = samples.ids[rows]
        if not self.settings.one_pass_head:
            return _gather_logps(self._log_probs(model, samples, rows), ids)
        states = shared_prompt_states(model, *self._split_prompts(samples, rows))
        head = model.get_output_embeddings()
        return linear_token_logps(states, head.weight, ids, bias=head.bias, temperature=self.settings.temperature)

    def _log_probs(self, model: PreTrainedModel, samples: Samples, rows: Tensor | slice) -> Tensor:
        """Return the log-probabilities [n, T, V] of every token at the training temperature."""
        if self.settings.share_prompts:
            logits = shared_prompt_logits(model, *self._split_prompts(samples, rows))
        else:
            logits = completion_logits(model, samples.prompts[rows], samples.ids[rows])
        return (logits / self.settings.temperature).log_softmax(-1)

    def _split_prompts(self, samples: Samples, rows: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return the prompts of some rows, once each, the completions there, and whose they are."""
        size = self.settings.num_samples
        groups = torch.arange(len(samples.ids), device=samples.ids.device)[rows] // size
        kept, owners = torch.unique(groups, return_inverse=True)
        return samples.prompts[kept * size], samples.ids[rows], owners

    @torch.no_grad()
    def _score_without_grad(self, model: PreTrainedModel | None, samples: Samples) -> Tensor | None:
        """Return a model's token log-probabilities [N, T] as constants."""
        return None if model is None else self._score(model, samples, slice(None))

    def state_dict(self) -> dict[str, Any]:
        """Return what a later `load_state_dict` needs to go on."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        return state if self.bank is None else state | {"bank": self.bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])


def _gather_logps(log_probs: Tensor, ids: Tensor) -> Tensor:
    return log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
