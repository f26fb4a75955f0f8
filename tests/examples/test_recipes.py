"""Recipes and accelerate files: all of them load, their batches are whole groups, and their memory is estimated."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType
from trl import GRPOConfig

import train
from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters._trl_preflight import preflight_report
from maxent_grpo.adapters.trl import MaxEntGRPOConfig
from training.arguments import Run, run_of
from training.memory import GIB, LAYOUTS, memory_parts, memory_report, model_shape, parameter_counts

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted((EXAMPLES / "recipes").rglob("*.yaml"))
LAUNCHERS = sorted((EXAMPLES / "accelerate").glob("*.yaml"))
MATH_1B = EXAMPLES / "recipes/Qwen2.5-1.5B-Instruct/maxent/config_math.yaml"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def loaded(recipe: Path, *flags: str) -> Run:
    return run_of(["--config", str(recipe), "--preflight-only", *flags])


def named(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


def test_there_is_a_recipe_of_each_task_for_each_model() -> None:
    found = {named(path.parent.parent) for path in RECIPES}
    assert found == {
        f"recipes/{name}"
        for name in (
            "Qwen2.5-0.5B-Instruct",
            "Qwen2.5-1.5B-Instruct",
            "Qwen2.5-7B-Instruct",
            "Llama-3.1-8B-Instruct",
            "tiny-cpu",
        )
    }
    for path in RECIPES:
        assert path.parent.parent / "grpo" / path.name in RECIPES
        assert path.parent.parent / "maxent" / path.name in RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_a_recipe_loads_and_its_batches_are_whole_groups(recipe: Path) -> None:
    run = loaded(recipe)
    args = run.training
    assert run.script.task == recipe.parent.name
    assert isinstance(args, MaxEntGRPOConfig) == (run.script.task == "maxent")
    assert args.per_device_train_batch_size % args.num_generations == 0  # so on any number of GPUs
    assert args.per_device_eval_batch_size % (args.num_generations_eval or args.num_generations) == 0
    assert run.dropped == {}
    if isinstance(args, MaxEntGRPOConfig):
        shape, _ = model_shape(run.model)
        assert f"x {args.num_generations} candidates per rollout" in preflight_report(args, shape, None, None)


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.parent.name == "maxent"], ids=named)
def test_a_recipe_of_ours_runs_plain_grpo_too(recipe: Path) -> None:
    run, ours = loaded(recipe, "--task", "grpo", "--maxent_tau", "0.7", "--maxent-center=true"), loaded(recipe)
    assert type(run.training) is GRPOConfig
    assert {"init_kl_coeff": 0.0, "maxent_tau": "0.7", "maxent_center": "true"}.items() <= run.dropped.items()
    for name in (
        "learning_rate",
        "num_generations",
        "per_device_train_batch_size",
        "max_steps",
        "max_completion_length",
    ):
        assert getattr(run.training, name) == getattr(ours.training, name)
    assert "left out with --task grpo" in train.description(run)


def test_the_math_recipes_are_the_method_as_published() -> None:
    config = loaded(MATH_1B).training.maxent_config()
    assert config == MaxEntConfig(max_length=2048)


def test_the_countdown_recipes_keep_several_answers_alive() -> None:
    recipe = MATH_1B.with_name("config_countdown.yaml")
    assert loaded(recipe).training.maxent_config() == MaxEntConfig.diverse(max_length=512)


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=named)
def test_an_accelerate_file_loads(launcher: Path) -> None:
    config = load_config_from_file(str(launcher))
    assert isinstance(config, ClusterConfig)
    assert config.use_cpu == launcher.name.startswith("cpu_")
    assert config.num_processes == (2 if config.use_cpu else 8)


def test_the_accelerate_files_are_the_layouts_of_the_memory_estimate() -> None:
    stages: dict[str, Any] = {}
    for launcher in LAUNCHERS:
        config = load_config_from_file(str(launcher))
        stages[launcher.stem] = config.deepspeed_config.get("zero_stage") or config.fsdp_config.get("fsdp_version")
        assert (config.distributed_type is DistributedType.DEEPSPEED) == ("zero" in launcher.stem)
    assert stages == {
        "ddp": None,
        "zero1": 1,
        "zero2": 2,
        "zero3": 3,
        "fsdp2": 2,
        "cpu_ddp": None,
        "cpu_zero3": 3,
    }
    assert set(LAYOUTS) == {name for name in stages if not name.startswith("cpu_")}


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [
        ("Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Llama-3.1-8B-Instruct", 8_030_261_248),
    ],
)
def test_the_shapes_of_the_table_have_the_published_number_of_parameters(recipe: str, parameters: int) -> None:
    run = loaded(EXAMPLES / "recipes" / recipe / "maxent/config_math.yaml")
    shape, origin = model_shape(run.model)
    assert parameter_counts(shape, run.model) == (parameters, parameters)
    assert "model_shapes.json" in origin


def test_the_states_are_shared_as_the_stages_of_zero_say() -> None:
    run = loaded(MATH_1B)
    shape, _ = model_shape(run.model)
    count = 1_543_714_304
    parts = {name: memory_parts(run, shape, layout, 8) for name, layout in LAYOUTS.items()}
    assert parts["zero1"]["weights"] == parts["zero2"]["weights"] == 2 * count
    assert parts["zero3"]["weights"] == 2 * count / 8 + 2 * count / 28
    assert [parts[name]["gradients"] for name in LAYOUTS] == [2 * count, 2 * count, *[2 * count / 8] * 3]
    assert [parts[name]["optimiser"] for name in LAYOUTS] == [4 * count, *[12 * count / 8] * 3, 4 * count / 8]
    assert all(each["reference"] == 0 for each in parts.values())
    anchored = memory_parts(loaded(MATH_1B, "--init_kl_coeff", "0.1"), shape, LAYOUTS["zero3"], 8)
    assert anchored["reference"] == 2 * count / 8
    assert parts["zero2"]["total"] == pytest.approx(
        2 * count + 2 * count / 8 + 12 * count / 8 + 0.25 * 80 * GIB
        + parts["zero2"]["activations"] + parts["zero2"]["logits"]
    )  # fmt: skip


def test_an_adapter_takes_states_for_its_own_parameters_alone() -> None:
    run = loaded(MATH_1B, "--use_peft", "--lora_r", "8", "--lora_target_modules", "q_proj", "k_proj")
    shape, _ = model_shape(run.model)
    trained = 28 * 8 * ((1536 + 1536) + (1536 + 256))
    assert parameter_counts(shape, run.model) == (1_543_714_304, trained)
    assert memory_parts(run, shape, LAYOUTS["ddp"], 8)["gradients"] == 2 * trained


def test_the_memory_of_the_math_recipe_is_printed_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--config", str(MATH_1B), "--preflight-only"])
    printed = capsys.readouterr().out
    assert "1,543,714,304 parameters" in printed
    assert "on 8 GPUs 32 prompts x 8 candidates per rollout, 32 prompts per optimiser step" in printed
    for name in LAYOUTS:
        (row,) = [line for line in printed.splitlines() if line.strip().startswith(f"{name} ")]
        assert row.endswith("fits")


def test_what_does_not_fit_is_said_so() -> None:
    recipe = EXAMPLES / "recipes/Llama-3.1-8B-Instruct/maxent/config_math.yaml"
    rows = {line.split()[0]: line for line in memory_report(loaded(recipe)).splitlines()[3:]}
    assert rows["zero1"].endswith("too much")
    assert rows["zero3"].endswith("fits")
    assert memory_report(loaded(recipe, "--gpu_memory", "24")).count("too much") == len(LAYOUTS)


def test_a_model_that_nothing_knows_is_named() -> None:
    with pytest.raises(ValueError, match="got model_name_or_path='no/such-model'"):
        model_shape(SimpleNamespace(model_name_or_path="no/such-model", model_revision="main"))  # type: ignore[arg-type]


def test_the_readers_of_recipes_leave_the_environment_alone() -> None:
    before = dict(os.environ)
    loaded(MATH_1B)
    assert dict(os.environ) == before
