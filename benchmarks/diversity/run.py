"""One training run of an arm with one seed, and the warm start it begins from; both go on after a kill."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from benchmarks.diversity.arms import ARMS, answer_keys, mode_keys
from benchmarks.diversity.metrics import averages
from benchmarks.diversity.outcomes import Outcomes, exact_outcomes
from benchmarks.diversity.presets import PRESETS, Preset, Problems, problems_of, skewed_pairs
from maxent_grpo.pipeline.tiny.evaluation import greedy_accuracy
from maxent_grpo.pipeline.tiny.jobs import Report, Stopped
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.sampling import Samples, sample, token_logps
from maxent_grpo.pipeline.tiny.storage import Log, load_checkpoint, load_state, save_checkpoint, save_state
from maxent_grpo.pipeline.tiny.training import Reinforcement, warm_start

WARM = "warm_start"
SAMPLED = "mean@8 of samples"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOCK = time.perf_counter if DEVICE == "cuda" else time.process_time  # runs share a CPU's cores


@dataclass(frozen=True)
class Run:
    """An arm (or the warm start) with a seed and a learning rate, under a folder of the study."""

    root: Path
    preset_name: str
    arm: str
    seed: int
    learning_rate: float = 0.0

    def __str__(self) -> str:
        """Return the name that progress shows."""
        return f"{self.arm} {self.learning_rate:g}, seed {self.seed}"

    @property
    def preset(self) -> Preset:
        """The sizes."""
        return PRESETS[self.preset_name]

    @property
    def folder(self) -> Path:
        """Where it keeps everything."""
        return (
            self.root / f"seed{self.seed}" / (self.arm if self.arm == WARM else f"{self.arm}-{self.learning_rate:g}")
        )

    @property
    def outcomes_file(self) -> Path:
        """The probabilities of all modes at the end; it is written last, so that it marks a finished run."""
        return self.folder / "outcomes.npz"

    @property
    def done(self) -> bool:
        """Whether all that is reported is there."""
        return self.outcomes_file.exists()

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do: a warm start without weights has nothing to begin a run from."""
        return self.done and (self.arm != WARM or (self.folder / "model.safetensors").exists())

    @property
    def warm(self) -> "Run":
        """The run it starts from."""
        return Run(self.root, self.preset_name, WARM, self.seed)


def work(run: Run, report: Report, stopped: Stopped) -> None:
    """Do what is left of a run."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not run.complete:
        (_warm_up if run.arm == WARM else _train)(run, report, stopped)
    report((str(run), run.preset.updates, "done" if run.complete else "stopped"))


def _warm_up(run: Run, report: Report, stopped: Stopped) -> None:
    preset = run.preset
    tokenizer = preset.family.tokenizer()
    model = build_model(tokenizer, hidden_size=preset.hidden_size, layers=preset.layers, seed=run.seed).to(DEVICE)
    pairs = skewed_pairs(preset.family, problems_of(preset).train)
    for step, loss in enumerate(warm_start(model, tokenizer, pairs, steps=preset.warm_steps, seed=run.seed), 1):
        report((str(run), preset.updates * step // preset.warm_steps, f"loss {loss:.2f}"))
        if stopped():
            return  # half a warm start is no checkpoint: a resumed run starts it over
    save_checkpoint(model, tokenizer, run.folder)
    _evaluate_finally(run, model)


def _train(run: Run, report: Report, stopped: Stopped) -> None:
    preset, problems, log = run.preset, problems_of(run.preset), Log(run.folder / "metrics.jsonl")
    loop = _loop(run)
    state = load_state(run.folder / "state.pt")
    if state is not None:
        loop.load_state_dict(state)
    log.keep(lambda row: row["step"] <= loop.step)
    while loop.step < preset.updates and not stopped():
        began = CLOCK()
        samples = loop.draw(problems.train)
        drawn = CLOCK()
        statistics = loop.learn(samples)
        ended = CLOCK()
        row = {
            "step": loop.step,
            "reward": samples.rewards.mean().item(),
            "tokens": int(samples.mask.sum()),
            "ess": float(statistics.ess),
            "different": _different(samples, preset.samples),
            "seconds": ended - began,
            "learning_seconds": ended - drawn,
        }
        log.append(row)
        if loop.step % preset.eval_every == 0 and loop.step < preset.updates:
            _log_evaluations(run, loop.model, loop.step, problems.validation, "validation")
            save_state(loop.state_dict(), run.folder / "state.pt")
        report((str(run), loop.step, f"reward {row['reward']:.2f}"))
    if loop.step < preset.updates:
        save_state(loop.state_dict(), run.folder / "state.pt")
        return
    _evaluate_finally(run, loop.model)
    (run.folder / "state.pt").unlink(missing_ok=True)


def _different(samples: Samples, group_size: int) -> float:
    """Return how many texts of a group are different, as a share of them, averaged over groups."""
    starts = range(0, len(samples.texts), group_size)
    return sum(len(set(samples.texts[start : start + group_size])) for start in starts) / len(samples.texts)


def _loop(run: Run) -> Reinforcement:
    """Return the training loop of a run at its beginning."""
    preset, arm = run.preset, ARMS[run.arm]
    config = arm.sized(preset.family.max_new_tokens)
    keys = {"tokens": None, "mode": mode_keys, "answer": partial(answer_keys, answer=preset.family.answer)}
    loop = Reinforcement(
        load_checkpoint(run.warm.folder).to(DEVICE),
        preset.family.tokenizer(),
        preset.family.task,
        config,
        reference=load_checkpoint(run.warm.folder).to(DEVICE) if config.needs_reference else None,
        correct_reference=arm.correct_reference,
        learning_rate=run.learning_rate,
        prompts_per_step=preset.prompts,
        num_samples=preset.samples,
        max_new_tokens=preset.family.max_new_tokens,
        temperature=arm.temperature,
        entropy_bonus=arm.entropy_bonus,
        active_only=True,
        passes=arm.passes,
        keys=keys[arm.keys],
        seed=run.seed,
    )
    loop.loss_fn.objective = arm.make(config)
    return loop


def _log_evaluations(
    run: Run, model: PreTrainedModel, step: int, problems: Any, split: str, **more: float
) -> Outcomes:
    """Log the metrics at every temperature, a line each, and return the outcomes they are of."""
    preset = run.preset
    family, tokenizer = preset.family, preset.family.tokenizer()
    outcomes = exact_outcomes(model, tokenizer, family, problems, preset.temperatures)
    greedy = greedy_accuracy(model, tokenizer, family.task, problems, max_new_tokens=family.max_new_tokens)
    log = Log(run.folder / "evaluations.jsonl")
    log.keep(lambda row: (row["step"], row["split"]) != (step, split))
    for temperature, each in zip(preset.temperatures, outcomes, strict=True):
        metrics = averages(each)
        log.append({"arm": run.arm, "seed": run.seed, "learning_rate": run.learning_rate, "step": step,
                    "split": split, "temperature": temperature, "greedy": greedy, **metrics, **more})  # fmt: skip
    return outcomes


def _evaluate_finally(run: Run, model: PreTrainedModel) -> None:
    """Evaluate a trained model on all problems it was not trained on, and keep every mode's probability."""
    problems: Problems = problems_of(run.preset)
    step = 0 if run.arm == WARM else run.preset.updates
    seen, accuracy = _sampled(run, model, problems)
    for split in ("validation", "control", "test"):
        held_out = getattr(problems, split)
        more = {**seen, SAMPLED: accuracy} if split == "validation" else seen
        outcomes = _log_evaluations(run, model, step, held_out, split, **more)
    with run.outcomes_file.with_suffix(".new").open("wb") as file:
        np.savez_compressed(file, test=outcomes.astype(np.float16))
    run.outcomes_file.with_suffix(".new").replace(run.outcomes_file)


@torch.no_grad()
def _sampled(run: Run, model: PreTrainedModel, problems: Problems) -> tuple[dict[str, float], float]:
    """Return the entropy of 8 answers a problem at temperature 1 in nats and their length, and how many are right."""
    tokenizer, family = run.preset.family.tokenizer(), run.preset.family
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        samples = sample(
            model, tokenizer, family.task, problems.validation, num_samples=8, max_new_tokens=family.max_new_tokens
        )
    logps = token_logps(model, samples.prompts, samples.ids).masked_fill(~samples.mask, 0.0)
    seen = {"entropy": -logps.sum(-1).mean().item(), "tokens": samples.mask.sum(-1).float().mean().item()}
    return seen, samples.rewards.mean().item()
