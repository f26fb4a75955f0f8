"""The environment of a job's processes: where downloads and caches go, and what is never shown."""

import os
from collections.abc import Mapping
from pathlib import Path

from maxent_grpo._secrets import is_secret
from maxent_grpo.pipeline.launch.node import CACHES, MARKER

MASK = "<set, not shown>"


def build_environment(given: Mapping[str, str], *, root: Path, job: str, addresses: list[str]) -> dict[str, str]:
    """Return the variables that a job's processes get besides those given; what is given wins.

    Args:
        given: the environment of the script.
        root: the repository, under which downloads go.
        job: the job's id with its count of restarts.
        addresses: of the servers, which no proxy is to be asked for.
    """
    downloads = root / "var"
    variables = {
        "HF_HOME": downloads / "huggingface",
        "PIP_CACHE_DIR": downloads / "pip",
        "CONDA_PKGS_DIRS": downloads / "conda",
        "WANDB_DIR": downloads / "wandb",
        "WANDB_CACHE_DIR": downloads / "wandb",
        "WANDB_CONFIG_DIR": downloads / "wandb",
        "WANDB_DATA_DIR": downloads / "wandb",
        "VLLM_NO_USAGE_STATS": "1",
    }
    variables |= find_hub_login(given)
    kept = {name: str(value) for name, value in variables.items() if name not in given}
    kept[MARKER] = job
    for name in ("NO_PROXY", "no_proxy") if addresses else ():
        kept[name] = ",".join([*filter(None, given.get(name, "").split(",")), *addresses])
    return kept


def find_hub_login(given: Mapping[str, str]) -> dict[str, str]:
    """Return where a stored login of the Hub is, which another HF_HOME would hide."""
    home = Path(given.get("HF_HOME") or Path(given.get("HOME", "/")) / ".cache/huggingface")
    stored = Path(given.get("HF_TOKEN_PATH") or home / "token")
    return {"HF_TOKEN_PATH": str(stored)} if stored.is_file() else {}


def describe_environment(variables: Mapping[str, str], given: Mapping[str, str], root: Path) -> list[str]:
    """Return a line for each variable, and for each secret that is set, whose value is never shown."""
    home = given.get("HOME", os.sep)
    # Each node makes the folder of its caches by itself.
    cache = f"{given.get('TMPDIR', '/tmp')}/maxent-{variables.get(MARKER, '')}-NODE"
    variables = {name: f"{cache}/{folder}" for name, folder in CACHES.items() if name not in given} | dict(variables)
    lines = []
    for name, value in sorted(variables.items()):
        text = value.replace(str(root), ".")
        shown = text.replace(home, "~") if home != os.sep else text
        lines.append(f"{name}={MASK if is_secret(name, value) else shown}")
    return lines + [f"{name}={MASK}" for name, value in sorted(given.items()) if value and is_secret(name, value)]
