"""One training run of a method on a task with one seed, from the pretrained model to the line that is kept of it."""

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.pretrained.arms import ARMS, BASE
from benchmarks.pretrained.measures import DIGITS, draw_verdicts, measure_curves, measure_samples, measure_verdicts
from benchmarks.pretrained.tasks import TASK, list_held_out, load_problems, load_start, name_answers
from maxent_grpo.pipeline.tiny.evaluation import greedy_accuracy
from maxent_grpo.pipeline.tiny.storage import load_state, save_state
from maxent_grpo.pipeline.tiny.training import LoopSettings, Reinforcement

Line = dict[str, Any]
TUNED_WITH = 100
"""The seed that learning rates are chosen with, on problems of their own."""


@dataclass(frozen=True)
class Sizes:
    """How large a run is.

    Attributes:
        measured_at: sampling temperatures of the frontier.
        drawn: samples per prompt at each of them; at temperature 1 `drawn_most`.
        save_every: updates between saved states.
    """

    updates: int = 60
    prompts: int = 8
    samples: int = 8
    max_new_tokens: int = 10
    measured_at: tuple[float, ...] = (0.2, 0.6, 1.0, 1.3)
    drawn: int = 16
    drawn_most: int = 64
    save_every: int = 20


@dataclass(frozen=True)
class Run:
    """A method, or the model before training, on a task with a seed and a learning rate."""

    task: str
    arm: str
    seed: int
    rate: float = 0.0

    def describe(self, sizes: Sizes) -> Line:
        """Return what its line begins with: a line that differs in any of it is of another run."""
        settings = repr((ARMS.get(self.arm), asdict(sizes)))
        return asdict(self) | {"settings": hashlib.sha256(settings.encode()).hexdigest()[:10]}


def make_line(run: Run, root: Path, sizes: Sizes) -> Line:
    """Make a run and return its line; a call that was cut off goes on from its last saved state."""
    model, tokenizer = load_start(root)
    line = run.describe(sizes)
    if run.arm != BASE:
        line |= _train(run, model, tokenizer, root, sizes)
    uses = ("validation",) if run.seed == TUNED_WITH else ("test",)
    return line | measure_model(run.task, model, tokenizer, sizes, uses)


def _train(
    run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, root: Path, sizes: Sizes
) -> dict[str, Any]:
    """Train a model in place and return what the updates were like."""
    arm = ARMS[run.arm]
    settings = LoopSettings(
        learning_rate=run.rate,
        prompts_per_step=sizes.prompts,
        num_samples=sizes.samples,
        max_new_tokens=sizes.max_new_tokens,
        temperature=arm.temperature,
        active_only=True,
        share_prompts=True,
        one_pass_head=True,
        static_cache=model.device.type == "cuda",
        seed=run.seed,
    )
    loop = Reinforcement(
        model,
        tokenizer,
        TASK,
        arm.build_objective(sizes.max_new_tokens),
        settings,
        keys=name_answers if arm.keys == "answer" else None,
        bank=arm.build_bank(),
    )
    described = run.describe(sizes)
    file = root / "states" / f"{run.task}-{run.arm}-{run.seed}-{run.rate:g}-{described['settings']}.pt"
    rewards: list[float] = []
    seconds: list[tuple[float, float]] = []
    if (state := load_state(file)) is not None:
        rewards, seconds = state["rewards"], state["seconds"]
        loop.load_state_dict(state["loop"])
    problems = load_problems(run.task).train
    while loop.step < sizes.updates:
        began = time.perf_counter()
        samples = loop.draw(problems)
        drawn = time.perf_counter()
        loop.learn(samples)
        seconds.append((drawn - began, time.perf_counter() - began))
        rewards.append(samples.rewards.mean().item())
        if loop.step % sizes.save_every == 0 and loop.step < sizes.updates:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_state({"loop": loop.state_dict(), "rewards": rewards, "seconds": seconds}, file)
    file.unlink(missing_ok=True)
    return {
        "rewards": [round(reward, DIGITS) for reward in rewards],
        "seconds per update": round(median(whole for _, whole in seconds), 3),
        "share of sampling": round(sum(part for part, _ in seconds) / sum(whole for _, whole in seconds), 3),
    }


def measure_model(
    task: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sizes: Sizes, uses: Sequence[str]
) -> Line:
    """Return what a model knows of problems that it was not trained on, at each sampling temperature."""
    line: Line = {"temperatures": list(sizes.measured_at)}
    for use in uses:
        problems = list_held_out(task)[use]
        modes = [len(problem.modes) for problem in problems]
        rows = []
        for temperature in sizes.measured_at:
            most = use == "test" and temperature == 1
            verdicts = draw_verdicts(
                model,
                tokenizer,
                problems,
                num_samples=sizes.drawn_most if most else sizes.drawn,
                temperature=temperature,
                max_new_tokens=sizes.max_new_tokens,
            )
            rows.append(measure_verdicts(verdicts, modes))
            if most:
                line |= measure_curves(verdicts, modes)
        line[use] = {name: [_round(row[name]) for row in rows] for name in rows[0]}
    limits = {"max_new_tokens": sizes.max_new_tokens}
    line["greedy"] = _round(greedy_accuracy(model, tokenizer, TASK, problems, **limits))
    measured = measure_samples(model, tokenizer, problems, num_samples=8, **limits)
    return line | {name: _round(value) for name, value in measured.items()}


def _round(value: float) -> float | None:
    """Return a figure as a line keeps it; None where there is none, which JSON cannot say otherwise."""
    return None if math.isnan(value) else round(value, DIGITS)
