"""What sbatch is asked for, as far as its own flags say it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from maxent_grpo.pipeline.launch.errors import LaunchError

Words = list[tuple[str, str | None]]

LONG_NAMES = {"-N": "--nodes", "-G": "--gpus", "-n": "--ntasks"}
ALONE = re.compile(
    "contiguous|exclusive|get-user-env|help|hold|no-kill|no-requeue|nice|overcommit|oversubscribe|parsable|propagate"
    "|quiet|reboot|requeue|spread-job|test-only|usage|use-min-nodes|verbose|version|wait"
)
"""Flags of sbatch without a value, or whose value stands behind `=` alone."""
ALONE_SHORT = frozenset("HOQVWhksv")

HIDING = {
    "gpus-per-task": "under which NCCL's processes cannot reach each other's GPUs",
    "ntasks-per-gpu": "under which NCCL's processes cannot reach each other's GPUs",
    "gpus-per-socket": "which says nothing of a node",
}
GPU_FLAGS = ("gres", "gpus-per-node", "gpus")


@dataclass(frozen=True)
class Request:
    """What sbatch is asked for.

    Attributes:
        nodes: of the job.
        gpus: of each node.
        gpus_flag: the flag that says so, as it was given.
        names_gres: whether gres are spoken of, which beats the header.
        names_gpus: whether GPUs are spoken of by another flag.
        flags: all flags with their last values, by their long names.
    """

    nodes: int | None
    gpus: int | None
    gpus_flag: str
    names_gres: bool
    names_gpus: bool
    flags: dict[str, str]


def read_request(words: Sequence[str], nodes: int | None = None) -> Request:
    """Return what flags of sbatch ask for.

    >>> request = read_request(["--gres=gpu:a100:7", "-N", "2"])
    >>> request.nodes, request.gpus, request.gpus_flag
    (2, 7, '--gres=gpu:a100:7')

    Args:
        words: the flags.
        nodes: of the job where these flags do not say it.

    Raises:
        LaunchError: naming the flag that is none, that contradicts another, or under which a job could not work.
    """
    flags = {name: value or "" for name, value in _split_flags(words)}
    for name, why in HIDING.items():
        if name in flags:
            raise _refuse(name, flags[name], "GPUs per node", why)
    asked = _read_nodes(flags.get("nodes"))
    counts = dict(_count_gpus(flags, asked or nodes or 1))
    if len(set(counts.values())) > 1:
        raise LaunchError(f"Expected one number of GPUs in --sbatch, got {' '.join(counts)}.")
    flag, gpus = next(iter(counts.items()), ("", None))
    return Request(asked, gpus, flag, "gres" in flags, bool(flags.keys() & set(GPU_FLAGS[1:])), flags)


def expect_agreement(request: Request, *, nodes: int | None, gpus: int | None, requeue: int = 0) -> None:
    """Refuse flags of sbatch that contradict the launcher's own.

    Args:
        request: what the flags of sbatch ask for.
        nodes: of `--nodes`, or None.
        gpus: of `--gpus`, or None.
        requeue: of `--requeue`.

    Raises:
        LaunchError: naming both flags.
    """
    flags = request.flags
    if nodes is not None and request.nodes not in (None, nodes):
        raise LaunchError(f"Expected one number of nodes, got --nodes {nodes} and --sbatch --nodes={flags['nodes']}.")
    if gpus is not None and request.gpus not in (None, gpus):
        raise LaunchError(
            f"Expected one number of GPUs, got --gpus {gpus} and --sbatch {request.gpus_flag} "
            f"({request.gpus} of each node)."
        )
    if requeue and "no-requeue" in flags:
        raise LaunchError(f"Expected a job that may start again, got --requeue {requeue} and --sbatch --no-requeue.")


def expect_tasks(request: Request, nodes: int) -> None:
    """Refuse more than one task on a node, and a signal that does not reach the launcher.

    Raises:
        LaunchError: naming the flag.
    """
    for name, count in (("ntasks-per-node", 1), ("ntasks", nodes)):
        value = request.flags.get(name)
        if value not in (None, str(count)):
            raise _refuse(
                name, value, f"one task on each node (--{name}={count})", "which multiplies what a node gives"
            )
    signal = request.flags.get("signal")
    if signal is not None and not re.match(r"(R?B|BR):((SIG)?USR1|10)(@\d+)?$", signal):
        raise _refuse("signal", signal, "--signal=B:USR1@SECONDS", "which does not reach the launcher")


def _refuse(name: str, value: str | None, expected: str, why: str) -> LaunchError:
    return LaunchError(f"Expected {expected} in --sbatch, got --{name}{f'={value}' if value else ''}, {why}.")


def _split_flags(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Return flags with their values, short names as they are unless we read them."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("-") or word in ("-", "--"):
            raise LaunchError(f"Expected flags in --sbatch, got {word}, which sbatch would take for its script.")
        is_alone = bool(equals or ALONE.fullmatch(name))
        if not word.startswith("--"):
            name = LONG_NAMES.get(word[:2], word[:2]).removeprefix("--")
            value = word[2:].removeprefix("=")
            is_alone = bool(value) or word[1] in ALONE_SHORT
        if is_alone:
            yield name, value
        elif not rest:
            raise LaunchError(f"Expected a value after {word} in --sbatch, got none.")
        else:
            yield name, None if rest[0].startswith("-") else rest.pop(0)


def _read_nodes(value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isdecimal() or not int(value):
        raise _refuse("nodes", value, "one number of nodes", "from which no plan follows")
    return int(value)


def _count_gpus(flags: dict[str, str], nodes: int) -> Iterator[tuple[str, int]]:
    """Return how many GPUs of a node each flag asks for, by the flag as it was given."""
    for part in filter(None, flags.get("gres", "").split(",")):
        kind, _, rest = part.partition(":")
        if kind in ("shard", "mps"):
            raise _refuse("gres", flags["gres"], "whole GPUs", "which are shared with other jobs")
        if kind == "gpu":
            count = re.search(r"(?:^|:)(\d+)(?:\(.*\))?$", rest)
            yield f"--gres={flags['gres']}", int(count[1]) if count else 1
    for name in GPU_FLAGS[1:]:
        if name not in flags:
            continue
        count = re.fullmatch(r"(?:[^,:]+:)?(\d+)", flags[name])
        if count is None:
            raise _refuse(name, flags[name], "a number of GPUs of one kind", "which is none")
        gpus, left = divmod(int(count[1]), nodes if name == "gpus" else 1)
        if left:
            raise _refuse(name, flags[name], "as many GPUs on every node", f"for {nodes} nodes")
        yield f"--{name}={flags[name]}", gpus
