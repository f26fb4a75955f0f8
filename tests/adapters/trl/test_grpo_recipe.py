"""What trained with TRL's GRPO trains with one line changed, and with gradients of the same size."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from maxent_grpo.adapters.trl import MaxEntGRPOConfig, MaxEntGRPOTrainer
from maxent_grpo.adapters.trl.options import REFUSED
from maxent_grpo.pipeline.run import Run, parse_run
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.storage import save_checkpoint
from maxent_grpo.pipeline.tiny.wide_countdown import TOKENIZER
from maxent_grpo.pipeline.train import build_trainer
from support import trl_tiny
from support.trl_options import OTHER_VALUES

TINY = Path(__file__).parents[3] / "examples/recipes/tiny-cpu/grpo/config_countdown.yaml"
SHORT = {
    "per_device_train_batch_size": 16,
    "max_steps": 2,
    "save_strategy": "no",
    "do_eval": False,
    "eval_share": 0.0,
    "learning_rate": 1e-3,
}
RECIPES = {
    "the shipped tiny recipe": {},
    "a recipe with every option that is refused": OTHER_VALUES,
    "a recipe with a KL term, an entropy bonus and two clipped updates": {
        "beta": 0.04, "entropy_coef": 0.01, "num_iterations": 2, "epsilon_high": 0.28,
        "mask_truncated_completions": True,
    },
}  # fmt: skip


def write_recipe(folder: Path, fields: dict[str, Any]) -> Path:
    """Write the tiny recipe with other values of some fields."""
    recipe = yaml.safe_load(TINY.read_text()) | SHORT | {"output_dir": str(folder / "run")} | fields
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def change_one_line(recipe: Path) -> Path:
    text = recipe.read_text()
    assert text.count("task: grpo\n") == 1
    ours = recipe.with_name("ours.yaml")
    ours.write_text(text.replace("task: grpo\n", "task: maxent\n"))
    return ours


def flatten(model: Any) -> Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize("fields", RECIPES.values(), ids=RECIPES)
def test_a_grpo_recipe_trains_with_one_line_changed(fields: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(build_model(TOKENIZER), TOKENIZER, tmp_path / "tiny-countdown")  # untrained, so in no time
    recipe = write_recipe(tmp_path, fields)
    plain, ours = (parse_run(["--config", str(path)]) for path in (recipe, change_one_line(recipe)))
    assert not isinstance(plain.training, MaxEntGRPOConfig)
    refused = {"loss_type", "scale_rewards"} | (fields.keys() & REFUSED.keys())
    assert {line.split("=")[0] for line in ours.changed} == refused
    assert all(line.endswith(REFUSED[line.split("=")[0]].lost) for line in ours.changed)
    trainer = build_trainer(ours)
    assert isinstance(trainer, MaxEntGRPOTrainer)
    before = flatten(trainer.model)
    trainer.train()
    moved = flatten(trainer.model) - before
    assert moved.isfinite().all()
    assert moved.abs().max() > 0


def test_a_training_script_for_grpo_runs_with_the_two_names_changed(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6, "max_steps": 2,
        "beta": 0.04, "epsilon_high": 0.28, "entropy_coef": 0.01, "mask_truncated_completions": True,
        "max_grad_norm": 0.1, "use_cpu": True, "bf16": False, "save_strategy": "no", "report_to": "none",
    }  # fmt: skip
    for trainer, arguments in ((GRPOTrainer, GRPOConfig), (MaxEntGRPOTrainer, MaxEntGRPOConfig)):
        run = trainer(
            trl_tiny.save_model(tmp_path / "start"),
            trl_tiny.reward,
            arguments(str(tmp_path / "run"), **settings),
            trl_tiny.make_prompts(16),
        )
        run.train()
        assert run.state.global_step == 2
        assert (run.args.beta, run.beta) == (0.04, 0.04)


class GradientNorms(TrainerCallback):
    """Keeps the norm of the gradient of every update."""

    def __init__(self) -> None:
        self.norms: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
        self.norms.append(torch.stack(norms).norm())


def measure_norms(folder: Path, updates: int, *flags: str) -> Tensor:
    """Return the gradient norms of the tiny recipe's first updates."""
    short = ["--max_steps", str(updates), "--save_strategy", "no", "--do_eval", "false"]
    run: Run = parse_run(["--config", str(TINY), "--output_dir", str(folder / "run"), *short, *flags])
    trainer, kept = build_trainer(run), GradientNorms()
    trainer.add_callback(kept)
    trainer.train()
    return torch.stack(kept.norms)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_gradients_have_the_size_of_dr_grpo_over_the_first_updates_of_the_tiny_recipe(tmp_path: Path) -> None:
    """Within a factor of 3, the two trainers side by side on one seed.

    With the policy held where it starts, both see the same completions in every update, and every update is compared.
    Each trainer then goes its own way, so that single updates differ by chance and their median is compared.
    """
    ours, theirs = ["--task", "maxent"], ["--loss_type", "dr_grpo"]
    held = ["--learning_rate", "0.0"]
    at_the_start = measure_norms(tmp_path, 8, *ours, *held) / measure_norms(tmp_path, 8, *theirs, *held)
    assert len(at_the_start) == 8
    assert at_the_start.min() > 1 / 3
    assert at_the_start.max() < 3
    in_training = measure_norms(tmp_path, 20, *ours) / measure_norms(tmp_path, 20, *theirs)
    assert len(in_training) == 20
    assert 1 / 3 < in_training.median() < 3
