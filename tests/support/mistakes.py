"""Mistakes as a new user makes them: the files that are there, the command line, and what answers it.

HF_HUB_OFFLINE=1 PYTHONPATH=tests:. python -m support.mistakes > tests/golden/mistakes.txt
"""

import contextlib
import io
import json
import os
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maxent_grpo import preview
from maxent_grpo.pipeline import evaluate, train
from maxent_grpo.pipeline.launch import __main__ as launch
from maxent_grpo.pipeline.tiny import demo
from support.recipes import MATH, write_recipe

COMMANDS: dict[str, Callable[[list[str]], Any]] = {
    "python examples/train.py": train.main,
    "python examples/evaluate.py": evaluate.main,
    "python examples/quickstart.py": demo.main,
    "maxent-preview": preview.main,
    "bash examples/slurm_train.sh": launch.main,
}
GOLDEN = Path(__file__).parents[1] / "golden" / "mistakes.txt"


@dataclass(frozen=True)
class Mistake:
    """A command line that cannot be followed.

    Attributes:
        what: the mistake, in words.
        command: the line.
        recipe: fields of recipe.yaml, beside those of the tiny recipe; None takes one out.
        files: others that are there.
    """

    what: str
    command: str
    recipe: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


TRAIN = "python examples/train.py --config recipe.yaml"
EVALUATE = "python examples/evaluate.py"
COUNTDOWN = {"dataset_name": "rows.jsonl", "reward_funcs": ["countdown"], "do_eval": False}
ANSWERS = MATH | {"dataset_name": "rows.jsonl"}


def train_on(what: str, *rows: dict[str, Any], **recipe: Any) -> Mistake:
    """Return training on rows that do not fit."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return Mistake(what, TRAIN, recipe or ANSWERS, {"rows.jsonl": content})


MISTAKES = [
    Mistake("a dataset file that is not there, with do_eval", f"{TRAIN} --dataset_name nope.jsonl"),
    train_on("fewer prompts than one rollout takes", {"prompt": "1+1", "solution": "2"}),
    train_on(
        "a solution that holds others, as verl has it",
        {"prompt": "1+1", "solution": {"style": "rule", "ground_truth": "5"}},
    ),
    train_on("a list of solutions", {"prompt": "1+1", "solution": ["2"]}, {"prompt": "2", "solution": ["2", "3"]}),
    train_on("a target that is text", {"prompt": "x", "numbers": [1, 2], "target": "3"}, **COUNTDOWN),
    train_on("numbers that are text", {"prompt": "x", "numbers": "1 2", "target": 3}, **COUNTDOWN),
    Mistake(
        "data in Latin-1",
        TRAIN,
        ANSWERS,
        {"rows.jsonl": b'{"prompt": "1", "solution": "2"}\n{"prompt": "caf\xe9"}\n'},
    ),
    Mistake("a cache that a recipe sets too late", TRAIN, {"env": {"HF_HOME": "elsewhere"}}),
    Mistake("a setting that is spelled wrong", f"{TRAIN} --maxent_tua 0.5"),
    Mistake("a field that is spelled wrong", TRAIN, {"maxent_dedupp": 1.0}),
    Mistake("a learning rate that is no number", f"{TRAIN} --learning_rate nan"),
    Mistake("a learning rate below 0, in the recipe", TRAIN, {"learning_rate": -1.0}),
    Mistake("a τ below 0, as a flag", f"{TRAIN} --maxent_tau -1"),
    Mistake("a τ that float32 does not hold", f"{TRAIN} --maxent_tau 1e39"),
    Mistake("a clip below 0", f"{TRAIN} --epsilon -1"),
    Mistake("a share of the tokens above 1", f"{TRAIN} --top_p 2"),
    Mistake("a seed below 0", f"{TRAIN} --seed -1"),
    Mistake("an endless temperature", f"{EVALUATE} model --task countdown --temperature inf"),
    Mistake("no steps", "python examples/quickstart.py --steps 0"),
    Mistake("seven samples per prompt in batches of 256", f"{TRAIN} --num_generations 7"),
    Mistake("YAML that contains itself", "python examples/train.py --config own.yaml", {}, {
        "own.yaml": b"model_init_kwargs: &a {inside: *a}\n",
    }),
    Mistake("YAML that is nested without end", "python examples/train.py --config deep.yaml", {}, {
        "deep.yaml": b"a: " + b"[" * 3000,
    }),
    Mistake("YAML whose aliases double in every line", "python examples/train.py --config bomb.yaml", {}, {
        "bomb.yaml": b"a: &a [x, x]\n"
        + b"".join(b"%c: &%c [*%c, *%c]\n" % (n, n, n - 1, n - 1) for n in range(98, 123)),
    }),
    Mistake("no recipe", "python examples/train.py"),
    Mistake("a folder of data that is not there", TRAIN, {"dataset_name": "./data"}),
    Mistake("data in a format that is not read", TRAIN, {"dataset_name": "rows.tsv"}, {"rows.tsv": b"prompt"}),
    train_on(
        "fewer prompts than one rollout takes, without those that have no solution",
        *({"prompt": f"{n} + 1", "solution": "" if n % 2 else str(n + 1)} for n in range(40)),
    ),
    Mistake("a checkpoint that is no folder of one", f"{TRAIN} --resume_from_checkpoint ."),
    Mistake("a login in the recipe", TRAIN, {"hub_token": "hf_abcdef"}),
    Mistake("an output folder under a file", f"{TRAIN} --output_dir recipe.yaml/run"),
    Mistake("a reward that nobody has registered", TRAIN, {"reward_funcs": ["count_down"]}),
    Mistake("a checkpoint that is not there", f"{EVALUATE} runs/nothere --task countdown --output out"),
    Mistake("a benchmark that is nearly one", f"{EVALUATE} model --lighteval math_50 --dry-run"),
    Mistake("two things to ask at once", f"{EVALUATE} model --task countdown --dataset rows.jsonl"),
    Mistake("a demo under a file", "python examples/quickstart.py --output recipe.yaml/run"),
    Mistake("rollouts without a reward", "maxent-preview rollouts.jsonl", {}, {
        "rollouts.jsonl": b'{"prompt": "1+1", "completion": "2"}\n',
    }),
    Mistake("rollouts in Latin-1", "maxent-preview rollouts.jsonl", {}, {
        "rollouts.jsonl": b'{"rewards": [1]}\n{"rewards": [1], "texts": ["caf\xe9"]}\n',
    }),
    Mistake("rollouts that are not there", "maxent-preview nope.jsonl"),
    Mistake("a flag of the cluster that is spelled wrong", "bash examples/slurm_train.sh --nods 2"),
    Mistake("one GPU to serve and to train", "bash examples/slurm_train.sh --gpus 1 --dry-run"),
]  # fmt: skip


def answer_mistake(mistake: Mistake) -> str:
    """Return what the command says to a mistake made in an empty folder; its exit code is not 0."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_recipe(Path(folder), **{"output_dir": "run"} | mistake.recipe)
        for name, content in mistake.files.items():
            Path(name).write_bytes(content)
        program = next(program for program in COMMANDS if mistake.command.startswith(program))
        flags = shlex.split(mistake.command.removeprefix(program))
        if program.startswith("bash"):
            os.chdir(Path(__file__).parents[2])  # it is sent from the repository
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                code = COMMANDS[program](flags)
            except SystemExit as end:
                code = end.code
        if isinstance(code, str):
            return code
        assert code, mistake.command
        return said.getvalue().removesuffix("\n")


def write_transcript(mistake: Mistake, answer: str) -> str:
    """Return a mistake with its answer, as a terminal would show both."""
    lines = [f"# {mistake.what}"]
    fields = ", ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in mistake.recipe.items())
    lines += [f"# recipe.yaml: {fields}"] if fields else []
    lines += [f"# {name}: {shorten(content)}" for name, content in mistake.files.items()]
    return "\n".join([*lines, f"$ {mistake.command}", answer, ""])


def shorten(content: bytes) -> str:
    text = content.decode("latin-1").rstrip("\n").replace("\n", " | ")
    return text if len(text) <= 100 else f"{text[:40]}... ({len(content)} bytes)"


if __name__ == "__main__":
    print("\n".join(write_transcript(mistake, answer_mistake(mistake)) for mistake in MISTAKES), end="")
