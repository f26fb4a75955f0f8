"""Every private name of TRL that the adapter uses is in its table, and the installed TRL has it as expected."""

import ast
import importlib
import inspect
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer

from maxent_grpo.adapters import trl
from maxent_grpo.adapters.trl.private_names import ATTRIBUTES, FUNCTIONS, METHODS, ROLLOUT_ENTRIES, PrivateName
from support import trl_tiny

FOLDER = Path(trl.__file__).parent
OWN_ENTRIES = {"maxent_coefficients", "maxent_rehearsal"}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> GRPOTrainer:
    """TRL's own trainer, as constructed."""
    args = GRPOConfig(str(tmp_path_factory.mktemp("run")), use_cpu=True, bf16=False, report_to="none")
    return GRPOTrainer(
        trl_tiny.build_model(),
        trl_tiny.reward,
        args,
        trl_tiny.make_prompts(8),
        processing_class=trl_tiny.build_tokenizer(),
    )


def find_object(entry: PrivateName) -> Any:
    module, dot, name = entry.name.rpartition(".")
    return getattr(importlib.import_module(module) if dot else GRPOTrainer, name)


@pytest.mark.parametrize("entry", [*METHODS, *FUNCTIONS], ids=lambda entry: entry.name)
def test_a_method_or_function_has_the_parameters_that_are_used_in_this_order(entry: PrivateName) -> None:
    assert entry.parameters is not None
    present = [name for name in inspect.signature(find_object(entry)).parameters if name != "self"]
    assert tuple(name for name in present if name in entry.parameters) == entry.parameters


@pytest.mark.parametrize("entry", ATTRIBUTES, ids=lambda entry: entry.name)
def test_a_trainer_has_the_attribute(entry: PrivateName, trainer: GRPOTrainer) -> None:
    assert hasattr(trainer, entry.name)


@pytest.mark.parametrize("entry", ROLLOUT_ENTRIES, ids=lambda entry: entry.name)
def test_a_rollout_has_the_entry_under_some_options(entry: PrivateName) -> None:
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert f'"{entry.name}": ' in source or f'output["{entry.name}"] = ' in source


def find_uses(trainer: GRPOTrainer) -> dict[str, set[str]]:
    """Return the private names that each module uses: of the trainer, of entries of its rollout, of functions."""
    documented = {"accelerator", "args", "model", "state", *(name for name in dir(Trainer) if name[0] != "_")}
    of_trl = {*dir(GRPOTrainer), *vars(trainer)} - documented
    uses: dict[str, set[str]] = defaultdict(set)
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {read_entry(node), *read_functions(node), *(read_names(node, path.stem) & of_trl)}
            for name in names - {None, "__init__"} - OWN_ENTRIES:
                uses[str(name)].add(path.stem)
    return uses


def read_names(node: ast.AST, module: str) -> set[str]:
    """Return the names of a trainer that are read, overridden or declared: `self` is one in trainer.py alone."""
    trainers = ("self", "super()") if module == "trainer" else ("self.trainer",)
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in trainers:
        return {node.attr}
    if module == "trainer" and isinstance(node, ast.FunctionDef):
        return {node.name}
    if module == "trainer" and isinstance(node, ast.Assign):
        return {ast.unparse(target) for target in node.targets}
    return set()


def read_entry(node: ast.AST) -> str | None:
    """Return the entry of rows that an expression reads, or None."""
    text = ast.unparse(node) if isinstance(node, ast.Subscript | ast.Call | ast.Compare) else ""
    found = re.match(r"(?:rows|inputs)(?:\['|\.get\('|\.pop\(')(\w+)'|'(\w+)' in rows$", text)
    return found and (found[1] or found[2])


def read_functions(node: ast.AST) -> list[str]:
    """Return what is imported from within TRL's modules, by its whole name."""
    within = isinstance(node, ast.ImportFrom) and str(node.module).startswith("trl.")
    return [f"{node.module}.{alias.name}" for alias in node.names] if within else []


def test_the_table_holds_all_names_that_are_used_with_their_modules_and_no_others(trainer: GRPOTrainer) -> None:
    table = (*METHODS, *FUNCTIONS, *ATTRIBUTES, *ROLLOUT_ENTRIES)
    assert {entry.name: set(entry.used_in) for entry in table if entry.used_in} == find_uses(trainer)
    assert len({entry.name for entry in table}) == len(table)
