"""What the flags for train.py and for vLLM may not say, because the launcher says it."""

import itertools
import re
import shlex
from collections.abc import Sequence

from maxent_grpo.pipeline.launch.errors import LaunchError
from maxent_grpo.pipeline.recipes import parse_flags

OF_TRAINER = {"--task": "--task says", "--config": "--config says"}
OF_SERVER = {
    "--tensor-parallel-size|-tp": "--tp says",
    "--data-parallel-size|-dp": "--dp says",
    "--port": "--vllm-port says",
    "--model": 'the recipe or --args "--model_name_or_path …" says',
    "--revision": 'the recipe or --args "--model_revision …" says',
    "--host|--uds|--config|--headless|--logprobs-mode|--nnodes|-n|--node-rank|-r": "the launcher decides",
    "--data-parallel-(?!backend).*|-dp[nrlaphem]|--pipeline-parallel-size|-pp": "the launcher decides",
}
"""Patterns of flags, and who says it instead."""

ADDRESSES = ("vllm_server_base_url", "vllm_server_host")


def expect_none_owned(flag: str, words: Sequence[str], owned: dict[str, str]) -> None:
    """Refuse what the launcher says itself, and words that are no flags.

    >>> expect_none_owned("--args", ["--run_name", "demo"], OF_TRAINER)

    Args:
        flag: the flag that has the words as its value.
        words: the value.
        owned: patterns of what may not be in it, and who says it instead.

    Raises:
        LaunchError: naming what was found.
    """
    if words and not words[0].startswith("-"):
        raise LaunchError(f"Expected flags in {flag}, got {shlex.quote(words[0])}.")
    for word, value in itertools.pairwise([*words, "-"]):
        name = word.partition("=")[0]
        name = name.replace("_", "-") if name.startswith("--") else name
        for pattern, instead in owned.items():
            if re.fullmatch(pattern, name):
                shown = word if "=" in word or value.startswith("-") else f"{word} {shlex.quote(value)}"
                raise LaunchError(f"Expected {flag} without what {instead}, got {shown} in it.")


def find_server(words: Sequence[str]) -> str | None:
    """Return the flag by which train.py is to ask a server that is already there; None without one.

    >>> find_server(["--vllm_server_host", "gpu7", "--vllm_server_port", "8000"])
    '--vllm_server_host gpu7'

    Args:
        words: flags of train.py.

    Raises:
        LaunchError: on a port without a host, which would be that of nobody's server.
    """
    flags = {name: values[-1] for name, values in parse_flags(words) if values}
    given = [name for name in ADDRESSES if name in flags]
    if "vllm_server_port" in flags and not given:
        raise LaunchError(
            f"Expected --vllm-port {flags['vllm_server_port']}, or --vllm_server_host of a server that is there, "
            f"got --vllm_server_port {flags['vllm_server_port']} alone in --args."
        )
    return f"--{given[0]} {shlex.quote(flags[given[0]])}" if given else None
