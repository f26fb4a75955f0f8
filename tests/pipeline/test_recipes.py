"""Recipes and accelerate files: all of them load, their batches are whole groups, and their memory is estimated."""

import os
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters.trl import MaxEntGRPOConfig
from maxent_grpo.adapters.trl.options import REFUSED
from maxent_grpo.adapters.trl.preflight import write_preflight
from maxent_grpo.pipeline import train
from maxent_grpo.pipeline.memory import (
    GIB,
    LAYOUTS,
    count_parameters,
    estimate_memory,
    list_precision_warnings,
    load_shape,
    report_memory,
)
from maxent_grpo.pipeline.run import Run, parse_run

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted((EXAMPLES / "recipes").rglob("*.yaml"))
LAUNCHERS = sorted((EXAMPLES / "accelerate").glob("*.yaml"))
PLAIN = [path for path in RECIPES if path.parent.name == "grpo"]
OURS = [path for path in RECIPES if path.parent.name == "maxent"]
MATH_1B = EXAMPLES / "recipes/Qwen2.5-1.5B-Instruct/maxent/config_math.yaml"
PLAIN_MATH_1B = EXAMPLES / "recipes/Qwen2.5-1.5B-Instruct/grpo/config_math.yaml"


def name_recipe(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


def name_sibling(path: Path, task: str) -> Path:
    """Return where the recipe of the same name for a task would be."""
    return path.parent.with_name(task) / path.name


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def load(recipe: Path, *flags: str) -> Run:
    return parse_run(["--config", str(recipe), "--preflight-only", *flags])


def test_there_are_recipes_for_each_model_and_those_of_ours_have_a_plain_one_beside_them() -> None:
    assert {path.parents[1].name for path in RECIPES} == {
        "Qwen2.5-0.5B-Instruct",
        "Qwen2.5-1.5B-Instruct",
        "Qwen2.5-7B-Instruct",
        "Llama-3.1-8B-Instruct",
        "SmolLM2-135M-Instruct",
        "tiny-cpu",
        "tiny-served",
    }
    assert {path.parent.name for path in RECIPES} == {"grpo", "maxent"}
    for path in [path for path in OURS if path.parents[1].name != "tiny-served"]:  # the rehearsal's, of ours alone
        assert name_sibling(path, "grpo") in PLAIN


@pytest.mark.parametrize("recipe", RECIPES, ids=name_recipe)
def test_a_recipe_loads_and_its_batches_are_whole_groups(recipe: Path) -> None:
    run = load(recipe)
    args = run.training
    assert run.recipe == recipe
    assert run.script.task == recipe.parent.name
    assert isinstance(args, MaxEntGRPOConfig) == (run.script.task == "maxent")
    assert args.per_device_train_batch_size % args.num_generations == 0  # so on any number of GPUs
    assert args.per_device_eval_batch_size % (args.num_generations_eval or args.num_generations) == 0
    assert run.changed == ()
    if isinstance(args, MaxEntGRPOConfig):
        shape, _ = load_shape(run)
        assert f"x {args.num_generations} candidates per rollout" in write_preflight(args, shape, None, None)


def list_arguments(run: Run) -> dict[str, Any]:
    """Return the trainer's arguments but for what names the run."""
    return {name: value for name, value in run.training.to_dict().items() if name not in ("output_dir", "run_name")}


@pytest.mark.parametrize("recipe", PLAIN, ids=name_recipe)
def test_either_task_runs_from_either_path_and_reads_its_own_recipe_where_there_is_one(recipe: Path) -> None:
    ours = name_sibling(recipe, "maxent")
    for task, wanted in (("grpo", recipe), ("maxent", ours if ours.exists() else recipe)):
        for path in (recipe, ours):
            run = load(path, "--task", task)
            assert (run.script.task, run.recipe) == (task, wanted)
            assert isinstance(run.training, MaxEntGRPOConfig) == (task == "maxent")
            assert run.training.output_dir == f"runs/{recipe.parents[1].name}/{task}-{recipe.stem.split('_')[1]}"
    assert load(ours).script.task == "maxent"  # the path says so, whether or not there is a file


def test_a_recipe_that_lies_elsewhere_is_read_whatever_the_task(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(PLAIN_MATH_1B.read_text())
    for task in ("grpo", "maxent"):
        assert load(file, "--task", task).recipe == file


@pytest.mark.parametrize("recipe", OURS, ids=name_recipe)
def test_a_recipe_of_ours_alone_runs_the_plain_grpo_of_the_grpo_recipe(recipe: Path, tmp_path: Path) -> None:
    alone = tmp_path / "recipe.yaml"
    alone.write_text(recipe.read_text())
    run = load(alone, "--task", "grpo", "--maxent_tau", "0.7", "--maxent-center=true")
    assert not isinstance(run.training, MaxEntGRPOConfig)
    assert run.training.loss_type == "grpo"
    assert list_arguments(run) == list_arguments(load(name_sibling(recipe, "grpo")))
    changes = {"maxent_preset=diverse is left out", "maxent_tau=0.7 is left out", "maxent_center=true is left out"}
    assert changes <= {*run.changed}
    assert "with --task grpo, maxent_tau=0.7 is left out" in train.describe_run(run).splitlines()


@pytest.mark.parametrize(
    "recipe", [path for path in PLAIN if not name_sibling(path, "maxent").exists()], ids=name_recipe
)
def test_a_grpo_recipe_runs_the_method_as_published_on_the_scale_of_grpo(recipe: Path) -> None:
    run = load(recipe, "--task", "maxent")
    assert run.changed == (
        f"loss_type=grpo is left out: {REFUSED['loss_type'].lost}",
        f"scale_rewards=group is left out: {REFUSED['scale_rewards'].lost}",
    )
    expected = MaxEntConfig(nll_reduction="max_length", max_length=run.training.max_completion_length)
    assert run.training.maxent_config() == expected


def test_beta_keeps_its_meaning_for_either_trainer(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(PLAIN_MATH_1B.read_text().replace("beta: 0.0", "beta: 0.04\ninit_kl_coeff: 0.1"))
    plain, ours = load(recipe), load(recipe, "--task", "maxent")
    assert plain.training.beta == ours.training.beta == 0.04
    assert ours.training.maxent_config().beta == 0.1
    assert plain.changed == ("init_kl_coeff=0.1 is left out",)


def test_options_of_trl_that_our_trainer_refuses_are_left_out_of_recipes_but_not_of_flags() -> None:
    assert load(PLAIN_MATH_1B, "--loss_type", "dapo").training.loss_type == "dapo"
    with pytest.raises(ValueError, match=r"loss_type to be left out .*got loss_type='dapo'"):
        load(PLAIN_MATH_1B, "--task", "maxent", "--loss_type", "dapo")


def test_the_countdown_recipes_keep_several_answers_alive() -> None:
    recipe = MATH_1B.with_name("config_countdown.yaml")
    assert load(recipe).training.maxent_config() == MaxEntConfig.diverse(max_length=512)


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=name_recipe)
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
    run = load(EXAMPLES / "recipes" / recipe / "maxent/config_math.yaml")
    shape, origin = load_shape(run)
    assert count_parameters(shape, run.model) == (parameters, parameters)
    assert "model_shapes.json" in origin


def test_the_states_are_shared_as_the_stages_of_zero_say() -> None:
    run = load(MATH_1B)
    shape, _ = load_shape(run)
    count = 1_543_714_304
    parts = {name: estimate_memory(run, shape, layout, 8) for name, layout in LAYOUTS.items()}
    assert parts["ddp"]["weights"] == 6 * count  # float32, and autocast's copy
    assert parts["zero1"]["weights"] == parts["zero2"]["weights"] == 2 * count
    assert parts["zero3"]["weights"] == 2 * count / 8 + 2 * count / 28
    assert [parts[name]["gradients"] for name in LAYOUTS] == [
        4 * count,
        2 * count,
        *[2 * count / 8] * 2,
        4 * count / 8,
    ]
    assert [parts[name]["optimizer"] for name in LAYOUTS] == [8 * count, *[12 * count / 8] * 3, 8 * count / 8]
    assert all(each["reference"] == 0 for each in parts.values())
    anchored = estimate_memory(load(MATH_1B, "--init_kl_coeff", "0.1"), shape, LAYOUTS["zero3"], 8)
    assert anchored["reference"] == 2 * count / 8
    assert parts["zero2"]["total"] == pytest.approx(
        2 * count + 2 * count / 8 + 12 * count / 8 + 0.25 * 80 * GIB
        + parts["zero2"]["activations"] + parts["zero2"]["logits"]
    )  # fmt: skip


def test_training_in_bfloat16_without_float32_copies_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    run = load(MATH_1B)
    (warning,) = list_precision_warnings(run)
    assert "dtype=bfloat16" in warning
    assert warning in report_memory(run)
    assert list_precision_warnings(load(MATH_1B, "--dtype", "float32")) == []
    assert list_precision_warnings(load(MATH_1B, "--use_peft")) == []
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert list_precision_warnings(run) == []


VLLM = [path for path in RECIPES if "use_vllm: true" in path.read_text() and "tiny" not in str(path)]


@pytest.mark.parametrize("recipe", VLLM, ids=name_recipe)
def test_the_share_of_vllm_holds_its_weights_and_a_whole_sequence(recipe: Path) -> None:
    (line,) = [line for line in report_memory(load(recipe)).splitlines() if "vLLM's share" in line]
    assert line.endswith(": fits")


def test_a_context_whose_cache_vllm_cannot_hold_is_said_so() -> None:
    recipe = EXAMPLES / "recipes/Llama-3.1-8B-Instruct/maxent/config_math.yaml"
    whole = report_memory(load(recipe, "--vllm_max_model_length", "131072"))
    # 32 layers, keys and values of 1024 numbers of 2 bytes: 16 GiB beside 15 GiB of weights, in 24 GiB
    assert "weights of 15.0 and a KV cache of vllm_max_model_length=131072 of 16.0: raise" in whole
    assert whole.count("too much") == len(LAYOUTS)
    short = report_memory(load(recipe, "--vllm_max_model_length", "1024"))
    assert "vllm_max_model_length is under the 2730 tokens of a sequence" in short


def test_the_preflight_is_of_as_many_ranks_as_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--config", str(MATH_1B), "--preflight-only", "--gpus", "4"])
    printed = capsys.readouterr().out
    assert "16 prompts x 8 candidates per rollout (2 micro-batches of 16 on 4 ranks)" in printed
    assert "on 4 GPUs 16 prompts x 8 candidates per rollout" in printed
    with pytest.raises(SystemExit, match=r"\(18 of 3 ranks\) divisible by num_generations=8"):
        train.main(
            [
                *("--config", str(MATH_1B), "--preflight-only", "--gpus", "3"),
                *("--per_device_train_batch_size", "3", "--per_device_eval_batch_size", "16"),
            ]
        )


def test_an_adapter_takes_states_for_its_own_parameters_alone() -> None:
    run = load(MATH_1B, "--use_peft", "--lora_r", "8", "--lora_target_modules", "q_proj", "k_proj")
    shape, _ = load_shape(run)
    trained = 28 * 8 * ((1536 + 1536) + (1536 + 256))
    assert count_parameters(shape, run.model) == (1_543_714_304, trained)
    assert estimate_memory(run, shape, LAYOUTS["ddp"], 8)["gradients"] == 2 * trained


def test_the_memory_of_the_math_recipe_is_printed_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--config", str(MATH_1B), "--preflight-only"])
    printed = capsys.readouterr().out
    assert "1,543,714,304 parameters" in printed
    assert "on 8 GPUs 32 prompts x 8 candidates per rollout, 32 prompts per optimizer step" in printed
    for name in LAYOUTS:
        (row,) = [line for line in printed.splitlines() if line.strip().startswith(f"{name} ")]
        assert row.endswith("fits")


def test_what_does_not_fit_is_said_so() -> None:
    recipe = EXAMPLES / "recipes/Llama-3.1-8B-Instruct/maxent/config_math.yaml"
    rows = {line.split()[0]: line for line in report_memory(load(recipe)).splitlines()[4:]}
    assert rows["zero1"].endswith("too much")
    assert rows["zero3"].endswith("fits")
    assert report_memory(load(recipe, "--gpu_memory", "24")).count("too much") == len(LAYOUTS)


def test_a_model_that_nothing_knows_is_named() -> None:
    run = load(MATH_1B, "--model_name_or_path", "no/such-model")
    with pytest.raises(ValueError, match=r"config_math\.yaml: .*got model_name_or_path='no/such-model'"):
        load_shape(run)


def test_the_readers_of_recipes_leave_the_environment_alone() -> None:
    before = dict(os.environ)
    load(MATH_1B)
    assert dict(os.environ) == before
