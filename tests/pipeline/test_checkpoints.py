"""A run goes on from the newest checkpoint that is whole, whatever happened to the files of another."""

import json
from pathlib import Path

import pytest

from maxent_grpo.pipeline import train
from maxent_grpo.pipeline.checkpoints import FILES, find_checkpoint
from maxent_grpo.pipeline.run import parse_run
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.storage import save_checkpoint
from maxent_grpo.pipeline.tiny.wide_countdown import TOKENIZER
from support.recipes import SHORT, write_recipe
from support.torn import TEARS


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of a run with checkpoints at steps 2 and 4."""
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(build_model(TOKENIZER), TOKENIZER, folder / "tiny-countdown")
    flags = ["--config", str(write_recipe(folder, save_total_limit=3)), *SHORT]
    train.main([*flags, "--max_steps", "4"])
    return flags


@pytest.mark.parametrize("tear", TEARS)
def test_a_checkpoint_with_any_torn_file_is_passed_over_or_named(
    tear: str, flags: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    args = parse_run([*flags, "--resume_from_checkpoint", "last"]).training
    older, newest = (Path(args.output_dir) / f"checkpoint-{step}" for step in (2, 4))
    assert find_checkpoint(args) == str(newest)
    files = [file for file in newest.rglob("*") if file.is_file()]
    assert len(files) >= 10
    for file in files:
        whole = file.read_bytes()
        TEARS[tear](file)
        args.resume_from_checkpoint = "last"
        caplog.clear()
        if file.name == FILES and not file.exists():  # killed before the list of files was written
            assert find_checkpoint(args) == str(newest)
        else:
            assert find_checkpoint(args) == str(older), file
            assert f"no readable {file.name}: skipped" in caplog.text
            args.resume_from_checkpoint = str(newest)
            with pytest.raises(
                ValueError, match=f"checkpoint-4' without a readable {file.name}; delete the folder, or"
            ):
                find_checkpoint(args)
        file.write_bytes(whole)


@pytest.mark.parametrize("more", [[], ["--preflight-only"]])
def test_a_new_run_in_a_folder_with_checkpoints_is_refused(more: list[str], flags: list[str]) -> None:
    output = parse_run(flags).training.output_dir
    with pytest.raises(SystemExit, match=f"without checkpoints, got {output}/checkpoint-4: go on with"):
        train.main([*flags, *more])


def test_a_run_goes_on_from_an_older_checkpoint_to_the_end(flags: list[str]) -> None:
    output = Path(parse_run(flags).training.output_dir)
    (output / "checkpoint-4/trainer_state.json").unlink()
    train.main([*flags, "--resume_from_checkpoint", "last"])
    logged = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in logged if "reward" in entry] == [1, 2, 3, 4, 5, 6]
