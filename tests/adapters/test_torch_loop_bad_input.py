"""What the plain torch adapter refuses, and how it calls it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters.torch_loop import MaxEntLoss, Rollout
from support.bigram import Bigram, K, batch, log_probs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_sizes": 5}, "group_sizes that divide the 12 rows, got group_sizes=5"),
        ({"group_sizes": 0}, "group_sizes that divide the 12 rows, got group_sizes=0"),
        ({"group_sizes": -3}, "group_sizes=-3"),
        ({"group_sizes": 4.0}, r"group_sizes=4\.0"),
        ({"group_sizes": True}, "group_sizes=True"),
        ({"group_sizes": 10**5000}, "group_sizes=int too long to show"),
        ({"group_sizes": [6.5, 5.5]}, r"whole sizes >= 0, got group_sizes=\[6\.5, 5\.5\]"),
        ({"keys": torch.zeros(11, dtype=torch.long)}, r"keys of shape \[12\]"),
        ({"keys": ["a"] * 11}, "keys of 12 candidates, got keys=11"),
        ({"keys": [1.5] * 12}, r"texts or None of keys, got keys=\[1\.5, 1\.5, 1\.5\]"),
        ({"keys": np.arange(12)}, r"texts or None of keys, got keys=\[np\.int64\(0\)"),
        ({"keys": [*["a"] * 11, None]}, "ids, or a text for every candidate"),
        ({"mask": [[True]]}, r"mask to be a torch\.Tensor"),
        ({"mask": torch.ones(12, dtype=torch.bool)}, r"mask of shape \[N, T\], got mask of shape \[12\]"),
        ({"rewards": ["a"] * 12}, "rewards to be numbers or None, got rewards='a'"),
        ({"rewards": [torch.zeros(2)] * 12}, r"rewards to be numbers or None, got rewards=tensor\(\[0"),
        ({"rewards": [10**400] * 12}, "rewards to be numbers or None, got rewards=1000"),
        ({"rewards": [math.inf] * 12}, "finite rewards, or None without a verdict, got rewards=inf"),
        ({"rewards": torch.tensor([-math.inf] * 12)}, "got rewards=-inf"),
        ({"old_logps": torch.zeros(12, 5)}, r"old_logps of shape \[12, 6\]"),
        ({"group_sizes": [12, 1]}, "group_sizes to sum to the 12 rows"),
        ({"rewards": torch.zeros(11)}, r"rewards of shape \[12\]"),
        ({"mask": torch.ones(12, 5, dtype=torch.bool)}, "shape"),
        ({"ref_logps": torch.zeros(12, 5)}, r"ref_logps of shape \[12, 6\]"),
        ({"config": MaxEntConfig(beta=0.1)}, "ref_logps"),
        (
            {"config": MaxEntConfig(beta=0.1), "ref_logps": torch.full((12, 6), -math.inf)},
            "finite ref_logps, got candidates_without=10",
        ),
        (
            {"config": MaxEntConfig(projection="listwise"), "old_logps": torch.full((12, 6), math.nan)},
            "finite old_logps, got candidates_without=10",
        ),
        ({"config": MaxEntConfig(dedup=0.5)}, "keys"),
        ({"config": MaxEntConfig(keep_fraction=0.5)}, "generator"),
        (
            {"config": MaxEntConfig(success_power=1.0), "rewards": [1.0, -1.0] * 6},
            r"utilities in \[0, 1\] with success_power=1\.0, got utilities=\[-1\.0, ",
        ),
        ({"num_groups": 0}, "num_groups > 0"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, object], message: str) -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    call: dict[str, object] = {"rewards": rewards, "mask": mask, "group_sizes": K, **arguments}
    loss_fn = MaxEntLoss(call.pop("config", None))
    with pytest.raises(ValueError, match=message):
        loss_fn(log_probs(model, ids), Rollout(**call))


def test_log_probabilities_of_another_shape_are_named() -> None:
    _, (_, mask, rewards) = Bigram(), batch()
    with pytest.raises(ValueError, match=r"logps of shape \[12, 6\], got logps of shape \[12, 5\]"):
        MaxEntLoss()(torch.zeros(12, 5), Rollout(rewards, mask, group_sizes=K))
    with pytest.raises(ValueError, match=r"logps to be a torch\.Tensor"):
        MaxEntLoss()([[0.0]], Rollout(rewards, mask, group_sizes=K))


def test_logits_without_ids_are_refused() -> None:
    model, (ids, mask, rewards) = Bigram(), batch()
    with pytest.raises(ValueError, match="Expected ids with logits"):
        MaxEntLoss()(model(ids), Rollout(rewards, mask, group_sizes=K))
    with pytest.raises(ValueError, match="Expected ids with hidden states"):
        MaxEntLoss().from_hidden(torch.zeros(12, 6, 5), nn.Linear(5, 11), Rollout(rewards, mask, group_sizes=K))


def test_what_is_no_method_and_what_is_no_row_of_log_probabilities_is_named() -> None:
    with pytest.raises(ValueError, match="a MaxEntConfig or a MaxEntObjective, got method='dict'"):
        MaxEntLoss({"tau": 1.0})
    _, mask, rewards = batch()
    constants = MaxEntLoss().prepare(Rollout(rewards, mask, group_sizes=K))
    with pytest.raises(ValueError, match=r"logps of shape \[12, 6\], got logps of shape \[12, 6, 11\]"):
        constants.loss(torch.zeros(12, 6, 11))


def test_a_config_without_its_constant_length_is_refused_before_any_training() -> None:
    with pytest.raises(ValueError, match="max_length"):
        MaxEntLoss(MaxEntConfig.diverse())
