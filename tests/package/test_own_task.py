"""The files that docs/own_task.md shows train as they stand there, but for the model and the number of updates."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import trl_tiny

PAGE = (Path(__file__).parents[2] / "docs" / "own_task.md").read_text()
FILES = {"json": "train.jsonl", "python": "rewards.py", "yaml": "recipe.yaml"}


@pytest.mark.slow
def test_the_files_of_the_page_train(tmp_path: Path) -> None:
    for language, name in FILES.items():
        (content,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
        (tmp_path / name).write_text(content * (4 if language == "json" else 1))
    command = re.search(r"^python (-m maxent_grpo\.pipeline\.train --config recipe\.yaml) +#", PAGE, re.MULTILINE)
    assert command is not None
    flags = ["--model_name_or_path", trl_tiny.save_model(tmp_path / "model"), "--prompt_format", "text"]
    flags += ["--max_steps", "2", "--max_completion_length", "4", "--max_prompt_chars", "12"]
    flags += ["--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false"]
    done = subprocess.run(
        [sys.executable, *command[1].split(), *flags],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same answer by rewards.same_pair" in done.stderr
    assert "maxent/frac_distinct" in done.stdout
    assert (tmp_path / "runs/sums/model.safetensors").exists()
