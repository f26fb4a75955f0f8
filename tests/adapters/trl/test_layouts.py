"""The same rollouts give the same gradient, however real TRL splits them over steps, micro-batches and ranks."""

import copy
import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import trl_tiny
from support.precision import Bounded, evaluate, unit_roundoff

TESTS = Path(__file__).parents[2]
DIVERSE = {
    "maxent_center": True,
    "maxent_dedup": 1.0,
    "maxent_skip": "all_min",
    "maxent_nll_reduction": "max_length",
}
SURROGATE = {"maxent_projection": "surrogate", "maxent_surrogate_tau": 0.1}
CLIPPED = {"num_iterations": 2, "max_steps": 2, "learning_rate": 0.05, "maxent_center": True, "epsilon": 0.02}
BANK = {"maxent_bank_weight": 3.0, "maxent_bank_prompts": 2}
LISTWISE = {"maxent_projection": "listwise", "maxent_anchor": "old", "init_kl_coeff": 0.5}


def layout(rows: int, accumulation: int = 1, per_generation: int | None = None, steps: int = 1) -> dict[str, Any]:
    """Return micro-batches of `rows`, `accumulation` of them an update, `per_generation` of them a rollout."""
    return {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": per_generation,
        "max_steps": steps,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        DIVERSE,
        LISTWISE,
        SURROGATE,
        {"maxent_keep_fraction": 0.5},
        {"maxent_fused_head": True},
        {"entropy_coef": 0.1},
        BANK,
        {**BANK, "maxent_fused_head": True, "maxent_skip": "all_min"},
    ],
)
def test_accumulation_leaves_the_gradient_alone(settings: dict[str, Any], tmp_path: Any) -> None:
    exact = trl_tiny.evaluate_run(tmp_path, **layout(8), **settings)
    for split in (layout(8), layout(4, 2), layout(2, 4), layout(1, 8)):
        exact.assert_near(trl_tiny.measure_gradient(tmp_path, **split, **settings))


@pytest.mark.parametrize("settings", [{}, DIVERSE, LISTWISE, {"beta": 0.1}])
def test_rollouts_of_half_or_twice_an_update_leave_the_gradient_alone(
    settings: dict[str, Any], tmp_path: Any
) -> None:
    policy = trl_tiny.build_model()
    policy.config._name_or_path = trl_tiny.save_model(tmp_path / "reference", seed=1)
    exact = trl_tiny.evaluate_run(tmp_path, policy=policy, **layout(8), **settings)
    for split in (layout(2, 4, 2), layout(4, 1, 2, steps=2), layout(2, 2, 4, steps=2)):
        # Two updates on half of the prompts each are divided by half of the groups each.
        found = trl_tiny.measure_gradient(tmp_path, policy=copy.deepcopy(policy), **split, **settings)
        exact.assert_near(found / split["max_steps"])


def test_the_entropy_bonus_of_an_update_is_the_mean_over_its_rollouts(tmp_path: Any) -> None:
    """The tokens of its later rollouts are not known at its first backward; those of each rollout are."""
    bonus = {"entropy_coef": 0.1}
    policy = trl_tiny.build_model().double()

    def add_halves() -> list[Tensor]:
        runs = ({"first": number, "policy": copy.deepcopy(policy)} for number in range(2))
        return [sum(trl_tiny.measure_gradient(tmp_path, **run, **layout(4), **bonus) / 2 for run in runs)]

    (halves,) = evaluate(add_halves)
    halves.assert_near(trl_tiny.measure_gradient(tmp_path, **layout(2, 4, 2), **bonus))
    whole = trl_tiny.evaluate_run(tmp_path, **layout(8), **bonus)
    whole.assert_near(trl_tiny.measure_gradient(tmp_path, **layout(4, 1, 2, steps=2), **bonus) / 2)


def test_the_last_update_of_an_epoch_counts_the_prompts_that_it_has(tmp_path: Any) -> None:
    kept = trl_tiny.Gradients()
    trl_tiny.build_trainer(tmp_path, count=6, callbacks=[kept], **layout(4, 4, 2, steps=2)).train()
    four, two = (torch.cat([g.flatten() for g in step.values()]) for step in kept.steps)
    trl_tiny.evaluate_run(tmp_path, first=4, **layout(8)).assert_near(two)
    trl_tiny.evaluate_run(tmp_path, **layout(16)).assert_near(four)


TWO_RANKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "DDP": (layout(4), {}),
    "DDP, accumulation 2": (layout(2, 2), {}),
    "DDP, accumulation 4": (layout(1, 4), {}),
    "DDP, rollouts of half an update, groups over both ranks": (layout(2, 2, 1), {}),
    "DDP, rollouts of two updates, groups over both ranks": (layout(1, 2, 4, steps=2), {}),
    "DDP, one-pass head": (layout(2, 2), {"maxent_fused_head": True}),
    "DDP, pruned": (layout(2, 2), {"maxent_keep_fraction": 0.5}),
    "DDP, pruned to next to nothing": (layout(1, 4), {"maxent_keep_fraction": 0.13}),
    "DDP, diverse": (layout(1, 4), DIVERSE),
    "DDP, listwise": (layout(2, 2), LISTWISE),
    "DDP, surrogate": (layout(2, 2), SURROGATE),
    "DDP, bank": (layout(2, 2), BANK),
    "DDP, bank, one-pass head": (layout(1, 4), {**BANK, "maxent_fused_head": True}),
    "DDP, clipped": (layout(2, 2), CLIPPED),
    "DDP, adapter, one-pass head": (layout(2, 2), {"adapter": True, "maxent_fused_head": True}),
    "DDP, anchored at the reference": (layout(2, 2), {"init_kl_coeff": 0.5, "reference": ""}),
    "ZeRO-2, accumulation 2": (layout(2, 2), {"zero": 2}),
    "ZeRO-3": (layout(4), {"zero": 3}),
    "ZeRO-3, rollouts of half an update, groups over both ranks": (layout(1, 4, 2), {"zero": 3}),
    "ZeRO-3, one-pass head": (layout(2, 2), {"zero": 3, "maxent_fused_head": True}),
    "ZeRO-3, one-pass head, tied embeddings": (layout(4), {"zero": 3, "maxent_fused_head": True, "tied": True}),
    "ZeRO-3, anchored at the reference": (
        layout(2, 2),
        {"zero": 3, "init_kl_coeff": 0.5, "reference": "", "maxent_measure_every": 1},
    ),
    "ZeRO-3, adapter, one-pass head": (layout(4), {"zero": 3, "adapter": True, "maxent_fused_head": True}),
    "ZeRO-3, adapter, anchored": (layout(2, 2), {"zero": 3, "adapter": True, "init_kl_coeff": 0.5}),
    "ZeRO-3, pruned": (layout(2, 2), {"zero": 3, "maxent_keep_fraction": 0.5}),
    "ZeRO-3, bank": (layout(2, 2), {"zero": 3, **BANK}),
}
RESUMED: dict[str, dict[str, Any]] = {
    "plain": {"per_device_train_batch_size": 4},
    "pruned and clipped": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "maxent_keep_fraction": 0.5,
        "num_iterations": 2,
    },
    "with a bank": {"per_device_train_batch_size": 4, **BANK},
}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_give_the_gradient_of_one(tmp_path: Path) -> None:
    reference = trl_tiny.save_model(tmp_path / "reference", seed=1)

    def given(settings: dict[str, Any]) -> dict[str, Any]:
        return {name: reference if name == "reference" else value for name, value in settings.items()}

    layouts = [[name, {**settings, "resumed": True, "count": 6}] for name, settings in RESUMED.items()]
    layouts += [[name, split | given(settings)] for name, (split, settings) in TWO_RANKS.items()]
    layouts += [["ZeRO-3, logits that are capped", {"zero": 3, "capped": True}]]
    launch(2, TESTS / "adapters/trl/scripts/layouts.py", str(tmp_path / "out.pt"), json.dumps(layouts))
    results = torch.load(tmp_path / "out.pt")

    @functools.cache
    def evaluate_alone(settings: str) -> Bounded:
        alone = json.loads(settings)
        policy = trl_tiny.build_model(tie_word_embeddings=alone.pop("tied", False))
        policy.config._name_or_path = reference
        policy = trl_tiny.add_adapter(policy) if alone.pop("adapter", False) else policy
        return trl_tiny.evaluate_run(tmp_path, policy=policy, **layout(8) | alone)

    far = {}
    for name, (split, settings) in TWO_RANKS.items():
        alone = {key: value for key, value in settings.items() if key not in ("zero", "reference")}
        exact, found = evaluate_alone(json.dumps(alone)), results[name]["gradient"] / split["max_steps"]
        # DeepSpeed's gradient is a difference of parameters, which a step rounds.
        of_step = unit_roundoff(torch.float32) * results[name]["size"] if "zero" in settings else 0.0
        if not exact.distance(found) <= exact.error + of_step:
            far[name] = exact.distance(found), exact.error, of_step
    assert not far
    assert "its head's product with the last hidden states" in results["ZeRO-3, logits that are capped"]
    for name in RESUMED:
        assert len(results[name]["whole"]) == 4
        assert results[name]["resumed"] == results[name]["whole"]
    for name in ("DDP, pruned", "ZeRO-3, pruned"):
        rows = list(itertools.chain(*results[name]["rows"]))
        assert sum(rows) in (3, 4, 5)  # half of 8, up to the rounding of one draw
        assert max(rows) - min(rows) <= 1
        assert len(rows) == 2 * 2  # as many forwards as without pruning
    statistics = [name for name in results["DDP, listwise"]["log"] if name.startswith("maxent/")]
    assert len(statistics) == 12
    policy = trl_tiny.build_model().double()

    def log_alone() -> list[Tensor]:
        run = trl_tiny.build_trainer(tmp_path, policy=copy.deepcopy(policy), **layout(8), **LISTWISE)
        run.train()
        return [torch.tensor(run.state.log_history[0][name], dtype=torch.float64) for name in statistics]

    for name, exact in zip(statistics, evaluate(log_alone), strict=True):
        exact.assert_near(torch.tensor(results["DDP, listwise"]["log"][name]))


def launch(ranks: int, script: Path, *arguments: str) -> None:
    """Run a worker script on so many gloo ranks."""
    environment = os.environ | {
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command += [str(script), *arguments]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
