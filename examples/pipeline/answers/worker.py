"""A process that compares answers, one pair at a time, until its pipe is closed.

    python -P worker.py FILE_DESCRIPTOR SECONDS

It can be killed at any time, which is what a comparison that never ends needs. Limits of its own keep it from
outliving its parent: memory, and processor time per pair.
"""

import importlib
import importlib.util
import json
import logging
import resource
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

MEMORY = 4 * 2**30


def load_comparison() -> Callable[[str, str], bool]:
    """Return what compares, without the packages around this folder, which import torch for seconds."""
    *outer, name = "maxent_grpo", "maxent_grpo.pipeline", "maxent_grpo.pipeline.answers"
    for package in outer:
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = []
    folder = Path(__file__).parent
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    compare: Callable[[str, str], bool] = importlib.import_module(f"{name}.verdict").compare_answers
    return compare


def answer_request(compare: Callable[[str, str], bool], gold: str, answer: str) -> dict[str, object]:
    """Return {"equal": bool}, or {"error": text} where the comparison itself failed."""
    try:
        return {"equal": compare(gold, answer)}
    except (Exception, RecursionError, MemoryError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def serve_requests(connection: Connection, seconds: float) -> None:
    """Answer requests until the other end is closed."""
    logging.disable(logging.WARNING)  # math-verify says at length that its own timeout is off
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    compare = load_comparison()
    connection.send_bytes(b"ready")
    while True:
        try:
            pair = json.loads(connection.recv_bytes())
        except EOFError:
            return
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 2, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        connection.send_bytes(json.dumps(answer_request(compare, *pair)).encode())


if __name__ == "__main__":
    serve_requests(Connection(int(sys.argv[1])), float(sys.argv[2]))
