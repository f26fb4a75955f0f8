"""Flags, and what is said of bad ones before anything starts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maxent_grpo.pipeline.launch.__main__ import main
from maxent_grpo.pipeline.launch.options import parse_options
from support.launch_cases import ROOT, prepare_environment


def test_words_of_a_text_stay_words_and_nothing_is_evaluated() -> None:
    options = parse_options(["--args", "--run_name '$(id) a' --x \"b c\"", "--sbatch=--time=1 -A me"])
    assert options.args == ("--run_name", "$(id) a", "--x", "b c")
    assert options.sbatch == ("--time=1", "-A", "me")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--nods", "2"], "unrecognized arguments: --nods 2"),
        (["--task", "sft"], "--task: invalid choice: 'sft'"),
        (["--model", "GPT-5"], "Expected --model of .*Qwen2.5-1.5B-Instruct.*, got --model GPT-5"),
        (["--config", "chess"], "Expected --config of countdown, math for .*, got --config chess"),
        (["--accelerator", "zero9"], "Expected --accelerator of .*zero3.*, got --accelerator zero9"),
        (["--nodes", "0"], "Expected --nodes >= 1, got --nodes 0"),
        (["--vllm-port", "80"], "Expected --vllm-port from 1024 to 65535, got --vllm-port 80"),
        (["--vllm-port", "9000", "--vllm-group-port", "9000"], "Expected two ports"),
        (["--stall-minutes", "nan"], "Expected --stall-minutes > 0, got --stall-minutes nan"),
        (["--args", "--run_name 'a"], "Expected --args as a shell would split it, got No closing quotation"),
        (["--args", "--maxent_tua 3"], "--args: Expected fields of this script, got --maxent_tua"),
        (["--args", "--num_generations 5"], "divisible by num_generations=5"),
        (["--args", "--hub_token hf_abc"], "--args: Expected secrets in the environment"),
        (["--sbatch", "--export=ALL,HF_TOKEN=abc"], "--sbatch: Expected secrets in the environment"),
        (["--vllm-args", "--api-key abc"], "--vllm-args: Expected secrets in the environment"),
        (["--config", ""], "got --config ''"),
        (["--args", "--task maxent"], "Expected --args without what --task says, got --task maxent in it"),
        (["--args", "--config=x.yaml"], "Expected --args without what --config says, got --config=x.yaml in it"),
        (["--args", "demo --run_name x"], "Expected flags in --args, got demo"),
        (
            ["--vllm", "server", "--args", "--vllm_mode colocate"],
            "Expected --args to agree with --vllm server, got --vllm_mode colocate in it",
        ),
        (["--vllm", "server", "--args", "--use_vllm false"], "with --vllm server, got --use_vllm false in it"),
        (["--vllm", "off", "--args", "--use_vllm true"], "with --vllm off, got --use_vllm true in it"),
        (["--vllm", "colocate", "--args", "--vllm_mode server"], "--vllm colocate, got --vllm_mode server in it"),
        (
            ["--vllm", "off", "--args", "--vllm_server_host x"],
            "Expected --vllm_server_host x in --args with a server",
        ),
        (["--args", "--vllm_server_port 8001"], "Expected --vllm-port 8001, .*, got --vllm_server_port 8001 alone"),
        (
            ["--vllm-group-port", "9000", "--args", "--vllm_group_port 9001"],
            "got --vllm-group-port 9000 and --vllm_gr",
        ),
        (["--vllm-args", "--tensor_parallel_size 2"], "without what --tp says, got --tensor_parallel_size 2 in it"),
        (["--vllm-args", "-dp=2"], "without what --dp says, got -dp=2 in it"),
        (["--vllm-args", "--enforce-eager --host 0.0.0.0"], "what the launcher decides, got --host 0.0.0.0 in it"),
        (["--vllm-args", "Qwen/Other"], "Expected flags in --vllm-args, got Qwen/Other"),
        (["--vllm", "off", "--vllm-args", "--x 1"], "got --vllm-args '--x 1' where vLLM is off"),
        (["--vllm", "off", "--ready-minutes", "3"], "got --ready-minutes 3.0 where vLLM is off"),
        (["--accelerator", "cpu_zero3", "--gpus", "4"], "got --gpus 4 with --accelerator cpu_zero3"),
        (["--gpus", "16", "--tp", "5"], "to divide the 12 attention heads of Qwen/Qwen2.5-1.5B-Instruct, got --tp 5"),
        (["--command", "   "], "Expected a command, got --command '   '"),
        (["--gpus", "1"], "Expected GPUs that serve and GPUs that train, got 1 of 1"),
        (["--sbatch", "--gres=gpu:a100"], "got 1 of 1 GPUs that serve on 1 node, by --sbatch --gres=gpu:a100"),
        (["--sbatch", "--gpus-per-task=1"], "got --gpus-per-task"),
        (["--nodes", "4", "--sbatch", "--nodes=2"], "got --nodes 4 and --sbatch --nodes=2"),
        (["--sbatch", "--signal=USR1@60"], "got --signal=USR1@60"),
        (["--requeue", "3", "--sbatch", "--no-requeue"], "got --requeue 3 and --sbatch --no-requeue"),
        (["--sbatch", "foo"], "Expected flags in --sbatch, got foo"),
        (["--command", "true", "--task", "maxent"], "Expected --command without flags of a training job, got --task"),
        (["--command", "true --hub_token hf_abc"], "--command: Expected secrets in the environment"),
    ],
)
def test_bad_input_is_one_line_that_names_it_and_exit_2(
    words: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_environment(monkeypatch, {})
    assert main(words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "abc" not in output.err
    with pytest.raises(ValueError, match=f"slurm_train.sh: .*{complaint}"):
        raise ValueError(output.err)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("COMMAND_PREFIX", "env HF_TOKEN=abc", "COMMAND_PREFIX: Expected secrets in the environment"),
        ("SRUN_FLAGS", "--export=ALL,WANDB_API_KEY=abc", "SRUN_FLAGS: Expected secrets in the environment"),
        ("SERVER_PROGRAM", "vllm serve --api-key abc", "SERVER_PROGRAM: Expected secrets in the environment"),
        ("TRAINER_PROGRAM", "python 'x", "Expected TRAINER_PROGRAM as a shell would split it, got No closing"),
        ("TRAINER_PROGRAM", " ", "Expected a program, got TRAINER_PROGRAM=' '"),
    ],
)
def test_variables_that_hold_commands_are_read_as_flags_are(
    name: str, value: str, complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_environment(monkeypatch, {name: value})
    assert main(["--dry-run"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"slurm_train.sh: {complaint}")
    assert output.err.count("\n") == 1
    assert "abc" not in output.err


def test_an_allocation_of_another_size_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_environment(monkeypatch, {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"})
    assert main(["--nodes", "4", "--dry-run"]) == 2
    assert "Expected --nodes as allocated (2), got --nodes 4." in capsys.readouterr().err


def test_a_reader_that_has_read_enough_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_environment(monkeypatch, {})
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["--command", "true", "--dry-run"]) == 128 + signal.SIGPIPE


def test_without_slurm_a_submission_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_environment(monkeypatch, {})
    assert main([]) == 2
    assert "Expected sbatch to submit with, got none on PATH" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "words", "code", "text"),
    [
        ({"ENV_MODE": "none"}, ["--help"], 0, "--stall-minutes"),
        ({"ENV_MODE": "pixi"}, [], 2, "Expected ENV_MODE of conda, venv, none, got ENV_MODE=pixi."),
        ({"ENV_MODE": "venv", "ENV_ACTIVATE": "/nowhere"}, [], 2, "got ENV_ACTIVATE=/nowhere."),
        ({"ENV_MODE": "none"}, ["--dry-run", "--nodes", "x"], 2, "--nodes: invalid int value: 'x'"),
    ],
)
def test_the_script_works_outside_slurm(environment: dict[str, str], words: list[str], code: int, text: str) -> None:
    given = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    result = subprocess.run(
        ["bash", str(ROOT / "examples/slurm_train.sh"), *words],
        env=given | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert result.returncode == code
    assert text in result.stdout + result.stderr


def test_the_script_says_which_python_lacks_the_package(tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to(Path(sys.base_prefix) / "bin/python3")
    result = subprocess.run(
        ["bash", str(ROOT / "examples/slurm_train.sh"), "--dry-run"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "ENV_MODE": "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert f"Expected maxent_grpo to be installed for {tmp_path}/python, with ENV_MODE=none" in result.stderr
    assert result.stderr.count("\n") == 1
