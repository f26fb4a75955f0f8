"""Write the names of LightEval's tasks, read from its wheel, as `evaluate.py --lighteval` knows them.

    pip download --no-deps lighteval==0.13.0
    python docs/tools/list_lighteval_tasks.py lighteval-0.13.0-py3-none-any.whl

The names are read from the code, which is not run: it imports much. A subset that the code computes is not known, and
any is taken then. Tasks in many languages are left out, because LightEval does not load them by itself.
"""

import ast
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).parents[2] / "examples/pipeline/evaluation/lighteval_tasks.json"
ANY = "*"


def list_tasks(wheel: str) -> dict[str, list[str]]:
    """Return the subsets of each task; a task without any has none."""
    tasks: dict[str, set[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("lighteval/tasks/tasks/") and name.endswith(".py"):
                for task, subset in read_names(archive.read(name).decode()):
                    tasks.setdefault(task, set()).update([subset] if subset else [])
    return {task: sorted(tasks[task]) for task in sorted(tasks)}


def read_names(source: str) -> Iterator[tuple[str, str]]:
    """Yield task and subset of each configuration in a module."""
    nodes = list(ast.walk(ast.parse(source)))
    assigned = {ast.unparse(node.targets[0]): node.value for node in nodes if isinstance(node, ast.Assign)}
    for call in nodes:
        if not isinstance(call, ast.Call) or getattr(call.func, "id", None) != "LightevalTaskConfig":
            continue
        (name,) = [keyword.value for keyword in call.keywords if keyword.arg == "name"]
        name = assigned.get(ast.unparse(name), name)
        for part in ast.walk(name):
            if isinstance(part, ast.Constant) and (part is name or ":" in str(part.value)):
                task, _, subset = str(part.value).partition(":")
                yield task, subset if part is name else ANY


if __name__ == "__main__":
    FILE.write_text(json.dumps(list_tasks(sys.argv[1]), indent=1) + "\n")
