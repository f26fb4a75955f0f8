"""Flags, and what is said of bad ones before anything starts."""

import os
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
        (["--args", "--maxent_tua 3"], "Expected fields of this script, got --maxent_tua"),
        (["--args", "--num_generations 5"], "divisible by num_generations=5"),
        (["--args", "--hub_token hf_abc"], "--args: command line: Expected secrets in the environment"),
        (["--sbatch", "--export=ALL,HF_TOKEN=abc"], "--sbatch: command line: Expected secrets in the environment"),
        (["--vllm-args", "--api-key abc"], "--vllm-args: command line: Expected secrets in the environment"),
        (["--gpus", "1"], "Expected GPUs that serve and GPUs that train, got 1 of 1"),
        (["--sbatch", "--gres=gpu:a100"], "got 1 of 1 GPUs that serve on 1 node, by --sbatch --gres=gpu:a100"),
        (["--sbatch", "--gpus-per-task=1"], "got --gpus-per-task"),
        (["--nodes", "4", "--sbatch", "--nodes=2"], "got --nodes 4 and --sbatch --nodes=2"),
        (["--sbatch", "--signal=USR1@60"], "got --signal=USR1@60"),
        (["--requeue", "3", "--sbatch", "--no-requeue"], "got --requeue 3 and --sbatch --no-requeue"),
        (["--sbatch", "foo"], "Expected flags in --sbatch, got foo"),
        (["--command", "true", "--task", "maxent"], "Expected --command without flags of a training job, got --task"),
        (["--command", "true --hub_token hf_abc"], "--command: command line: Expected secrets in the environment"),
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


def test_an_allocation_of_another_size_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_environment(monkeypatch, {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"})
    assert main(["--nodes", "4", "--dry-run"]) == 2
    assert "Expected --nodes as allocated (2), got --nodes 4." in capsys.readouterr().err


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
    assert f"Expected maxent_grpo to be installed for {tmp_path}/python, with ENV_MODE=none." in result.stderr
    assert result.stderr.count("\n") == 1
