"""Plans are those that are kept, and every command line in them is one that its program understands."""

import argparse
import shlex
from typing import Any

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from trl.scripts.vllm_serve import make_parser

from maxent_grpo.pipeline.launch.__main__ import main
from maxent_grpo.pipeline.run import parse_run
from support.launch_cases import CASES, PLANS, make_plan, prepare_environment

Capture = pytest.CaptureFixture[str]


def find_command(plan: str, program: str) -> list[str]:
    """Return a program's arguments as they stand in a plan; the last line that has it counts."""
    line = [line for line in plan.splitlines() if program in line][-1]
    words = shlex.split(line)
    return words[words.index(program) + 1 :]


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_the_one_that_is_kept(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    plan = make_plan(name, monkeypatch, capsys)
    file = PLANS / f"{name}.txt"
    if not file.exists():
        file.write_text(plan)  # for a look, and then for a commit
    assert plan == file.read_text()


@pytest.mark.parametrize("name", CASES)
def test_accelerate_and_deepspeed_take_the_trainers_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = find_command((PLANS / f"{name}.txt").read_text(), "accelerate.commands.launch")
    args = launch_command_parser().parse_args([word.replace("{rank}", "0") for word in words])
    args, defaults, _ = _validate_launch_command(args)
    assert args.training_script == "examples/train.py"
    if not args.use_deepspeed:
        return
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)  # as `accelerate launch` does
    command, environment = prepare_deepspeed_cmd_env(args)
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] in ("2", "3")
    # Accelerate's own way to more than one machine would be ssh, for which it wants a file of hosts.
    assert command is None
    assert int(args.num_processes) == int(args.nproc_per_node) * args.num_machines


@pytest.mark.parametrize("name", CASES)
def test_trl_takes_the_flags_of_train_py(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = (PLANS / f"{name}.txt").read_text()
    words = find_command(plan, "examples/train.py")
    ranks = find_command(plan, "--num_processes")[0]
    run = parse_run([*words, "--preflight_only", "true", "--gpus", ranks])
    mode = plan.split("vLLM: ")[1].split("\n")[0]
    uses = {"server": "server", "external": "server", "colocate": "colocate"}.get(mode)
    assert run.training.use_vllm == (uses is not None)
    assert uses is None or run.training.vllm_mode == uses
    if mode == "external":
        assert run.training.vllm_server_base_url == "http://gpu7:8000"
        assert "api_server" not in plan
    if mode == "server":
        serving = find_command(plan, "vllm.entrypoints.openai.api_server")
        address, port = (serving[serving.index(flag) + 1] for flag in ("--host", "--port"))
        assert run.training.vllm_server_base_url == f"http://{address}:{port}"


def read_server_command(plan: str, program: str) -> tuple[Any, list[str]]:
    """Return a server's arguments as TRL's parser of `vllm-serve` reads them, and what it hands to vLLM unread."""
    arguments, rest = make_parser().parse_args_and_config(
        [word.replace("--max-model-len", "--max_model_len") for word in find_command(plan, program)],
        return_remaining_strings=True,
    )
    return arguments, rest


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("one_node_colocate", "off", "own_server")])
def test_vllm_serve_takes_the_servers_command(name: str) -> None:
    plan = (PLANS / f"{name}.txt").read_text()
    arguments, rest = read_server_command(plan, "vllm.entrypoints.openai.api_server")
    assert arguments.model.startswith("Qwen/")
    assert arguments.tensor_parallel_size * arguments.data_parallel_size >= 1
    known = argparse.ArgumentParser()
    for flag in ("--weight-transfer-config", "--logprobs-mode", "--max-logprobs", "--max-model-len"):
        known.add_argument(flag)
    for flag in ("--data-parallel-size-local", "--data-parallel-address", "--data-parallel-rpc-port"):
        known.add_argument(flag)
    assert known.parse_args(rest).logprobs_mode == "processed_logprobs"


@pytest.mark.parametrize(
    ("given", "program"),
    [
        ({}, "python -m vllm.entrypoints.cli.main serve Qwen/"),
        (
            {"SERVER_PROGRAM": "/opt/python -m vllm.entrypoints.openai.api_server"},
            "/opt/python -m vllm.entrypoints.cli",
        ),
        ({"SERVER_PROGRAM": "vllm serve"}, "vllm serve Qwen/"),
        ({"SERVER_PROGRAM": "python stub.py"}, "python stub.py --model Qwen/"),
    ],
)
def test_nodes_that_lend_gpus_run_the_same_vllm(
    given: dict[str, str], program: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    prepare_environment(monkeypatch, given)
    assert main(["--nodes", "3", "--vllm-nodes", "2", "--dry-run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "--headless" in line]
    assert f"-- {program}" in line


def test_a_port_that_was_asked_for_is_given_to_nothing_else(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    prepare_environment(monkeypatch, {})
    assert main(["--vllm-group-port", "20000", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    ports = [find_command(plan, flag)[0] for flag in ("--port", "--main_process_port", "--vllm_group_port")]
    assert ports == ["20001", "20003", "20000"]
