"""The training entry point: what it refuses and says before a model loads, and that it trains."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from maxent_grpo.adapters.trl import MaxEntGRPOTrainer
from maxent_grpo.pipeline import train
from maxent_grpo.pipeline.arguments import MAX_PROMPT_CHARS
from maxent_grpo.pipeline.run import parse_run
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.storage import save_checkpoint
from maxent_grpo.pipeline.tiny.wide_countdown import TOKENIZER
from support.recipes import MATH, SHORT, write_recipe, write_rewards, write_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that gets as far as a model."""

    def loaded(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", loaded)
    monkeypatch.setattr(train, "make_start", loaded)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A folder for outputs beside an untrained `tiny-countdown`, so that none has to be taught."""
    save_checkpoint(build_model(TOKENIZER), TOKENIZER, tmp_path / "tiny-countdown")
    return tmp_path


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("fields", "flags", "complaint"),
    [
        ({"maxent_tua": 0.3}, [], r"recipe\.yaml: .*got maxent_tua=0\.3 \(did you mean maxent_tau\?\)"),
        ({"num_generations": "eight"}, [], r"recipe\.yaml: argument --num_generations.*'eight'"),
        ({"num_generations": 7.5}, [], r"recipe\.yaml: .* num_generations of type int.*, got num_generations=7\.5"),
        ({"reward_funcs": "countdown"}, [], r"recipe\.yaml: Expected reward_funcs of type list.*'countdown'"),
        ({"use_cpu": 1}, [], r"recipe\.yaml: Expected use_cpu of type bool, got use_cpu=1"),
        ({"num_generations": 7}, [], r"recipe\.yaml: .*\(256 of 1 ranks\) divisible by num_generations=7"),
        ({}, ["--num_generations", "7"], r"command line: .*divisible by num_generations=7"),
        ({"num_generations": 1}, [], r"recipe\.yaml: Expected num_generations >= 2, got num_generations=1"),
        ({"gradient_accumulation_steps": 0}, [], r"recipe\.yaml: .*got gradient_accumulation_steps=0"),
        ({"num_generations_eval": 3}, [], r"recipe\.yaml: .*_eval=3, got per_device_eval_batch_size=256"),
        ({"reward_funcs": ["count_down"]}, [], r"recipe\.yaml: reward_funcs: .*got 'count_down'"),
        ({"reward_funcs": []}, [], r"recipe\.yaml: Expected reward_funcs, got none"),
        ({"reward_weights": [1.0, 2.0]}, [], r"recipe\.yaml: .*reward_weights=\[1\.0, 2\.0\]"),
        ({"model_name_or_path": None}, [], r"recipe\.yaml: Expected model_name_or_path, got none"),
        ({"task": "ppo"}, [], r"recipe\.yaml: Expected task of maxent, grpo, got task='ppo'"),
        ({}, ["--task", "ppo"], r"command line: argument --task: invalid choice: 'ppo'"),
        ({"save_strategy": False}, [], r"recipe\.yaml: Expected save_strategy of no, .*got save_strategy=False"),
        ({"maxent_tau": -1.0}, [], r"recipe\.yaml: Expected maxent_tau >= 0, got maxent_tau=-1\.0"),
        ({}, ["--maxent_tau", "-1"], r"command line: Expected maxent_tau >= 0, got maxent_tau=-1\.0"),
        ({}, ["--loss_type", "dapo"], r"command line: .*got loss_type='dapo'"),
        ({"hub_token": "hf_secret"}, [], r"recipe\.yaml: .*HF_TOKEN.*got hub_token"),
        ({"env": {"HF_TOKEN": "hf_secret"}}, [], r"recipe\.yaml: .*got env\.HF_TOKEN"),
        ({}, ["--hub-token=hf_secret"], r"command line: .*HF_TOKEN.*got hub_token"),
        ({}, ["--no_such_flag", "3"], r"command line: Expected fields of this script, got --no_such_flag\.$"),
        ({"dataset_name": "task:chess"}, [], r"recipe\.yaml: .*'task:chess'"),
        ({"dataset_name": "nobody/nothing"}, [], r"recipe\.yaml: Expected a dataset 'nobody/nothing', split 'train'"),
        ({"dataset_train_split": "validation"}, [], r"recipe\.yaml: .*got 'validation'"),
        ({"dataset_name": None}, [], r"recipe\.yaml: Expected dataset_name or datasets, got neither"),
        ({"dataset_name": None, "datasets": [{"name": "x"}]}, [], r"yaml: Expected path in datasets\[0\], got name"),
        ({"dataset_name": "task:graph-coloring"}, [], r"recipe\.yaml: Expected column 'numbers'.*coloring'"),
        ({"resume_from_checkpoint": "nowhere"}, [], r"resume_from_checkpoint='nowhere'"),
        ({"generation_batch_size": 0}, [], r"recipe\.yaml: Expected generation_batch_size >= 1, got gen.*=0"),
        ({"steps_per_generation": 0}, [], r"recipe\.yaml: Expected steps_per_generation >= 1, got steps.*=0"),
        ({"max_prompt_chars": 0}, [], r"recipe\.yaml: Expected max_prompt_chars >= 1, got max_prompt_chars=0"),
        ({}, ["--max_prompt_chars", "-1"], r"command line: .* got max_prompt_chars=-1"),
        ({"max_steps": 0}, [], r"recipe\.yaml: Expected max_steps >= 1, or -1 .*, got max_steps=0"),
        ({"eval_share": 1.0}, [], r"recipe\.yaml: Expected eval_share < 1, got eval_share=1\.0"),
        ({}, ["--preflight-only", "--gpus", "0"], r"command line: Expected gpus >= 1, got gpus=0"),
        ({"env": ["A=1"]}, [], r"recipe\.yaml: Expected env to map names to values, got env=\['A=1'\]"),
        ({"reward_funcs": [3]}, [], r"yaml: Expected reward_funcs of type list\[str\], got reward_funcs=\[3\]"),
        ({"reward_funcs": ["format", "format"]}, [], r"recipe\.yaml: Expected each of reward_funcs once"),
        ({"chat_template": "no.jinja"}, [], r"recipe\.yaml: Expected a Jinja template .*chat_template='no\.jinja'"),
        ({"system_prompt": "Think."}, [], r"recipe\.yaml: .*got prompt_format='text', system_prompt='Think\.'"),
        ({"datasets": [{"path": "x"}]}, [], r"recipe\.yaml: .*got both: dataset_name='task:countdown-wide'"),
        ({"dataset_streaming": True}, [], r"recipe\.yaml: .*got dataset_streaming=True"),
                ({"use_vllm": True}, [], r"recipe\.yaml: Expected vllm to be installed, got use_vllm=True"),
        ({}, ["--load_in_4bit"], r"command line: Expected bitsandbytes to be installed, got load_in_4bit=True"),
        *[
            ({"dataset_name": None, "datasets": [{"path": "task:countdown-wide"} | entry]}, [], complaint)
            for entry, complaint in (
                ({"path": 3}, r"recipe\.yaml: datasets\[0\]: Expected path of type str, got path=3"),
                ({"weight": "0.5"}, r"recipe\.yaml: datasets\[0\]: Expected weight of .*, got weight='0\.5'"),
                ({"weight": float("nan")}, r"recipe\.yaml: datasets: Expected weight > 0 .*, got \[nan\]"),
                ({"columns": None}, r"recipe\.yaml: datasets\[0\]: Expected columns of .*, got columns=None"),
                ({"columns": "prompt"}, r"recipe\.yaml: .* got columns='prompt'"),
                ({"columns": {"prompt": 3}}, r"recipe\.yaml: .* got columns=\{'prompt': 3\}"),
                ({"columns": {"prompt": "a", "hint": "a"}}, r"recipe\.yaml: Expected a column each .*got columns="),
                ({"spilt": "x"}, r"recipe\.yaml: .*got spilt='x' \(did you mean split\?\)"),
                ({}, r"recipe\.yaml: Expected eval_datasets or eval_share with datasets and do_eval=True"),
            )
        ],
        *[
            (fields, flags, f"{where}.*{named} \\(its value is not repeated here\\)")
            for fields, flags, where, named in (
                ({"hf_token": "hf_secret"}, [], r"recipe\.yaml", "hf_token"),
                ({"token": "my_secret"}, [], r"recipe\.yaml", "token"),
                ({"datasets": [{"path": "x", "token": "my_secret"}]}, [], r"recipe\.yaml", r"datasets\[0\]\.token"),
                ({"model_init_kwargs": {"Token": "my_secret"}}, [], r"recipe\.yaml", r"model_init_kwargs\.Token"),
                ({"env": {"HF_HUB_TOKEN": "my_secret"}}, [], r"recipe\.yaml", r"env\.HF_HUB_TOKEN"),
                ({"run_name": "hf_secret"}, [], r"recipe\.yaml", "run_name"),
                ({}, ["--hf_token", "my_secret"], "command line", "hf_token"),
                ({}, ["--hub_tok", "my_secret"], "command line", "hub_tok"),
                ({}, ["--run_name", "hf_secret"], "command line", "run_name"),
                ({}, ["--model_init_kwargs", '{"token": "my_secret"}'], "command line", r"model_init_kwargs.*token"),
            )
        ],
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_a_model_loads(
    fields: dict[str, Any], flags: list[str], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=complaint) as refused:
        train.main(["--config", str(write_recipe(tmp_path, **fields)), *flags])
    assert "_secret" not in str(refused.value)


@pytest.mark.usefixtures("no_model")
def test_a_missing_column_and_an_empty_dataset_are_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path, problem=["1+1"], answer=["2"])
    with pytest.raises(
        SystemExit, match=r"recipe\.yaml: Expected column 'prompt' .*rows\.jsonl', got problem, answer"
    ):
        train.main(["--config", str(write_recipe(tmp_path, **MATH | {"dataset_name": file}))])
    named = {"dataset_name": file, "prompt_column": "problem"}
    with pytest.raises(SystemExit, match=r"recipe\.yaml: Expected column 'solution' "):
        train.main(["--config", str(write_recipe(tmp_path, **MATH | named))])
    none = Dataset.from_dict({"prompt": ["x"], "solution": ["y"]}).select([])
    none.save_to_disk(tmp_path / "empty")
    none.to_parquet(tmp_path / "empty.parquet")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "empty.csv").write_text("prompt,solution\n")
    for name in ("empty", "empty.parquet", "empty.jsonl", "empty.csv"):
        complaint = rf"recipe\.yaml: Expected prompts in dataset .*{re.escape(name)}', got 0 rows"
        with pytest.raises(SystemExit, match=complaint):
            train.main(["--config", str(write_recipe(tmp_path, **MATH | {"dataset_name": str(tmp_path / name)}))])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- a\n- b\n", "a mapping of fields"),
        ("task: [maxent\n", r"Expected YAML, got .*line 2"),
        ("max_steps: 3\nmax_steps: 4\n", r"Expected YAML, got the field 'max_steps' twice in line 2"),
        ("3: 4\n", r"Expected YAML, got a field named 3, which is no text in line 1"),
        ("hub_token: hf_secret: x\n", r"Expected YAML, got [^_]* in line 1\.$"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(SystemExit, match=rf"broken\.yaml: .*{complaint}"):
        train.main(["--config", str(tmp_path / "broken.yaml")])
    with pytest.raises(SystemExit, match=r"none\.yaml: Expected a recipe, got No such file"):
        train.main(["--config", str(tmp_path / "none.yaml")])


@pytest.mark.usefixtures("no_model")
def test_a_preflight_bears_only_a_hub_that_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"recipe\.yaml: .*'task:chess'"):
        train.main(["--config", str(write_recipe(tmp_path, dataset_name="task:chess")), "--preflight-only"])
    train.main(["--config", str(write_recipe(tmp_path, dataset_name="nobody/nothing")), "--preflight-only"])
    assert "prompts: not looked at." in capsys.readouterr().out


def test_the_environment_says_how_long_a_prompt_may_be_unless_recipe_or_flag_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, outspoken = write_recipe(tmp_path, max_prompt_chars=None), tmp_path / "outspoken.yaml"
    outspoken.write_text(silent.read_text() + "max_prompt_chars: 64\n")

    def read_limit(file: Path, *flags: str) -> int:
        return parse_run(["--config", str(file), *flags]).script.max_prompt_chars

    assert read_limit(silent) == MAX_PROMPT_CHARS
    monkeypatch.setenv("MAX_PROMPT_CHARS", "300")
    assert read_limit(silent) == 300
    assert read_limit(outspoken) == 64
    assert read_limit(outspoken, "--max_prompt_chars", "5") == 5
    for text in ("0", "-1", "many", "2.5", ""):
        monkeypatch.setenv("MAX_PROMPT_CHARS", text)
        with pytest.raises(SystemExit, match=rf"train\.py: .*got MAX_PROMPT_CHARS='{text}'"):
            train.main(["--config", str(silent)])


@pytest.mark.usefixtures("no_model")
def test_a_model_that_nothing_knows_is_refused_before_data_is_read(tmp_path: Path) -> None:
    fields = {"model_name_or_path": str(tmp_path / "none"), "dataset_name": "task:chess"}
    with pytest.raises(SystemExit, match=r"recipe\.yaml: .*got model_name_or_path='.*none'"):
        train.main(["--config", str(write_recipe(tmp_path, **fields))])


def test_a_recipe_may_leave_its_environment_empty(tmp_path: Path) -> None:
    file = write_recipe(tmp_path)
    file.write_text(file.read_text() + "env:\n")
    assert parse_run(["--config", str(file)]).recipe == file


@pytest.mark.parametrize(("task", "kind"), [("maxent", MaxEntGRPOTrainer), ("grpo", GRPOTrainer)])
def test_either_trainer_trains_evaluates_and_saves(task: str, kind: type, start: Path) -> None:
    rewards = ["countdown", "support.trl_tiny.reward"]  # an untrained model is never right
    varied = {"reward_funcs": rewards, "key_func": "countdown_mode"}
    flags = ["--config", str(write_recipe(start, **varied)), "--task", task, *SHORT]
    trainer = train.build_trainer(parse_run(flags))
    assert type(trainer) is kind
    train.main(flags)
    logged = json.loads((start / "run/trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in logged if "reward" in entry] == [1, 2, 3, 4, 5, 6]
    assert any("maxent/ess" in entry for entry in logged) == (task == "maxent")
    assert [entry["step"] for entry in logged if "eval_reward" in entry] == [6]
    before = AutoModelForCausalLM.from_pretrained(start / "tiny-countdown").state_dict()
    after = AutoModelForCausalLM.from_pretrained(start / "run").state_dict()
    assert not all(torch.equal(before[name], value) for name, value in after.items())


def test_an_adapter_is_trained_in_place_of_the_model(start: Path) -> None:
    flags = ["--config", str(write_recipe(start)), *SHORT, "--max_steps", "1", "--use_peft", "--lora_r", "2"]
    train.main([*flags, "--lora_target_modules", "q_proj", "v_proj"])
    assert (start / "run/adapter_model.safetensors").exists()


def test_chats_without_a_template_are_refused_before_the_model_loads(
    start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", loaded)
    with pytest.raises(SystemExit, match=r"recipe\.yaml: Expected a chat template.*tiny-countdown"):
        train.main(["--config", str(write_recipe(start, prompt_format="chat"))])
    template = start / "template.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    run = parse_run(["--config", str(write_recipe(start, prompt_format="chat", chat_template=str(template)))])
    assert train.load_tokenizer(run, str(start / "tiny-countdown")).chat_template == template.read_text()


@pytest.fixture
def own_rewards(start: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rewards of a user's own, in the working directory."""
    monkeypatch.chdir(start)
    monkeypatch.setattr("sys.path", sys.path.copy())
    return write_rewards(start)


def build_command(folder: Path, *flags: str, launcher: str = "", **fields: Any) -> list[str]:
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "examples/accelerate" / launcher)]
    start = [sys.executable, *(launch if launcher else []), str(ROOT / "examples/train.py")]
    return [*start, "--config", str(write_recipe(folder, **fields)), *SHORT, *flags]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}


DELAYS = [0.02 * kill for kill in range(20)] if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else [0.0]


@pytest.mark.slow
@pytest.mark.parametrize("delay", DELAYS)
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    delay: float, start: Path, own_rewards: list[str], record_property: Callable[[str, object], None]
) -> None:
    command = build_command(start, reward_funcs=own_rewards)
    running = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 600  # of a machine that is busy with others too
    while not list((start / "run").glob("checkpoint-2/trainer_state.json")):
        assert running.poll() is None, running.stdout.read().decode()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    was_alive = running.poll() is None
    record_property("cases", int(was_alive))  # one that has ended is not killed
    assert was_alive or delay > 0
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert delay > 0 or not (start / "run/trainer_state.json").exists()
    train.main([*command[2:], "--resume_from_checkpoint", "last"])
    whole = start / "whole"
    train.main([*command[2:], "--output_dir", str(whole)])
    expected = AutoModelForCausalLM.from_pretrained(whole).state_dict()
    for name, value in AutoModelForCausalLM.from_pretrained(start / "run").state_dict().items():
        assert torch.equal(value, expected[name])


def test_a_run_that_is_over_takes_no_further_step(start: Path) -> None:
    flags = ["--config", str(write_recipe(start)), *SHORT, "--max_steps", "2"]
    train.main(flags)
    weights = AutoModelForCausalLM.from_pretrained(start / "run").state_dict()
    (start / "run/model.safetensors").unlink()  # as if it had been killed after its last step
    train.main([*flags, "--resume_from_checkpoint", "last"])
    assert [folder.name for folder in (start / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    again = AutoModelForCausalLM.from_pretrained(start / "run").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.items())
    train.main([*flags, "--max_steps", "3", "--resume_from_checkpoint", "last"])
    assert json.loads((start / "run/trainer_state.json").read_text())["global_step"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["cpu_ddp.yaml", pytest.param("cpu_zero3.yaml", marks=pytest.mark.nightly)])
def test_two_processes_train_under_accelerate(launcher: str, start: Path, own_rewards: list[str]) -> None:
    done = subprocess.run(
        build_command(start, "--max_steps", "2", launcher=launcher, reward_funcs=own_rewards),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    logged = json.loads((start / "run/trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in logged if "reward" in entry] == [1, 2]
    assert all("rewards/score/mean" in entry for entry in logged[:2])
    assert "on 2 ranks" in done.stderr
    AutoModelForCausalLM.from_pretrained(start / "run")
