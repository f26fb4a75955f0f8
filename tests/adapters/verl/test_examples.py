"""What examples/verl shows is a command line that trains: verl's own check and ours accept it."""

import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters.verl.__main__ import load_config, main
from maxent_grpo.adapters.verl.options import prepare_config

EXAMPLES = Path(__file__).parents[3] / "examples" / "verl"


def read_change() -> tuple[list[str], list[str]]:
    """Return the words of the README's command line before its change and after."""
    (block,) = re.findall(r"```diff\n(.*?)```", (EXAMPLES / "README.md").read_text(), flags=re.DOTALL)
    lines = block.replace("\\\n", "\n").splitlines()
    before = [line[1:] for line in lines if not line.startswith("+")]
    return shlex.split(" ".join(before)), shlex.split(" ".join(line[1:] for line in lines))


def test_the_readmes_plain_grpo_command_line_trains_with_ours_in_another_trainer_mode() -> None:
    before, after = read_change()
    assert before[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    assert after == [*before, "trainer.v1.trainer_mode=maxent_sync"]
    stock = load_config(before[3:], None, "ppo_trainer")
    validate_config(stock, need_reference_policy(stock), need_critic(stock))
    assert main(["--check", *after[3:]]) == 0
    method = prepare_config(load_config(after[3:], None, "ppo_trainer"))
    assert method == MaxEntConfig(nll_reduction="max_length", max_length=2048)


def test_the_launch_script_is_accepted_with_the_measured_recipe(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    stub.chmod(0o755)
    environment = os.environ | {"PYTHON": str(stub), "SLURM_GPUS_ON_NODE": "8"}
    command = ["bash", str(EXAMPLES / "train_math.sh"), "+algorithm.maxent.beta=0.04"]
    words = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split("\0")[
        :-1
    ]
    program = words.index("verl.trainer.main_ppo")
    assert words[:3] == ["-m", "maxent_grpo.adapters.verl", "--check"]
    assert words[3 : program - 1] == words[program + 1 :]
    assert main(["--check", *words[program + 1 :]]) == 0
    method = prepare_config(load_config(words[program + 1 :], None, "ppo_trainer"))
    assert method == replace(MaxEntConfig.diverse(max_length=2048), beta=0.04)
