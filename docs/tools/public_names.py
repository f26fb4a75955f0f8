"""The names that users may rely on, read from the sources without importing them.

A module is public if it is the core's and has no underscore, or if it is listed here. Its names are those of its
`__all__`, or else its functions and classes without an underscore.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "maxent_grpo.adapters": "adapters",
    "maxent_grpo.pipeline": "examples/pipeline",
    "maxent_grpo": "maxent_grpo",
}
ADAPTERS = ("maxent_grpo.adapters", "maxent_grpo.adapters.torch_loop", "maxent_grpo.adapters.trl")
"""Those for OpenRLHF and verl are programs: their options are documented, not their functions."""
PIPELINE = tuple(
    f"maxent_grpo.pipeline.{name}"
    for name in (
        "rewards", "key_functions", "evaluation.curves", "frontiers", "tasks.answers", "tasks.catalog",
        "tasks.countdown", "tasks.graph_coloring", "tasks.metrics", "tasks.splits",
    )
)  # fmt: skip


def list_public_modules() -> list[str]:
    """Return the modules that each have an API page, by their installed names."""
    files = [path for path in (ROOT / "maxent_grpo").glob("*") if not path.name.startswith(("_", "py.typed"))]
    return ["maxent_grpo", *sorted(f"maxent_grpo.{path.stem}" for path in files), *ADAPTERS, *PIPELINE]


def find_source(module: str) -> Path:
    """Return the file of a module.

    >>> find_source("maxent_grpo.adapters.trl").relative_to(ROOT).as_posix()
    'adapters/trl/__init__.py'
    """
    package = next(name for name in FOLDERS if f"{module}.".startswith(f"{name}."))
    path = ROOT.joinpath(FOLDERS[package], *module.removeprefix(package).split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def list_public_names(module: str) -> list[str]:
    """Return the public names of a module.

    >>> list_public_names("maxent_grpo.adapters.trl")
    ['MaxEntGRPOConfig', 'MaxEntGRPOTrainer']
    """
    body = ast.parse(find_source(module).read_text()).body
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


def find_undocumented(documented: set[str]) -> Iterator[str]:
    """Yield the public names that no page documents.

    Args:
        documented: full names, `maxent_grpo.target.listwise_q`. A package's name may stand where it is defined.
    """
    short = {name.rsplit(".", 1)[-1] for name in documented}
    for module in list_public_modules():
        for name in list_public_names(module):
            if f"{module}.{name}" not in documented and not (_is_package(module) and name in short):
                yield f"{module}.{name}"


def _is_package(module: str) -> bool:
    return find_source(module).name == "__init__.py"
