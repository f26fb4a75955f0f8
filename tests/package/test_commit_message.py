"""The commit hook refuses a message that breaks the rules, and says which."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(message: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "COMMIT_EDITMSG"
    file.write_text(message)
    script = ROOT / ".ci" / "check_commit_message.py"
    return subprocess.run([sys.executable, str(script), str(file)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "message",
    [
        "x" * 72,
        "Name the rows\n",
        "Name the rows\n\nThey had none. Now they do.\n",
        "# On branch main\nName the rows\n# Changes to be committed:\n#\tmodified: README.md.\n",
    ],
)
def test_a_message_within_the_rules_passes(message: str, tmp_path: Path) -> None:
    done = check(message, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("x" * 73, "at most 72 characters, got 73"),
        ("Name the rows.", "without a full stop"),
        ("Name the rows\nThey had none", "an empty line"),
        ("\n# On branch main\n", "Expected a subject, got none"),
    ],
)
def test_a_message_outside_the_rules_is_refused_with_the_reason(message: str, fault: str, tmp_path: Path) -> None:
    done = check(message, tmp_path)
    assert done.returncode == 1
    assert fault in done.stderr


@pytest.mark.slow
def test_pre_commit_runs_the_hook_at_its_own_stage_alone(tmp_path: Path) -> None:
    """In a repository of its own, with this one's configuration."""
    for name in (".pre-commit-config.yaml", ".ci/check_commit_message.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (tmp_path / "message").write_text("Name the rows.")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    command = [sys.executable, "-m", "pre_commit", "run", "--hook-stage", "commit-msg", "--commit-msg-filename"]
    done = subprocess.run([*command, "message"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "without a full stop" in done.stdout
    assert done.stdout.count("hook id:") == 1
    assert "ruff" not in done.stdout
