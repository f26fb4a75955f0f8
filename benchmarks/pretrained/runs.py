"""One training run of a method on a task with one seed, from the pretrained model to the line that is kept of it."""

import hashlib
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from benchmarks.pretrained import by_trl
from benchmarks.pretrained.arms import ARMS, BASE, BY_TRL
from benchmarks.pretrained.measures import DIGITS, draw_verdicts, measure_curves, measure_samples, measure_verdicts
from benchmarks.pretrained.tasks import DEVICE, QUESTIONS, START, Question, load_start
from maxent_grpo.pipeline.tiny.evaluation import greedy_accuracy
from maxent_grpo.pipeline.tiny.jobs import Report, Stopped
from maxent_grpo.pipeline.tiny.storage import load_state, save_state
from maxent_grpo.pipeline.tiny.training import LoopSettings, Reinforcement

Line = dict[str, Any]
TUNED_WITH = 100
"""The seed that learning rates are chosen with, on problems of their own."""


@dataclass(frozen=True)
class Run:
    """A method, or the model before training, on a task with a seed and a learning rate."""

    task: str
    arm: str
    seed: int
    rate: float = 0.0

    @property
    def question(self) -> Question:
        """What is asked."""
        return QUESTIONS[self.task]

    def __str__(self) -> str:
        return f"{self.arm} on {self.task}, seed {self.seed}, rate {self.rate:g}"

    def describe(self) -> Line:
        """Return what its line begins with: a line that differs in any of it is of another run.

        Settings are those of the method and the sizes. Who changes prompts, verdicts or splits removes lines by hand.
        """
        settings = repr((ARMS.get(self.arm), asdict(self.question.sizes)))
        return asdict(self) | {"settings": hashlib.sha256(settings.encode()).hexdigest()[:10]}


def work(job: tuple[Run, Path], report: Report, stopped: Stopped) -> None:
    """Make a run and report its line; one that is stopped leaves its state."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if (line := make_line(*job, stopped)) is not None:
        report(line)


def make_line(run: Run, root: Path, stopped: Stopped = lambda: False) -> Line | None:
    """Make a run and return its line, None if it was stopped; one that was cut off goes on from its last state."""
    model, tokenizer = load_start(root, run.task)
    line = run.describe()
    state = root.resolve() / "states" / f"{run.task}-{run.arm}-{run.seed}-{run.rate:g}-{line['settings']}"
    if run.arm == BY_TRL:
        chosen = {"task": run.task, "sizes": run.question.sizes, "seed": run.seed, "rate": run.rate}
        trained = by_trl.train(root.resolve() / START, state, stopped, **chosen)
        if trained is None:
            return None
        model = trained[0]
        line["rewards"] = [round(reward, DIGITS) for reward in trained[1]]
    elif run.arm != BASE:
        seen = _train(run, model, tokenizer, state, stopped)
        if seen is None:
            return None
        line |= seen
    use = "validation" if run.seed == TUNED_WITH else "test"
    line |= measure_model(run.question, model, tokenizer, use)
    if state.is_dir():
        shutil.rmtree(state)
    state.unlink(missing_ok=True)
    return line


def _train(
    run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path, stopped: Stopped
) -> dict[str, Any] | None:
    """Train a model in place, with its state in a file, and return what the updates were like, None if stopped."""
    arm, question, sizes = ARMS[run.arm], run.question, run.question.sizes
    settings = LoopSettings(
        learning_rate=run.rate,
        prompts_per_step=sizes.prompts,
        num_samples=sizes.samples,
        max_new_tokens=sizes.max_new_tokens,
        temperature=arm.temperature,
        active_only=True,
        share_prompts=True,
        one_pass_head=True,
        static_cache=DEVICE == "cuda",
        seed=run.seed,
    )
    loop = Reinforcement(
        model,
        tokenizer,
        question.task,
        arm.build_objective(sizes.max_new_tokens),
        settings,
        keys=question.name_answers if arm.keys == "answer" else None,
        bank=arm.build_bank(),
    )
    rewards: list[float] = []
    seconds: list[tuple[float, float]] = []
    if (state := load_state(file)) is not None:
        rewards, seconds = state["rewards"], state["seconds"]
        loop.load_state_dict(state["loop"])
    problems = question.list_sides()["train"]
    while loop.step < sizes.updates:
        began = time.perf_counter()
        samples = loop.draw(problems)
        drawn = time.perf_counter()
        loop.learn(samples)
        seconds.append((drawn - began, time.perf_counter() - began))
        rewards.append(samples.rewards.mean().item())
        last = stopped()
        if last or loop.step % sizes.save_every == 0 or loop.step == sizes.updates:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_state({"loop": loop.state_dict(), "rewards": rewards, "seconds": seconds}, file)
        if last:
            return None
    return {
        "rewards": [round(reward, DIGITS) for reward in rewards],
        "seconds per update": round(median(whole for _, whole in seconds), 3),
        "share of sampling": round(sum(part for part, _ in seconds) / sum(whole for _, whole in seconds), 3),
    }


def measure_model(question: Question, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, use: str) -> Line:
    """Return what a model knows of problems that it was not trained on, at each sampling temperature."""
    sizes, problems = question.sizes, question.list_sides()[use]
    modes = [len(problem.modes) for problem in problems]
    limits = {"max_new_tokens": sizes.max_new_tokens}
    line: Line = {"temperatures": list(sizes.measured_at)}
    rows = []
    for temperature in sizes.measured_at:
        most = use == "test" and temperature == 1
        drawn = sizes.drawn_most if most else sizes.drawn
        verdicts = draw_verdicts(
            model, tokenizer, question.task, problems, num_samples=drawn, temperature=temperature, **limits
        )
        rows.append(measure_verdicts(verdicts, modes))
        if most:
            line |= measure_curves(verdicts, modes)
    line[use] = {name: [_round(row[name]) for row in rows] for name in rows[0]}
    line["greedy"] = _round(greedy_accuracy(model, tokenizer, question.task, problems, **limits))
    measured = measure_samples(model, tokenizer, question.task, problems, num_samples=8, **limits)
    return line | {name: _round(value) for name, value in measured.items()}


def _round(value: float) -> float | None:
    """Return a figure as a line keeps it; None where there is none, which JSON cannot say otherwise."""
    return None if math.isnan(value) else round(value, DIGITS)
