"""A grader of another library on pairs: JSON [[reference, answer], ...] on stdin, a JSON list of verdicts on stdout.

    python benchmarks/_grader_peers.py NAME

Each gets the form that it is made for: the answer in a box at the end of a sentence. A pair that takes more than
`SECONDS` counts as wrong, as it does in the library's own use.
"""
# ruff: noqa: PLC0415 - each library is imported only where it is asked for

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import logging
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

SECONDS = 10
Grader = Callable[[str, str], bool]


def write_completion(answer: str) -> str:
    return f"So the final answer is $\\boxed{{{answer}}}$."


def load_math_verify() -> Grader:
    from math_verify import parse, verify

    def grade(gold: str, answer: str) -> bool:
        return bool(verify(parse(f"$\\boxed{{{gold}}}$"), parse(write_completion(answer))))

    return grade


def load_trl() -> Grader:
    from trl.rewards import accuracy_reward

    def grade(gold: str, answer: str) -> bool:
        completion = [{"role": "assistant", "content": write_completion(answer)}]
        return accuracy_reward([completion], [f"$\\boxed{{{gold}}}$"])[0] == 1.0

    return grade


def load_lighteval() -> Grader:
    sys.meta_path.append(StandIns())
    from lighteval.metrics.dynamic_metrics import (
        ExprExtractionConfig,
        LatexExtractionConfig,
        MultilingualExtractiveMatchMetric,
    )
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.requests import Doc

    # As in its metrics for answers in LaTeX.
    metric = MultilingualExtractiveMatchMetric(
        fallback_mode="first_match",
        precision=5,
        gold_extraction_target=(LatexExtractionConfig(),),
        pred_extraction_target=(ExprExtractionConfig(), LatexExtractionConfig(boxed_match_priority=0)),
        aggregation_function=max,
    )

    def grade(gold: str, answer: str) -> bool:
        doc = Doc(query="", choices=[f"$\\boxed{{{gold}}}$"], gold_index=0)
        return metric.compute(doc, ModelResponse(text=[write_completion(answer)])) == 1.0

    return grade


def load_verl() -> Grader:
    """Return the grader that verl takes for MATH by default."""
    math_reward = load_verl_module("math_reward")
    return lambda gold, answer: math_reward.compute_score(write_completion(answer), gold) == 1.0


def load_verl_prime() -> Grader:
    """Return the grader that verl takes for the data sets of PRIME."""
    prime = load_verl_module("prime_math")
    return lambda gold, answer: bool(prime.compute_score(write_completion(answer), gold)[0])


def load_verl_module(name: str) -> Any:
    """Import a module of verl without the packages around it, which import ray and the trainer."""
    sys.meta_path.append(StandIns())
    spec = importlib.util.find_spec("verl")
    assert spec is not None
    (root,) = spec.submodule_search_locations or []
    for package in ("verl", "verl.utils", "verl.utils.reward_score"):
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = ["/".join([root, *package.split(".")[1:]])]
    return importlib.import_module(f"verl.utils.reward_score.{name}")


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """What a library imports and its grader never uses: found last, where nothing else is."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename and frame.f_back is not None:
            frame = frame.f_back
        importer = str(frame.f_globals.get("__name__")).split(".")[0]
        # The optional imports of other libraries are theirs to miss.
        stands_in = importer in ("lighteval", "verl") and name.split(".", maxsplit=1)[0] not in ("lighteval", "verl")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if stands_in else None

    def create_module(self, spec: Any) -> Any:
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module: Any) -> None:
        pass


GRADERS: dict[str, Callable[[], Grader]] = {
    "math-verify": load_math_verify,
    "TRL accuracy_reward": load_trl,
    "lighteval": load_lighteval,
    "verl math_reward": load_verl,
    "verl prime_math": load_verl_prime,
}


def stop_grading(*_: Any) -> None:
    raise TimeoutError


def main() -> None:
    logging.disable(logging.ERROR)
    pairs = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        grade = GRADERS[sys.argv[1]]()
        verdicts = []
        for gold, answer in pairs:
            signal.signal(signal.SIGALRM, stop_grading)
            signal.alarm(SECONDS)
            try:
                verdicts.append(grade(gold, answer))
            except (Exception, RecursionError):
                verdicts.append(False)
            finally:
                signal.alarm(0)
    json.dump(verdicts, sys.stdout)


if __name__ == "__main__":
    main()
