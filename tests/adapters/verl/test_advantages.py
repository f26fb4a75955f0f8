"""verl's own way from rollouts to advantages: its trainer, TransferQueue on Ray, padding and shuffled rows."""

from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
import ray
import torch
from torch import Tensor

from support.golden_table import bound_row, load_golden
from support.verl_golden import Batch, build_batch, build_trainer, list_overrides
from support.verl_ray import find_survivors, get_advantages, put_batch, start_ray

GOLDEN = load_golden()
ROWS = ("published", "diverse", "pulled to the reference", "listwise", "xDr.GRPO")
BYPASS = ["algorithm.rollout_correction.bypass_mode=True", "actor_rollout_ref.rollout.calculate_log_probs=True"]
MULTIPLE = 12


@dataclass
class Run:
    """What came of one cluster.

    Attributes:
        advantages: by the name of a golden row, a tensor per row of the batch.
        metrics: by the name of a golden row.
        names: what verl knows in a process that Ray started.
        processes: all that belonged to the cluster.
    """

    advantages: dict[str, list[Tensor]] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    names: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    processes: list[psutil.Process] = field(default_factory=list)


def make_batch() -> Batch:
    """Return the golden rows without padding, which verl is to add."""
    batch = build_batch(GOLDEN)
    kept = [row for row, place in enumerate(batch.places) if place >= 0]
    return Batch(*([values[row] for row in kept] for values in (batch.places, batch.keys, batch.tags, batch.rows)))


def compute_advantages(name: str, *overrides: str) -> tuple[list[Tensor], dict[str, Any]]:
    """Return the advantages that verl's trainer stores, and its metrics."""
    trainer = build_trainer([*list_overrides(GOLDEN.rows[name].config, clipped=False), *overrides])
    batch, metrics = make_batch(), {}
    meta = put_batch(batch, MULTIPLE, torch.Generator().manual_seed(5))
    if overrides == tuple(BYPASS):
        trainer._compute_old_log_prob(meta, metrics)
    trainer._compute_advantage(meta, metrics)
    return get_advantages(meta, batch), metrics


def ask_worker() -> tuple[list[str], list[str]]:
    """Return the estimators and trainers that verl knows in a process that Ray started."""

    @ray.remote  # inside, so that it travels by value: a worker cannot import tests
    def list_names() -> tuple[list[str], list[str]]:
        import verl  # noqa: F401  (what loads the plugin)
        from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
        from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

        return sorted(ADV_ESTIMATOR_REGISTRY), sorted(TRAINER_REGISTRY)

    names: tuple[list[str], list[str]] = ray.get(list_names.remote())
    return names


@pytest.fixture(scope="module")
def run() -> Run:
    run = Run()
    with start_ray(run.processes):
        run.names = ask_worker()
        for name in ROWS:
            run.advantages[name], run.metrics[name] = compute_advantages(name)
        run.advantages["bypass"], _ = compute_advantages("listwise", *BYPASS)
    return run


@pytest.mark.parametrize("name", [*ROWS, "bypass"])
def test_the_queue_holds_the_golden_weights_times_rows_per_prompt(name: str, run: Run) -> None:
    batch, row = make_batch(), GOLDEN.rows["listwise" if name == "bypass" else name]
    rows = -(-len(batch.keys) // MULTIPLE) * MULTIPLE
    weights = torch.stack([stored[0] for stored in run.advantages[name]]) / (rows / GOLDEN.num_groups)
    bound = bound_row(GOLDEN, row, torch.float32)[0].round_to(torch.float32).round_to(torch.float32)
    bound.assert_near(batch.restore(weights))
    for stored, fields in zip(run.advantages[name], batch.rows, strict=True):
        assert torch.equal(stored, stored[:1] * fields["response_mask"])


def test_the_log_has_our_statistics(run: Run) -> None:
    for name in ROWS:
        assert run.metrics[name]["maxent/ess"] >= 1
        assert 0 < run.metrics[name]["maxent/frac_unscored"] < 1


def test_the_entry_point_registers_in_a_process_of_ray(run: Run) -> None:
    estimators, trainers = run.names
    assert "maxent" in estimators
    assert {"maxent_sync", "maxent_colocate_async", "maxent_separate_async"} <= set(trainers)


def test_no_process_of_ray_outlives_the_run(run: Run) -> None:
    assert len(run.processes) > 3  # gcs, raylet and workers were seen while they lived
    assert find_survivors(run.processes) == []
