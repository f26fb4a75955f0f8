"""The kernels' benchmark: exact gradients to compare with, loads, and a run that goes on where it was cut off."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from support.precision import evaluate

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Return what imports a script with the modules beside it, which are no package; `kernels` has a namesake."""
    monkeypatch.syspath_prepend(SCRIPTS)

    def import_script(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark{name}", SCRIPTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # where its dataclasses look for it
        spec.loader.exec_module(module)
        return module

    return import_script


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_exact_gradients_are_autograds_in_the_next_wider_format(load: Any, dtype: torch.dtype) -> None:
    exact = load("_exact")
    torch.manual_seed(0)
    rows = exact.ROWS + 3  # one block and a part of the next
    leaves = torch.randn(rows, 4).to(dtype).requires_grad_(), torch.randn(9, 4).to(dtype).requires_grad_()
    ids, weights = torch.randint(0, 9, (rows,)), torch.randn(rows)

    def differentiate() -> tuple[torch.Tensor, ...]:
        hidden, weight = (leaf.double() for leaf in leaves)
        logps = (hidden @ weight.t()).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
        return torch.autograd.grad(-(weights * logps).sum(), (hidden, weight))

    wider = torch.float64 if dtype == torch.float32 else torch.float32
    found = exact.compute_exact_gradients(*leaves, ids, weights)
    for one, bound in zip(found, evaluate(differentiate, wider), strict=True):
        assert one.dtype == wider
        bound.assert_near(one)
    moved = exact.compare_gradients((1.25 * found[0], found[1]), found)
    assert moved == pytest.approx({"hidden": 0.25, "weight": 0.0})


def test_steps_under_load_are_timed_in_turn(load: Any) -> None:
    ran: list[str] = []
    steps = [lambda name=name: ran.append(name) for name in "ab"]
    timed = load("_load").run_under_load(steps, "cpu", seconds=0.0)
    assert timed.rounds == 5
    assert len(timed.median_ms) == 2
    assert ran == ["a", "b"] * 6
    assert load("kernels").format_load(timed).keys() == {"median_ms", "rounds"}  # no clock or power of a CPU


def cut_off(kernels: ModuleType, after: int, before: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a run that is cut off after so many cases."""
    run = kernels.measure_cases("tiny", "cpu", before)
    for _ in range(after - 1):
        next(run)
    return next(run)


def test_a_run_that_was_cut_off_goes_on_unless_code_or_machine_have_changed(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, measured = load("kernels"), []

    def measure_case(case: Any, *_: Any) -> dict[str, Any]:
        measured.append(case.name)
        return {"case": case.name, "model": case.head}

    monkeypatch.setattr(kernels, "measure_case", measure_case)
    first = cut_off(kernels, 2, {})
    planned = [plan["case"] for plan in first["planned"]]
    assert measured == planned[:2]
    *_, whole = kernels.measure_cases("tiny", "cpu", first)
    assert [case["case"] for case in whole["cases"]] == measured == planned
    assert whole["floors"] == first["floors"]
    for stale in ({**first, "code": "another"}, {**first, "hardware": "another"}, whole):
        measured.clear()
        cut_off(kernels, 1, stale)
        assert measured == planned[:1]  # from the start
