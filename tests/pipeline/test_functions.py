"""A user's own functions: found in the working directory, whatever else is called like their files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maxent_grpo.pipeline.functions import find_function
from maxent_grpo.pipeline.rewards import find_reward
from support.recipes import write_recipe, write_rewards

REWARD = "def score(completions, **columns):\n    return [{value} for _ in completions]\n"
NAMES = ("rewards", "tasks", "train", "evaluation", "numpy", "random")  # ours, installed, the standard library's


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test; the search path is as before afterwards."""
    monkeypatch.setattr("sys.path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_the_working_directory_comes_before_anything_of_its_name(name: str, folder: Path) -> None:
    loaded = dict(sys.modules)
    (folder / f"{name}.py").write_text(REWARD.format(value=0.25))
    assert find_reward(f"{name}.score").function(["a", "b"]) == [0.25, 0.25]
    assert all(sys.modules[each] is module for each, module in loaded.items())


def test_functions_of_one_file_share_it_and_import_what_lies_beside_it(folder: Path) -> None:
    (folder / "rewards.py").write_text(
        "calls = []\n"
        "def first(completions):\n    calls.append(1)\n    return [len(calls)]\n"
        "def second(completions):\n    import tables_of_mine\n    return [len(calls) + tables_of_mine.TEN]\n"
    )
    (folder / "tables_of_mine.py").write_text("TEN = 10\n")
    first, second = (find_reward(f"rewards.{name}").function for name in ("first", "second"))
    assert first([""]) == [1]
    assert second([""]) == [11]


def test_a_function_may_lie_in_a_package_or_in_a_folder_of_the_working_directory(folder: Path) -> None:
    for package, value in (("judges_of_mine", 1.0), ("judges_in_a_folder", 2.0)):
        (folder / package).mkdir()
        (folder / package / "brevity.py").write_text(REWARD.format(value=value))
    (folder / "judges_of_mine/__init__.py").write_text("from judges_of_mine.brevity import score\n")
    assert find_function("judges_of_mine.score", ())([""]) == [1.0]
    assert find_function("judges_of_mine.brevity.score", ()) is find_function("judges_of_mine.score", ())
    assert find_function("judges_in_a_folder.brevity.score", ())([""]) == [2.0]


def test_a_clone_in_the_working_directory_is_no_second_copy_of_this_package(folder: Path) -> None:
    (folder / "maxent_grpo/pipeline").mkdir(parents=True)
    (folder / "maxent_grpo/pipeline/functions.py").write_text("find_function = None\n")
    assert find_function("maxent_grpo.pipeline.functions.find_function", ()) is find_function


def test_a_file_that_cannot_be_imported_is_named_with_the_reason(folder: Path) -> None:
    (folder / "broken_rewards.py").write_text("def score(:\n")
    with pytest.raises(ValueError, match=r"'broken_rewards\.score': SyntaxError"):
        find_function("broken_rewards.score", ())


@pytest.mark.slow
def test_training_that_is_started_as_a_module_finds_them(folder: Path) -> None:
    """As a script and under accelerate: see the runs of test_train.py."""
    paths = write_rewards(folder)
    (folder / "prompts.jsonl").write_text('{"prompt": "2 3 = 5 :"}\n' * 32)
    recipe = write_recipe(folder, reward_funcs=paths, dataset_name="prompts.jsonl", do_eval=False)
    command = [sys.executable, "-m", "maxent_grpo.pipeline.train", "--config", str(recipe), "--preflight-only"]
    done = subprocess.run(
        [*command, "--gpus", "1"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"rewards {paths}" in done.stdout
