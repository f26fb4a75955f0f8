"""What examples/openrlhf shows is a command line that trains: OpenRLHF's parser and ours accept it."""

import json
import os
import re
import runpy
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

from maxent_grpo import MaxEntConfig
from support.openrlhf_tiny import read_stock_command, read_whole_command

EXAMPLES = Path(__file__).parents[3] / "examples" / "openrlhf"


def read_change() -> tuple[list[str], list[str]]:
    """Return the words of the README's command line before its change and after."""
    (block,) = re.findall(r"```diff\n(.*?)```", (EXAMPLES / "README.md").read_text(), flags=re.DOTALL)
    lines = block.replace("\\\n", "\n").splitlines()
    before = [line[1:] for line in lines if not line.startswith("+")]
    after = [line[1:] for line in lines if not line.startswith("-")]
    return shlex.split(" ".join(before)), shlex.split(" ".join(after))


def test_the_readmes_plain_grpo_command_line_trains_with_ours_under_another_modules_name() -> None:
    before, after = read_change()
    assert (before[:3], after[:3]) == (
        ["python", "-m", "openrlhf.cli.train_ppo_ray"],
        ["python", "-m", "maxent_grpo.adapters.openrlhf"],
    )
    assert before[3:] == after[3:]
    stock, ours = read_stock_command(before[3:]), read_whole_command(after[3:])
    method = vars(ours).pop("maxent")
    assert vars(ours) == vars(stock)
    assert method.config == MaxEntConfig(nll_reduction="max_length", max_length=method.config.max_length)
    assert method.kl_coef == stock.algo.kl.init_coef


def test_the_launch_script_is_accepted_with_the_measured_recipe(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(EXAMPLES / "train_math.sh"), "--maxent.beta", "0.04"]
    words = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split("\0")[
        :-1
    ]
    assert words[:2] == ["-m", "maxent_grpo.adapters.openrlhf"]
    method = read_whole_command(words[2:]).maxent
    assert method.config == replace(MaxEntConfig.diverse(max_length=2048), beta=0.04)
    assert method.key_file == str(EXAMPLES / "math_reward.py")


def test_the_math_reward_and_its_keys_need_nothing_that_is_not_here() -> None:
    functions = runpy.run_path(str(EXAMPLES / "math_reward.py"))
    prompt, label = "What is a half? ", r"\boxed{\frac{1}{2}}"
    completions = [r"\boxed{0.5}", r"\boxed{\frac12}", r"\boxed{2}", "no answer"]
    queries, prompts = [prompt + completion for completion in completions], [prompt] * 4
    rewards = [functions["reward_func"]([query], [prompt], [label])["rewards"] for query in queries]
    assert rewards == [1.0, 1.0, 0.0, 0.0]
    ways = [r"1/2 = 0.5 \boxed{0.5}", r"half is 1/2 = 0.5 so \boxed{0.5}", "no equation"]
    one, other, none = functions["key_func"]([prompt + way for way in ways], prompts[:3], [label] * 3)
    assert (one == other, one is None, none) == (True, False, None)


def test_the_countdown_reward_and_its_keys_need_nothing_that_is_not_here() -> None:
    functions = runpy.run_path(str(EXAMPLES / "countdown_reward.py"))
    label = json.dumps({"numbers": [2, 3, 5], "target": 16})
    queries = [r"p \boxed{(3+5)*2}", r"p \boxed{2*(5+3)}", r"p \boxed{3+5+2}"]
    rewards = [functions["reward_func"]([query], ["p "], [label])["rewards"] for query in queries]
    assert rewards == [1.0, 1.0, 0.0]
    one, other, wrong = functions["key_func"](queries, ["p "] * 3, [label] * 3)
    assert one == other != wrong
