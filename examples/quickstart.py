"""Train a small language model on Countdown with Dr.GRPO and with MaxEnt-GRPO, on a CPU, and compare them.

    python examples/quickstart.py                    # two to three minutes of training on 2 cores
    python examples/quickstart.py --seeds 3          # three seeds, averaged
    python examples/quickstart.py --resume           # go on after Ctrl-C

A Qwen2-architecture model of 0.3 million parameters is warmed up by supervised learning on a skewed mix of
solutions. From that one checkpoint each method trains on the same prompts with the same number of sampled
completions. Countdown problems have several right answers; coverage@8 says how many of them 8 samples find.
"""

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from maxent_grpo import MaxEntConfig, Statistics
from tasks import countdown
from tasks.splits import Split, split
from tiny.evaluation import evaluate, greedy_accuracy, guesser_metrics
from tiny.model import build_model, build_tokenizer
from tiny.report import save_picture, write_table
from tiny.sampling import Samples, Task
from tiny.training import Reinforcement, warm_start

MAX_NEW_TOKENS = 8  # the longest answers, (20-19)*18 and its like, with the end token
TEMPERATURES = (0.6, 0.8, 1.0, 1.2)
TASK = Task(prompt=countdown.prompt, verify=countdown.verify)
ARMS = ("dr_grpo", "maxent", "maxent_diverse")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    published, diverse = MaxEntConfig(), MaxEntConfig.diverse()
    add = parser.add_argument
    add("--steps", type=int, default=240, help="updates of each method (%(default)s)")
    add("--seed", type=int, default=0, help="the first seed (%(default)s)")
    add("--seeds", type=int, default=1, help="how many seeds to train and average (%(default)s)")
    add("--tau", type=float, default=published.tau, help="temperature of the target, both MaxEnt arms (%(default)s)")
    add("--beta", type=float, default=published.beta, help="pull to the warm start, both MaxEnt arms (%(default)s)")
    add("--dedup", type=float, default=diverse.dedup, help="κ, discount of duplicates, diverse arm (%(default)s)")
    add("--group-scale", type=float, default=diverse.group_scale, help="a, diverse arm (%(default)s)")
    add("--learning-rate", type=float, default=1e-4, help="of Adam, all methods (%(default)s)")
    add("--prompts", type=int, default=32, help="prompts an update (%(default)s)")
    add("--samples", type=int, default=8, help="completions a prompt, K (%(default)s)")
    add("--temperature", type=float, default=1.0, help="sampling temperature in training (%(default)s)")
    add("--warm-steps", type=int, default=300, help="steps of supervised learning before (%(default)s)")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="methods to train (all)")
    add("--eval-every", type=int, default=20, help="updates between evaluations and saves (%(default)s)")
    add("--eval-prompts", type=int, default=512, help="held-out problems of the final evaluation (%(default)s)")
    add("--eval-samples", type=int, default=16, help="completions a held-out problem, >= 8 (%(default)s)")
    add("--output", type=Path, default=Path("runs/demo"), help="where results go (%(default)s)")
    add("--resume", action="store_true", help="go on with the run in --output")
    options = parser.parse_args(argv)
    for name in ("steps", "seeds", "prompts", "samples", "warm_steps", "eval_every", "eval_prompts"):
        if getattr(options, name) < 1:
            parser.error(f"Expected --{name.replace('_', '-')} >= 1, got {getattr(options, name)}.")
    if options.eval_samples < 8:
        parser.error(f"Expected --eval-samples >= 8, got {options.eval_samples}.")
    return options


def arm_config(arm: str, options: argparse.Namespace) -> MaxEntConfig:
    """Return the settings of a method. Dr.GRPO is the surrogate with equal candidate weights."""
    if arm == "dr_grpo":
        return MaxEntConfig(projection="surrogate", max_length=MAX_NEW_TOKENS)
    if arm == "maxent":
        return MaxEntConfig(tau=options.tau, beta=options.beta)
    return dataclasses.replace(
        MaxEntConfig.diverse(max_length=MAX_NEW_TOKENS),
        tau=options.tau,
        beta=options.beta,
        dedup=options.dedup,
        group_scale=options.group_scale,
    )


def skewed_pairs(problems: tuple[countdown.Problem, ...]) -> Any:
    """Return a sampler of (prompt, answer): each mode half as likely as the one before, written in any way."""
    solutions = [countdown.solutions(problem) for problem in problems]

    def pair(rng: random.Random) -> tuple[str, str]:
        which = rng.randrange(len(problems))
        modes = sorted(solutions[which])
        rank = next((rank for rank in range(len(modes) - 1) if rng.random() < 0.5), len(modes) - 1)
        return countdown.prompt(problems[which]), rng.choice(solutions[which][modes[rank]])

    return pair


class Demo:
    """One call of the demo: the files it writes, and the work in order."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options, self.console = options, console
        self.output: Path = options.output
        self.metrics_file = self.output / "metrics.jsonl"
        self.problems: Split[countdown.Problem] = split(
            countdown.problems(countdown.WIDE), held_out=options.eval_prompts, seed=0
        )
        self.tokenizer = build_tokenizer()
        self._open_output()

    def run(self) -> None:
        """Train and evaluate every method for every seed, then write table and pictures."""
        columns = ("{task.description:<22}", "[dim]{task.fields[news]}")
        with Progress(
            TextColumn(columns[0]), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn(columns[1]),
            console=self.console,
        ) as bar:  # fmt: skip
            for seed in range(self.options.seed, self.options.seed + self.options.seeds):
                self._warm(seed, bar)
                self._evaluate("warm_start", seed, self._load(self._folder("warm_start", seed)))
                for arm in self.options.arms:
                    self._train(arm, seed, bar)
        guess_rng = random.Random(0)
        guesser = guesser_metrics(
            lambda problem: countdown.random_answer(problem, guess_rng), TASK, self.problems.held_out, num_samples=64
        )
        rows = [json.loads(line) for line in self.metrics_file.read_text().splitlines()]
        self.console.print(write_table(rows, guesser, self.output))
        save_picture(rows, self.output / "curves.png")
        self.console.print(f"Results, checkpoints and pictures are in {self.output}/.")

    def _open_output(self) -> None:
        """Start afresh, or check that a resumed run has the options it was started with."""
        settings = {name: value for name, value in vars(self.options).items() if name not in ("output", "resume")}
        file = self.output / "config.json"
        if self.options.resume and file.exists():
            for name, before in json.loads(file.read_text()).items():
                if settings[name] != before:
                    raise SystemExit(f"Expected --{name.replace('_', '-')} {before} to resume, got {settings[name]}.")
            return
        self.output.mkdir(parents=True, exist_ok=True)
        for state in self.output.glob("seed*/*/state.pt"):
            state.unlink()
        self.metrics_file.write_text("")
        file.write_text(json.dumps(settings, indent=2) + "\n")

    def _folder(self, arm: str, seed: int) -> Path:
        return self.output / f"seed{seed}" / arm

    def _load(self, folder: Path) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415

        return AutoModelForCausalLM.from_pretrained(folder)

    def _warm(self, seed: int, bar: Progress) -> None:
        folder, total = self._folder("warm_start", seed), self.options.warm_steps
        if (folder / "state.pt").exists():
            return
        model = build_model(self.tokenizer, seed=seed)
        progress = bar.add_task(f"warm start, seed {seed}", total=total, news="")
        pairs = skewed_pairs(self.problems.train)
        for loss in warm_start(model, self.tokenizer, pairs, steps=total, seed=seed):
            bar.update(progress, advance=1, news=f"loss {loss:.2f}")
        self._save(model, folder)
        torch.save({}, folder / "state.pt")  # its presence says that the checkpoint is whole

    def _save(self, model: PreTrainedModel, folder: Path) -> None:
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _train(self, arm: str, seed: int, bar: Progress) -> None:
        options, folder = self.options, self._folder(arm, seed)
        warm = self._load(self._folder("warm_start", seed))
        run = Reinforcement(
            self._load(self._folder("warm_start", seed)),
            self.tokenizer,
            TASK,
            arm_config(arm, options),
            reference=warm,
            learning_rate=options.learning_rate,
            prompts_per_step=options.prompts,
            num_samples=options.samples,
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=options.temperature,
            seed=seed,
        )
        if (folder / "state.pt").exists():
            run.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
        self._forget_after(arm, seed, run.step)
        folder.mkdir(parents=True, exist_ok=True)
        progress = bar.add_task(f"{arm}, seed {seed}", total=options.steps, completed=run.step, news="")
        try:
            for news in self._updates(run, arm, seed):
                bar.update(progress, completed=run.step, news=news)
        finally:  # also on Ctrl-C: what was trained is kept
            torch.save(run.state_dict(), folder / "state.pt")
        if not (folder / "config.json").exists() or run.step == options.steps:
            self._save(run.model, folder)
        self._evaluate(arm, seed, run.model)

    def _updates(self, run: Reinforcement, arm: str, seed: int) -> Iterator[str]:
        """Train to the end, logging every update; yield the latest news."""
        curve: dict[str, float] = {}
        while run.step < self.options.steps:
            samples, statistics = run.update(self.problems.train)
            entry = {"arm": arm, "seed": seed, "step": run.step, **_update_entry(samples, statistics)}
            if run.step % self.options.eval_every == 0 or run.step == self.options.steps:
                curve = self._metrics(run.model, 128, 1.0, num_samples=8, seed=run.step)
                entry |= curve
                torch.save(run.state_dict(), self._folder(arm, seed) / "state.pt")
            self._log(entry)
            held_out = "".join(f" {name} {curve[name]:.3f}" for name in ("mean@8", "coverage@8") if curve)
            gap = entry.get("maxent/improvement_gap", float("nan"))
            yield f"reward {entry['reward']:.3f}{held_out} ess {entry['maxent/ess']:.1f} gap {gap:.3f}"

    def _metrics(
        self, model: PreTrainedModel, problems: int, temperature: float, *, num_samples: int, seed: int
    ) -> dict[str, float]:
        return evaluate(
            model,
            self.tokenizer,
            TASK,
            self.problems.held_out[:problems],
            temperature=temperature,
            num_samples=num_samples,
            max_new_tokens=MAX_NEW_TOKENS,
            seed=seed,
        )

    def _evaluate(self, arm: str, seed: int, model: PreTrainedModel) -> None:
        """Log the final metrics of a model at every sampling temperature, once."""
        logged = self.metrics_file.read_text().splitlines()
        done = {
            (row["arm"], row["seed"], row["temperature"]) for row in map(json.loads, logged) if "temperature" in row
        }
        greedy = greedy_accuracy(model, self.tokenizer, TASK, self.problems.held_out, max_new_tokens=MAX_NEW_TOKENS)
        for temperature in TEMPERATURES:
            if (arm, seed, temperature) not in done:
                row = self._metrics(
                    model, self.options.eval_prompts, temperature, num_samples=self.options.eval_samples, seed=seed
                )
                self._log({"arm": arm, "seed": seed, "temperature": temperature, "pass@1": greedy, **row})

    def _log(self, entry: dict[str, Any]) -> None:
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _forget_after(self, arm: str, seed: int, step: int) -> None:
        """Drop logged updates that a resumed run makes again."""
        rows = [json.loads(line) for line in self.metrics_file.read_text().splitlines()]
        kept = [row for row in rows if (row["arm"], row["seed"]) != (arm, seed) or row.get("step", 0) <= step]
        self.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in kept))


def _update_entry(samples: Samples, statistics: Statistics) -> dict[str, float]:
    entries = {name: float(value) for name, value in statistics.as_dict().items()}
    return {"reward": samples.rewards.mean().item(), "tokens": int(samples.mask.sum()), **entries}


def main(argv: list[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    options = arguments(argv)
    console = Console()
    try:
        Demo(options, console).run()
    except KeyboardInterrupt:
        console.print(
            f"Interrupted. What was trained is in {options.output}/; the same command with --resume goes on."
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
