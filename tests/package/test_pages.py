"""What the repository's pages say holds: Python runs, data can be read, commands and links lead somewhere.

The README's Python, which needs a sampler and a verifier, runs in `test_readme.py`.
"""

import contextlib
import doctest
import io
import json
import re
import shlex
import subprocess
import tomllib
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from links import rewrite_links
from public_names import find_undocumented, list_public_modules, list_public_names

from maxent_grpo.pipeline.parser import RecipeParser

ROOT = Path(__file__).parents[2]
TRACKED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
PAGES = sorted(TRACKED.splitlines())
FENCE = re.compile(r"((?:<!-- .*? -->\n)?)```(\S*)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
TARGETS = {
    target
    for line in re.findall(r"^([\w %-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in line.split()
}
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
SHELL = {"bash", "cd", "export", "git", "pip", "sbatch", "tail", "accelerate"}
"""Programs of others, whose arguments are theirs."""


def list_blocks(page: str) -> list[tuple[str, str, str]]:
    """Return the fenced blocks of a page: the comment above each, its language, its content."""
    return FENCE.findall((ROOT / page).read_text())


def select_pages(*languages: str) -> list[str]:
    return [page for page in PAGES if any(language in languages for _, language, _ in list_blocks(page))]


def list_slugs(text: str) -> set[str]:
    """Return the anchors of a page's headings as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_its_blocks_are_of_a_kind_that_is_checked_or_say_why_not(page: str) -> None:
    checked = {"", "python", "pycon", "bash", "json", "yaml", "diff", "{include}", "{eval-rst}", "{toctree}"}
    for comment, language, content in list_blocks(page):
        assert language in checked or comment.startswith("<!-- not run: "), content


@pytest.mark.parametrize("page", [page for page in select_pages("python", "pycon") if page != "README.md"])
def test_its_python_runs_from_top_to_bottom(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page}
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    for comment, language, content in list_blocks(page):
        if comment.startswith("<!-- not run: "):
            continue
        if language == "python":
            exec(compile(content, page, "exec"), names)
        elif language == "pycon":
            example = doctest.DocTestParser().get_doctest(content, names, page, page, 0)
            assert doctest.DocTestRunner(optionflags=options).run(example, clear_globs=False).failed == 0
            names.update(example.globs)


@pytest.mark.parametrize("page", select_pages("json", "yaml"))
def test_its_data_can_be_read(page: str) -> None:
    for _, language, content in list_blocks(page):
        if language == "json":
            assert [json.loads(line) for line in content.splitlines()]
        elif language == "yaml":
            assert yaml.safe_load(content)


@pytest.mark.parametrize("page", select_pages("bash", ""))
def test_its_commands_name_what_is_there(page: str) -> None:
    blocks = [content for _, language, content in list_blocks(page) if language in ("bash", "")]
    lines = [line for content in blocks for line in content.replace("\\\n", " ").splitlines()]
    commands = [part for line in lines for part in split_commands(line)]
    assert commands
    assert [command for command in commands if not names_what_is_there(command)] == []


MAINS = {
    "examples/train.py": "maxent_grpo.pipeline.train",
    "examples/evaluate.py": "maxent_grpo.pipeline.evaluate",
    "examples/quickstart.py": "maxent_grpo.pipeline.tiny.demo",
    "examples/slurm_train.sh": "maxent_grpo.pipeline.launch.__main__",
    "maxent-preview": "maxent_grpo.preview",
}
"""Whose options pages name, by what they are called as, or by their module."""


@cache
def list_flags(module: str) -> set[str]:
    """Return the flags of a module: those that `--help` shows, and of a recipe all of its fields."""
    if module == MAINS["examples/train.py"]:
        return {*RecipeParser("maxent", None, {})._option_string_actions, "--config", "--resume_from_checkpoint"}
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        import_module(module).main(["--help"])
    return set(re.findall(r"--[\w-]+", shown.getvalue()))


@pytest.mark.parametrize("page", select_pages("bash"))
def test_its_commands_have_flags_that_there_are(page: str) -> None:
    wrong = []
    for _, language, content in list_blocks(page):
        lines = content.replace("\\\n", " ").splitlines() if language == "bash" else []
        for command in [part for line in lines for part in split_commands(line)]:
            called = [MAINS.get(word, word) for word in command]
            place = next((at for at, word in enumerate(called) if word in MAINS.values()), None)
            if place is not None:
                flags = {word.split("=")[0] for word in command[place:] if word.startswith("--") and " " not in word}
                wrong += [(called[place], flag) for flag in sorted(flags - list_flags(called[place]))]
    assert wrong == []


def split_commands(line: str) -> list[list[str]]:
    """Return the commands of a line of a shell, without the variables before them."""
    words: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word == "&&":
            words.append([])
        elif words[-1] or not re.match(r"[\w.]+=", word):
            words[-1].append(word)
    return [command for command in words if command]


def names_what_is_there(command: list[str]) -> bool:
    """Tell whether a command's target, script or module is one of the repository's."""
    program, *arguments = command
    if program == "make":
        return all(target in TARGETS for target in arguments if "=" not in target)
    if program == "python" and arguments[0] == "-m":
        return has_module(arguments[1])
    if program in ("python", "bash"):
        return (ROOT / arguments[0]).exists()
    return program in SHELL or program in SCRIPTS or (ROOT / program).exists()


def has_module(name: str) -> bool:
    """Tell whether a module is there, also that of an adapter whose framework is not installed here."""
    file = ROOT / "adapters" / name.removeprefix("maxent_grpo.adapters.")
    return file.exists() or file.with_suffix(".py").exists() or find_spec(name) is not None


@pytest.mark.parametrize("page", PAGES)
def test_its_links_lead_to_files_and_headings_that_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    wrong = []
    for target, anchor in LINK.findall(FENCE.sub("", text)):
        file = (ROOT / page).parent / target if target else ROOT / page
        known = anchor == "" or file.suffix != ".md" or (file.exists() and anchor in list_slugs(file.read_text()))
        if not (file.exists() and known):
            wrong.append((target, anchor))
    assert wrong == []


@pytest.mark.parametrize("file", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda file: file.name)
def test_a_workflow_calls_targets_of_the_makefile(file: Path) -> None:
    job = yaml.safe_load(file.read_text())["jobs"]["make"]
    commands = {
        re.sub(rf"\$\{{\{{ matrix.{name} \}}\}}", value, step["run"])
        for name, values in job["strategy"]["matrix"].items()
        for value in values
        for step in job["steps"]
        if "run" in step
    }
    assert commands
    assert {command for command in commands if command.removeprefix("make ") not in TARGETS} == set()


def test_a_public_name_that_no_page_documents_is_found() -> None:
    documented = {f"{module}.{name}" for module in list_public_modules() for name in list_public_names(module)}
    assert list(find_undocumented(documented)) == []
    missing = {"maxent_grpo.config.MaxEntConfig", "maxent_grpo.MaxEntConfig"}
    assert set(find_undocumented(documented - missing)) == missing


def test_links_of_an_included_page_lead_from_the_page_that_includes_it() -> None:
    written_in, read_in = ROOT / "benchmarks" / "study", ROOT / "docs" / "api"
    text = "[a](NOTES.md#the-tasks) ![b](results/graph.png) [c](results/graph.md) [d](../study) [e](https://x.org)"
    assert rewrite_links(text, written_in, read_in) == (
        "[a](../study_notes.md#the-tasks) ![b](../../benchmarks/study/results/graph.png) "
        "[c](path:../../benchmarks/study/results/graph.md) d [e](https://x.org)"
    )
