"""One training run of a method with one seed, from its warm start to the line that the study keeps of it."""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from benchmarks.study import oracle
from benchmarks.study.arms import ARMS, WARM
from benchmarks.study.outcomes import KS, average_metrics, compute_outcomes
from benchmarks.study.tasks import (
    FAMILIES,
    SIZES,
    TEMPERATURES,
    TESTED,
    VALIDATED,
    Family,
    Sizes,
    load_problems,
)
from maxent_grpo import answer_keys
from maxent_grpo.pipeline.key_functions import name_modes
from maxent_grpo.pipeline.tiny.evaluation import greedy_accuracy
from maxent_grpo.pipeline.tiny.jobs import Report, Stopped
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.sampling import Samples, sample, token_logps
from maxent_grpo.pipeline.tiny.storage import load_checkpoint, save_checkpoint
from maxent_grpo.pipeline.tiny.training import LoopSettings, Reinforcement
from maxent_grpo.pipeline.tiny.warm_start import warm_start

Line = dict[str, Any]
SHOWN_EVERY = 20
DIGITS = 5
ROUNDING = 1e-3
"""How much a start that is made by another processor may differ in what is measured of it."""
KEPT = ("mean@8", "pass@8", "coverage@8", "PCMD@8")
"""What a line has of every temperature; pass@k at temperature 1 alone, where a curve says enough."""


@dataclass(frozen=True)
class Run:
    """A method, or the warm start, on a task with a seed and a learning rate.

    Attributes:
        root: folder for warm starts, which all methods of a seed share.
        fresh: whether it is tested on problems that nothing was chosen by.
    """

    root: Path
    task: str
    arm: str
    seed: int
    rate: float = 0.0
    fresh: bool = False

    def __str__(self) -> str:
        """Return the name that progress shows."""
        return f"{self.task} {self.arm} {self.rate:g}, seed {self.seed}"

    @property
    def family(self) -> Family:
        """What is asked."""
        return FAMILIES[self.task]

    @property
    def sizes(self) -> Sizes:
        """How large everything is."""
        return SIZES[self.task]

    @property
    def warm(self) -> Path:
        """The checkpoint that it starts from."""
        return self.root / self.task / f"{'fresh' if self.fresh else 'seed'}{self.seed}"

    def hash_settings(self) -> str:
        """Return a hash of what the run depends on beside its start."""
        measured = (TEMPERATURES, TESTED, VALIDATED)
        settings = repr((ARMS.get(self.arm), self.sizes.training_sizes, measured))
        return hashlib.sha256(settings.encode()).hexdigest()[:10]

    def describe(self) -> Line:
        """Return what its line begins with: a line that differs in any of it is of another run."""
        return {
            "task": self.task,
            "arm": self.arm,
            "seed": self.seed,
            "rate": self.rate,
            "fresh": self.fresh,
            "settings": self.hash_settings(),
        }


def work(run: Run, report: Report, stopped: Stopped) -> None:
    """Make a run and report its line as `(name, updates, news, line)`; a stopped one leaves nothing."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    line = (_warm_up if run.arm == WARM else _train)(run, report, stopped)
    report((str(run), run.sizes.updates, "stopped" if line is None else "done", line))


def _warm_up(run: Run, report: Report, stopped: Stopped) -> Line | None:
    sizes, tokenizer = run.sizes, run.family.build_tokenizer()
    if (run.warm / "config.json").exists():
        return run.describe() | measure_model(run, load_checkpoint(run.warm))
    model = build_model(tokenizer, hidden_size=sizes.hidden_size, layers=sizes.layers, seed=run.seed)
    pairs = run.family.build_pair_sampler(load_problems(run.task, fresh=run.fresh).train)
    for step, loss in enumerate(warm_start(model, tokenizer, pairs, steps=sizes.warm_steps, seed=run.seed), 1):
        if step % SHOWN_EVERY == 0:
            report((str(run), sizes.updates * step // sizes.warm_steps, f"loss {loss:.2f}", None))
        if stopped():
            return None
    save_checkpoint(model, tokenizer, run.warm)
    return run.describe() | measure_model(run, model)


def _train(run: Run, report: Report, stopped: Stopped) -> Line | None:
    problems, loop = load_problems(run.task, fresh=run.fresh).train[: run.sizes.recurring], build_loop(run)
    while loop.step < run.sizes.updates:
        if stopped():
            return None
        samples, _ = loop.update(problems)
        if loop.step % SHOWN_EVERY == 0:
            report((str(run), loop.step, f"reward {samples.rewards.mean().item():.2f}", None))
    banked = {} if loop.bank is None else {"banked": len(loop.bank)}
    return run.describe() | measure_model(run, loop.model) | banked


def build_loop(run: Run) -> Reinforcement:
    """Return the training loop of a run at its beginning."""
    arm, family, sizes = ARMS[run.arm], run.family, run.sizes
    settings = LoopSettings(
        learning_rate=run.rate,
        prompts_per_step=sizes.prompts,
        num_samples=sizes.samples,
        max_new_tokens=family.max_new_tokens,
        temperature=arm.temperature,
        entropy_bonus=arm.entropy_bonus,
        active_only=True,
        passes=arm.passes,
        share_prompts=True,
        seed=run.seed,
    )
    told = oracle.NAME in arm.config.utility_transform
    return Reinforcement(
        load_checkpoint(run.warm),
        family.build_tokenizer(),
        oracle.build_oracle_task(family) if told else family.task,
        arm.build_objective(family.max_new_tokens),
        settings,
        keys=None if arm.keys == "tokens" else partial(hash_answers, family=family, by_mode=arm.keys == "mode"),
        bank=arm.build_bank(),
    )


def hash_answers(samples: Samples, family: Family, *, by_mode: bool) -> Tensor:
    """Return integers [N], equal where the judged part of the text is the same, or the mode of a right answer."""
    answers = [family.read_answer(text) for text in samples.texts]
    return answer_keys(name_modes(samples.verdicts, answers) if by_mode else answers)


def measure_model(run: Run, model: PreTrainedModel) -> Line:
    """Return what a model knows of problems that it was not trained on, at each sampling temperature."""
    family, tokenizer = run.family, run.family.build_tokenizer()
    problems, line = load_problems(run.task, fresh=run.fresh), {}
    for split, held_out in (("validation", problems.validation), ("test", problems.test)):
        outcomes = compute_outcomes(model, tokenizer, family, held_out, TEMPERATURES)
        rows = [average_metrics(each) for each in outcomes]
        line[split] = {name: [round(row[name], DIGITS) for row in rows] for name in KEPT}
    tested = rows[TEMPERATURES.index(1.0)]
    curve = [round(tested[f"pass@{k}"], DIGITS) for k in KS]
    greedy = greedy_accuracy(model, tokenizer, family.task, held_out, max_new_tokens=family.max_new_tokens)
    return line | {"pass@k": curve, "greedy": round(greedy, DIGITS)} | _measure_samples(run, model)


@torch.no_grad()
def _measure_samples(run: Run, model: PreTrainedModel) -> dict[str, float]:
    """Return the entropy in nats and the length of 8 samples per validation problem, and how many are right.

    Samples may be right by a text that is not listed: their share of right ones against the listed texts' says so.
    """
    family, tokenizer = run.family, run.family.build_tokenizer()
    problems = load_problems(run.task, fresh=run.fresh).validation
    torch.manual_seed(run.seed)
    samples = sample(model, tokenizer, family.task, problems, num_samples=8, max_new_tokens=family.max_new_tokens)
    logps = token_logps(model, samples.prompts, samples.ids).masked_fill(~samples.mask, 0.0)
    measured = {
        "entropy": -logps.sum(-1).mean().item(),
        "tokens": samples.mask.sum(-1).float().mean().item(),
        "sampled mean@8": samples.rewards.mean().item(),
    }
    return {name: round(value, DIGITS) for name, value in measured.items()}


def belongs_to(line: Line, described: Line) -> bool:
    """Return whether a line is that of a run: what it begins with is what it would be now."""
    return {name: line[name] for name in described} == described


def is_same_start(line: Line, other: Line) -> bool:
    """Return whether two lines are of the same start, which processors make alike but for rounding.

    Methods are paired by seed from the same start. Two that only share their settings differ by points.
    """
    pairs = (
        (line[split][name], other[split][name])
        for split in ("validation", "test")
        for name in ("mean@8", "coverage@8")
    )
    return all(np.allclose(first, second, rtol=0.0, atol=ROUNDING) for first, second in pairs)


def read_lines(file: Path) -> list[Line]:
    """Return the lines of a stage; none where there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
