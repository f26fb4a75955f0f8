"""No command repeats a secret: canaries in recipes, flags, URLs, errors, tracebacks and saved files."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maxent_grpo import preview
from maxent_grpo._secrets import find_secret, hide_secrets, is_secret
from maxent_grpo.pipeline import evaluate, train
from maxent_grpo.pipeline.evaluation.options import parse_options
from maxent_grpo.pipeline.launch import __main__ as launch
from maxent_grpo.pipeline.tiny import demo
from support.launch_cases import prepare_environment
from support.recipes import write_recipe

ROOT = Path(__file__).parents[2]

CANARY = "c4n4ry"
NAMES = ["wandb_key", "passwd", "auth", "access_key", "api-key", "AWS_SECRET_ACCESS_KEY", "password", "hub_tok"]
NAMES += ["WANDB_API_KEY", "pwd", "client-secret", "apikey", "passphrase", "http_auth", "ssh_key", "OPENAI_KEY"]
NAMES += [
    "client_secret_value",
    "passcode",
    "github_pat",
    "db-pass",
    "Authorization",
    "cookie",
    "accessKeyId",
    "privateKey",
]
SHAPES = [
    f"hf_{CANARY}",
    f"sk-proj-{CANARY}0123456789",
    f"ghp_{CANARY}0123456789",
    f"github_pat_{CANARY}0123456789",
    f"glpat-{CANARY}0123456789",
    f"xoxb-{CANARY}0123456789",
    "AKIAC4N4RY0123456789",
    f"https://me:{CANARY}@host/data.jsonl",
    f"s3://{CANARY}:{CANARY}@bucket",
    f"eyJ{CANARY}0123456789.eyJ",
    *[
        f"{prefix}{CANARY}0123456789abcdef"
        for prefix in ("AIza", "npm_", "pypi-", "ya29.", "r8_", "gsk_", "wandb_v1_", "dckr_pat_", "SG.", "sk-ant-")
    ],
]
IN_TEXT = [
    f"Authorization: Bearer {CANARY}0123456789",
    f"https://host/x?a=1&token={CANARY}&b=2",
    f"token => {CANARY}",
    f"--logger.wandb.key {CANARY}",
    f"trainer.wandb.key={CANARY}",
    f"+trainer.auth={CANARY}",
]
IN_TEXT += [f"Basic {CANARY}0123456789==", f"--config --token {CANARY}", f"https:/me:{CANARY}@host/x"]
HARMLESS = {
    "eos_token": "</s>",
    "key_func": "final_answer",
    "max_new_tokens": "3",
    "path": "https://host:80/data",
    "revision": "5fd1a6e1a3f2b2c1d0e9f8a7b6c5d4e3f2a1b0c9",
    "author": "me",
    "dataset_name": "org/sk-learn",
    "monkey": "x",
    "output_dir": "runs/hf_cache",
    "pass_k": "4",
    "bypass": "x",
    "pattern": "x",
    "cookiecutter": "x",
}


def leaks(text: str) -> bool:
    return CANARY in text.lower()


@pytest.mark.parametrize("name", NAMES)
def test_a_value_is_secret_by_its_name(name: str) -> None:
    assert is_secret(name, CANARY)
    for text in (
        f"--{name} {CANARY}",
        f"--{name} -- {CANARY}",
        f"--{name}={CANARY}",
        f"{name}='{CANARY}'",
        f'{{"{name}": "{CANARY}"}}',
    ):
        assert not leaks(hide_secrets(text)), text
        assert name in hide_secrets(text)


@pytest.mark.parametrize("value", SHAPES)
def test_a_value_is_secret_by_its_shape(value: str) -> None:
    assert find_secret({"env": [{"X": f"a {value}"}]}, "") == "env[0].X"
    for text in (value, f"--nosuch {value}", f"Expected x, got x='{value}'.", f"see ({value})"):
        assert not leaks(hide_secrets(text)), hide_secrets(text)


@pytest.mark.parametrize("text", IN_TEXT)
def test_a_value_is_found_in_the_middle_of_a_text(text: str) -> None:
    assert not leaks(hide_secrets(text)), hide_secrets(text)


@pytest.mark.parametrize("name", HARMLESS)
def test_other_values_are_shown(name: str) -> None:
    assert not is_secret(name, HARMLESS[name])
    assert hide_secrets(f"--{name} {HARMLESS[name]}") == f"--{name} {HARMLESS[name]}"
    assert not is_secret("token", True)  # asks for the login that is stored


def test_the_working_directory_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/me/project")
    assert hide_secrets("no /home/me/project/rows.jsonl") == "no /home/me/project/rows.jsonl"


def test_what_the_environment_holds_is_hidden_wherever_it_turns_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", f"{CANARY}-from-outside")
    assert hide_secrets(f"403 for user:{CANARY}-from-outside") == "403 for user:(not repeated here)"


def run_train(folder: Path, *flags: str, **fields: Any) -> None:
    train.main(["--config", str(write_recipe(folder, **fields)), *flags])


COMMANDS = {
    "train": lambda folder, flags: run_train(folder, *flags),
    "evaluate": lambda folder, flags: evaluate.main(["model", "--task", "countdown", *flags]),
    "maxent-preview": lambda folder, flags: preview.main([str(folder / "rollouts.jsonl"), *flags]),
    "slurm_train.sh": lambda folder, flags: sys.exit(launch.main(flags)),
    "quickstart": lambda folder, flags: demo.main(["--output", str(folder / "run"), *flags]),
}
FLAGS = [[f"--{name}", CANARY] for name in NAMES] + [["--nosuch", value] for value in SHAPES]
FLAGS += [[f"--nosuch={SHAPES[0]}"], [f"--{NAMES[0]}={CANARY}"], [SHAPES[0]]]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_repeats_a_secret_flag(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for flags in FLAGS:
        with caplog.at_level(logging.DEBUG), pytest.raises(SystemExit) as refused:
            COMMANDS[command](tmp_path, flags)
        printed = capsys.readouterr()
        assert not leaks(f"{refused.value} {printed.out} {printed.err} {caplog.text}"), flags


@pytest.mark.parametrize("flag", ["--args", "--sbatch", "--vllm-args", "--model", "--config", "--nodes"])
@pytest.mark.parametrize("secret", [f"--{NAMES[0]} {CANARY}", f"--export=ALL,{NAMES[5]}={CANARY}", *SHAPES])
def test_no_plan_repeats_a_secret_of_a_flag(flag: str, secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    launch.main([flag, secret, "--dry-run"])
    printed = capsys.readouterr()
    assert not leaks(printed.out + printed.err)


def test_a_plan_names_the_secrets_of_the_environment_without_their_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_environment(monkeypatch, dict.fromkeys(NAMES, CANARY) | {"DATA_URL": SHAPES[7]})
    assert launch.main(["--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert not leaks(printed)
    for name in (*NAMES, "DATA_URL"):
        assert name in printed


@pytest.mark.slow
def test_the_script_for_slurm_repeats_no_secret_either() -> None:
    environment = os.environ | {
        "ENV_MODE": "none",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["bash", str(ROOT / "examples/slurm_train.sh"), f"--{NAMES[0]}", CANARY, "--nosuch", *SHAPES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert not leaks(done.stdout + done.stderr)
    assert f"--{NAMES[0]}" in done.stderr


@pytest.mark.parametrize("content", [f'{{"rewards": ["{SHAPES[0]}"]}}', f'{{"{NAMES[0]}": "{CANARY}"}}', SHAPES[7]])
def test_a_preview_repeats_no_secret_of_a_file_or_its_address(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rollouts.jsonl").write_text(content)
    for file in (str(tmp_path / "rollouts.jsonl"), SHAPES[7], SHAPES[0]):
        assert preview.main([file]) == 2
    printed = capsys.readouterr()
    assert not leaks(printed.out + printed.err)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["field", "env", "inside"])
def test_no_recipe_repeats_a_secret_field(name: str, place: str, tmp_path: Path) -> None:
    fields = {
        "field": {name: CANARY},
        "env": {"env": {name: CANARY}},
        "inside": {"model_init_kwargs": {name: [CANARY]}},
    }
    with pytest.raises(SystemExit) as refused:
        run_train(tmp_path, **fields[place])
    assert not leaks(str(refused.value))
    assert name in str(refused.value)


def test_a_report_keeps_the_command_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parse_options(["model", "--task", "countdown"])
    monkeypatch.setattr("sys.argv", ["evaluate.py", "model", "--api-key", CANARY, SHAPES[7]])
    settings = evaluate.describe_settings(options, type("S", (), {"name": "s", "prompts": []})(), "transformers")  # type: ignore[arg-type]
    assert not leaks(json.dumps(settings))


def test_a_traceback_hides_what_a_library_quotes(tmp_path: Path) -> None:
    program = (
        "from maxent_grpo._secrets import hide_in_tracebacks\n"
        f"hide_in_tracebacks()\nurl = '{SHAPES[7]}'\nraise OSError(f'no answer from {{url}}')\n"
    )
    file = tmp_path / "program.py"
    file.write_text(program)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=False)
    assert "OSError: no answer from https://" in done.stderr
    assert not leaks(done.stderr)
