"""What flags of sbatch ask for, and those under which a job could not work or that contradict the launcher's."""

import shlex

import pytest

from maxent_grpo.pipeline.launch.errors import LaunchError
from maxent_grpo.pipeline.launch.request import expect_agreement, expect_tasks, read_request


@pytest.mark.parametrize(
    ("words", "nodes", "gpus"),
    [
        ("--gres=gpu:a100:7", None, 7),
        ("--gres gpu:4", None, 4),
        ("--gres=gpu", None, 1),
        ("--gres=gpu:a100", None, 1),
        ("--gres=gpu:h100:4(S:0-1),nvme:1", None, 4),
        ("--gpus-per-node=h100:8 -N2", 2, 8),
        ("-N 2 -G 16", 2, 8),
        ("--gpus=16", None, 4),
        ("--gres=gpu:2 --gres=gpu:4", None, 4),
        ("--gres=gpu:4 --gpus-per-node=4", None, 4),
        ("--gres=none --exclusive -A me", None, None),
        ("--time=1:00 --hold", None, None),
    ],
)
def test_gpus_and_nodes_are_read_from_the_flags_of_sbatch(words: str, nodes: int | None, gpus: int | None) -> None:
    request = read_request(words.split(), nodes=4)
    assert (request.nodes, request.gpus) == (nodes, gpus)
    assert request.names_gres == ("gres" in words)
    assert request.names_gpus == ("gpus" in words or "-G" in words)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--gpus-per-task=1", "got --gpus-per-task=1, under which NCCL"),
        ("--ntasks-per-gpu 1", "got --ntasks-per-gpu=1, under which NCCL"),
        ("--gpus-per-socket=4", "got --gpus-per-socket=4, which says nothing of a node"),
        ("-N 3 --gpus=8", "as many GPUs on every node in --sbatch, got --gpus=8, for 3 nodes"),
        ("--gpus=a100:4,h100:4", "GPUs of one kind in --sbatch, got --gpus=a100:4,h100:4"),
        ("--gpus-per-node=many", "got --gpus-per-node=many"),
        ("--gres=shard:4", "whole GPUs in --sbatch, got --gres=shard:4"),
        ("--gres=gpu:4 --gpus-per-node=8", "got --gres=gpu:4 --gpus-per-node=8"),
        ("--nodes=2-4", "one number of nodes in --sbatch, got --nodes=2-4"),
        ("-N 0", "got --nodes=0"),
        ("foo", "Expected flags in --sbatch, got foo, which sbatch would take for its script"),
        ("--exclusive foo", "got foo"),
        ("-H foo", "got foo"),
        ("--time=1 -- foo", "got --,"),
        ("--time=1 --account", "Expected a value after --account in --sbatch"),
    ],
)
def test_what_no_job_can_run_with_is_refused(words: str, complaint: str) -> None:
    with pytest.raises(LaunchError, match=complaint):
        read_request(words.split())


@pytest.mark.parametrize(
    ("words", "flags", "complaint"),
    [
        ("--nodes=2", {"nodes": 4}, "got --nodes 4 and --sbatch --nodes=2"),
        ("--gres=gpu:4", {"gpus": 8}, r"got --gpus 8 and --sbatch --gres=gpu:4 \(4 of each node\)"),
        ("--gpus=16", {"nodes": 4, "gpus": 8}, r"got --gpus 8 and --sbatch --gpus=16 \(4 of each node\)"),
        ("--no-requeue", {"requeue": 3}, "got --requeue 3 and --sbatch --no-requeue"),
    ],
)
def test_contradictions_name_both_flags(words: str, flags: dict[str, int], complaint: str) -> None:
    given = {"nodes": None, "gpus": None} | flags
    request = read_request(words.split(), given["nodes"])
    with pytest.raises(LaunchError, match=complaint):
        expect_agreement(request, **given)


def test_flags_that_agree_are_taken() -> None:
    words = "--nodes=2 --gpus=16 --ntasks=2 --ntasks-per-node=1 --signal=B:USR1@900 --requeue"
    request = read_request(shlex.split(words))
    expect_agreement(request, nodes=2, gpus=8, requeue=3)
    expect_tasks(request, 2)


@pytest.mark.parametrize("word", ["--ntasks-per-node=8", "--ntasks=3", "--signal=USR1@60", "--signal=B:TERM@60"])
def test_tasks_and_signals_that_the_launcher_does_not_see_are_refused(word: str) -> None:
    with pytest.raises(LaunchError, match=f"in --sbatch, got {word}, which"):
        expect_tasks(read_request([word]), 2)
