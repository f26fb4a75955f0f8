"""One training run of an arm with one seed, and the warm start it begins from; both go on after a kill."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from benchmarks.diversity.arms import ARMS
from benchmarks.diversity.presets import PRESETS, Preset, load_problems
from benchmarks.study.outcomes import average_metrics, compute_outcomes
from maxent_grpo import answer_keys
from maxent_grpo.pipeline.tiny.evaluation import greedy_accuracy
from maxent_grpo.pipeline.tiny.jobs import Report, Stopped
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.sampling import Samples, sample, token_logps
from maxent_grpo.pipeline.tiny.storage import Log, load_checkpoint, load_state, save_checkpoint, save_state
from maxent_grpo.pipeline.tiny.training import LoopSettings, Reinforcement
from maxent_grpo.pipeline.tiny.warm_start import warm_start

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
        name = self.arm if self.arm == WARM else f"{self.arm}-{self.learning_rate:g}"
        return self.root / f"seed{self.seed}" / name

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
    tokenizer = preset.family.build_tokenizer()
    model = build_model(tokenizer, hidden_size=preset.hidden_size, layers=preset.layers, seed=run.seed).to(DEVICE)
    pairs = preset.family.build_pair_sampler(load_problems(preset).train)
    for step, loss in enumerate(warm_start(model, tokenizer, pairs, steps=preset.warm_steps, seed=run.seed), 1):
        report((str(run), preset.updates * step // preset.warm_steps, f"loss {loss:.2f}"))
        if stopped():
            return  # half a warm start is no checkpoint: a resumed run starts it over
    save_checkpoint(model, tokenizer, run.folder)
    _evaluate(run, model)


def _train(run: Run, report: Report, stopped: Stopped) -> None:
    preset, log = run.preset, Log(run.folder / "metrics.jsonl")
    problems, state_file = load_problems(preset).train, run.folder / "state.pt"
    loop = build_loop(run)
    state = load_state(state_file)
    if state is not None:
        loop.load_state_dict(state)
    log.keep(lambda row: row["step"] <= loop.step)
    while loop.step < preset.updates and not stopped():
        began = CLOCK()
        samples, statistics = loop.update(problems)
        reward = samples.rewards.mean().item()
        log.append(
            {
                "step": loop.step,
                "reward": reward,
                "tokens": int(samples.mask.sum()),
                "ess": float(statistics.ess),
                "seconds": CLOCK() - began,
            }
        )
        if loop.step % preset.save_every == 0:
            save_state(loop.state_dict(), state_file)
        report((str(run), loop.step, f"reward {reward:.2f}"))
    if loop.step < preset.updates:
        save_state(loop.state_dict(), state_file)
        return
    _evaluate(run, loop.model)
    state_file.unlink(missing_ok=True)


def build_loop(run: Run) -> Reinforcement:
    """Return the training loop of a run at its beginning."""
    preset, arm = run.preset, ARMS[run.arm]
    family = preset.family
    settings = LoopSettings(
        learning_rate=run.learning_rate,
        prompts_per_step=preset.prompts,
        num_samples=preset.samples,
        max_new_tokens=family.max_new_tokens,
        temperature=arm.temperature,
        entropy_bonus=arm.entropy_bonus,
        active_only=True,
        passes=arm.passes,
        seed=run.seed,
    )
    return Reinforcement(
        load_checkpoint(run.warm.folder).to(DEVICE),
        family.build_tokenizer(),
        family.task,
        arm.build_objective(family.max_new_tokens),
        settings,
        keys=partial(hash_answers, read_answer=family.read_answer) if arm.keys == "answer" else None,
    )


def hash_answers(samples: Samples, read_answer: Callable[[str], str]) -> Tensor:
    """Return integers [N], equal where the part of the text that is judged is the same."""
    return answer_keys([read_answer(text) for text in samples.texts])


def _evaluate(run: Run, model: PreTrainedModel) -> None:
    """Log the metrics on problems that were not trained on, and keep the probabilities of the tests' modes."""
    preset, problems = run.preset, load_problems(run.preset)
    family, tokenizer = preset.family, preset.family.build_tokenizer()
    made = {"arm": run.arm, "seed": run.seed, "learning_rate": run.learning_rate}
    step = 0 if run.arm == WARM else preset.updates
    samples = _measure_samples(run, model)
    log = Log(run.folder / "evaluations.jsonl")
    log.keep(lambda row: False)  # a run that was killed while it was evaluated logs all of it anew
    for split, held_out in (("validation", problems.validation), ("test", problems.test)):
        outcomes = compute_outcomes(model, tokenizer, family, held_out, preset.temperatures)
        greedy = greedy_accuracy(model, tokenizer, family.task, held_out, max_new_tokens=family.max_new_tokens)
        for temperature, each in zip(preset.temperatures, outcomes, strict=True):
            place = {"step": step, "split": split, "temperature": temperature}
            log.append({**made, **place, "greedy": greedy, **average_metrics(each), **samples})
    with run.outcomes_file.with_suffix(".new").open("wb") as file:
        np.savez_compressed(file, test=outcomes.astype(np.float16))
    run.outcomes_file.with_suffix(".new").replace(run.outcomes_file)


@torch.no_grad()
def _measure_samples(run: Run, model: PreTrainedModel) -> dict[str, float]:
    """Return what 8 samples for each validation problem at temperature 1 show.

    Their entropy in nats, their length, and how many are right, whether or not their texts are listed.
    """
    family, tokenizer = run.preset.family, run.preset.family.build_tokenizer()
    problems = load_problems(run.preset).validation
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        samples = sample(model, tokenizer, family.task, problems, num_samples=8, max_new_tokens=family.max_new_tokens)
    logps = token_logps(model, samples.prompts, samples.ids).masked_fill(~samples.mask, 0.0)
    return {
        "entropy": -logps.sum(-1).mean().item(),
        "tokens": samples.mask.sum(-1).float().mean().item(),
        SAMPLED: samples.rewards.mean().item(),
    }
