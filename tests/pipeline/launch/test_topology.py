"""Who serves and who trains, and what is refused because it leaves nobody to."""

import dataclasses
import re
from typing import Any

import pytest

from maxent_grpo.pipeline.launch.errors import LaunchError
from maxent_grpo.pipeline.launch.options import Options, parse_options
from maxent_grpo.pipeline.launch.topology import choose_topology, expect_whole_gpus


def make_options(**fields: Any) -> Options:
    return dataclasses.replace(parse_options([]), **fields)


@pytest.mark.parametrize(
    ("fields", "nodes", "gpus", "serve", "train"),
    [
        ({}, 1, 8, (0, 1), (1, 8)),
        ({"dp": 2, "tp": 2}, 1, 8, (0, 4), (4, 8)),
        ({"vllm_gpus": 3}, 1, 8, (0, 3), (3, 8)),
        ({}, 2, 8, (0, 8), (0, 8)),
        ({"tp": 4}, 4, 4, (0, 4), (0, 4)),
    ],
)
def test_a_single_node_is_shared_and_several_are_not(
    fields: dict[str, Any], nodes: int, gpus: int, serve: tuple[int, int], train: tuple[int, int]
) -> None:
    topology = choose_topology(make_options(**fields), "server", nodes=nodes, gpus=gpus)
    assert (topology.server_slice, topology.trainer_slice) == (serve, train)
    assert topology.dp * topology.tp == topology.server_nodes * topology.server_gpus
    assert topology.ranks == (train[1] - train[0]) * max(1, nodes - 1)


@pytest.mark.parametrize("mode", ["colocate", "off"])
def test_without_a_server_all_train(mode: str) -> None:
    topology = choose_topology(make_options(), mode, nodes=2, gpus=4)
    assert topology.ranks == 2 * 4
    assert topology.trainer_slice == (0, 4)


def test_on_cpus_a_node_has_as_many_ranks_as_the_launch_file() -> None:
    topology = choose_topology(make_options(), "server", nodes=2, gpus=8, cpu_ranks=2)
    assert (topology.gpus, topology.ranks, topology.dp, topology.tp) == (0, 2, 1, 1)


@pytest.mark.parametrize(
    ("fields", "nodes", "gpus", "mode", "complaint"),
    [
        ({}, 1, 1, "server", "got 1 of 1 GPUs that serve on 1 node"),
        ({"vllm_gpus": 8}, 1, 8, "server", "got 8 of 8 GPUs"),
        ({"dp": 3, "vllm_gpus": 2}, 1, 8, "server", "got --dp 3 --tp 1"),
        ({"tp": 3}, 2, 8, "server", "--tp GPUs on one node, got --dp 2 --tp 3"),
        ({"vllm_nodes": 2}, 2, 8, "server", "got --vllm-nodes 2 --nodes 2"),
        ({"vllm_nodes": 2}, 1, 8, "server", "got --vllm-nodes 2"),
        (
            {"vllm_gpus": 2},
            1,
            8,
            "colocate",
            "Expected --vllm-gpus with a server of this job alone, got --vllm-gpus 2",
        ),
        ({"tp": 2}, 1, 8, "off", "got --tp 2 where vLLM is off (--vllm auto)"),
        ({"dp": 2}, 1, 8, "external", "got --dp 2 where vLLM is external"),
    ],
)
def test_what_cannot_be_is_named(fields: dict[str, Any], nodes: int, gpus: int, mode: str, complaint: str) -> None:
    with pytest.raises(LaunchError, match=re.escape(complaint)):
        choose_topology(make_options(**fields), mode, nodes=nodes, gpus=gpus)


def test_parts_of_gpus_train_one_rank() -> None:
    alone = choose_topology(make_options(), "off", nodes=1, gpus=1)
    expect_whole_gpus(alone, ["MIG-a"])
    together = choose_topology(make_options(), "off", nodes=1, gpus=2)
    expect_whole_gpus(together, ["GPU-a", "GPU-b"])
    with pytest.raises(LaunchError, match="got 2 ranks on MIG-a and others"):
        expect_whole_gpus(together, ["MIG-a", "MIG-b"])
