"""Known methods as settings of `MaxEntConfig`: the table, and one of them as a recipe.

    python -m maxent_grpo.methods            # all of them
    python -m maxent_grpo.methods MaxRL      # YAML for a recipe: maxent_* fields

Each is tested against its published formula, coefficient by coefficient (tests/core/test_methods.py). In a trainer
all of them are divided by the generation limit unless `nll_reduction` says otherwise.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maxent_grpo.config import MaxEntConfig


@dataclass(frozen=True)
class Method:
    """A published method in this library's terms.

    Attributes:
        reference: where it is from.
        settings: fields of `MaxEntConfig` that differ from their defaults.
        missing: what of the publication they do not reproduce, or what stands for a number of yours.
    """

    reference: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    missing: str = "nothing"

    @property
    def config(self) -> MaxEntConfig:
        """The settings as a config."""
        return MaxEntConfig(**self.settings)


_MAXRL = {"tau": 0.0, "center": True, "skip": "all_min"}
_SURROGATE = {"projection": "surrogate"}
_REGRESSION = {"projection": "regression", "tau": 0.0, "q_eps": 0.0}
_LISTWISE = {"anchor": "old", "tau": 0.0, "projection": "listwise", "q_eps": 0.0}
_REMAX = "'Measuring and Mitigating Solution Mode Collapse in RLVR', PyPI remax-rl 0.1.1"
_MODES = (
    "its keys, the verifier's modes, which are yours to give; its K = 16 and limit of 192 tokens, which λ goes with"
)

METHODS: dict[str, Method] = {
    "RAFT": Method("arXiv 2304.06767", {"tau": 0.0, "skip": "all_min"}, "its ranking over prompts"),
    "RWR": Method(
        "Peters and Schaal 2007; AWR: arXiv 1910.00177",
        {"tau": 1.0, "q_eps": 0.0},
        "weights are normalized per group; its temperature is `tau * q_temperature`",
    ),
    "KL-regularized optimum": Method(
        "arXiv 2305.18290, eq. (4)", {"tau": 0.0, "beta": 0.1, "q_eps": 0.0}, "β is an example; reference per token"
    ),
    "MaxRL": Method("arXiv 2602.02710", _MAXRL),
    "Dr.GRPO": Method("arXiv 2503.20783", _SURROGATE),
    "GRPO": Method(
        "arXiv 2402.03300",
        {**_SURROGATE, "utility_transform": "zscore"},
        "each candidate's own length as divisor; the ε beside the deviation, which is the population's",
    ),
    "F-GRPO": Method(
        "arXiv 2602.06717",
        {"tau": 0.0, "center": True, "success_power": 0.5, "failure_power": 0.5},
        "γ is an example: `failure_power` = γ − ½",
    ),
    "PKPO": Method(
        "arXiv 2505.15201", {"tau": 0.0, "center": True, "pass_k": 4}, "its leave-one-out baselines; k is an example"
    ),
    "Pass@k training": Method(
        "arXiv 2508.10751",
        {"tau": 0.0, "center": True, "pass_k": 4, "pass_k_normalize": True},
        "its sampled forms; k is an example",
    ),
    "IPS-GRPO": Method("arXiv 2601.21669", {**_SURROGATE, "utility_transform": ("ips", "zscore")}),
    "IPS-GRPO, centered": Method(
        "arXiv 2601.21669",
        {"tau": 0.0, "center": True, "dedup": 1.0, "distinct_power": 1.0},
        "nothing: κ = 1 without `distinct_power` is this up to a positive factor per group",
    ),
    "DRA-GRPO": Method(
        "arXiv 2505.09655",
        {**_SURROGATE, "utility_transform": ("ips", "zscore")},
        "its embeddings: keys are exact; `counts` = Σ_j S_ij can be given in a loop of your own",
    ),
    "UCPO": Method(
        "arXiv 2605.00365",
        {**_SURROGATE, "utility_transform": ("zscore", "ucpo")},
        "its likelihoods per token and its mixing share, which is 1",
    ),
    "GAPO": Method(
        "arXiv 2511.12596",
        {**_SURROGATE, "utility_transform": ("gapo", "zscore")},
        "the number of valid answers, which is counted in the group",
    ),
    "DARLING": Method(
        "arXiv 2509.02534",
        {**_SURROGATE, "utility_transform": ("darling", "zscore")},
        "its classifier of meaning: keys are exact",
    ),
    "unlikeliness": Method(
        "arXiv 2506.02355",
        {**_SURROGATE, "utility_transform": ("unlikeliness", "zscore")},
        "its two passes, which are the trainer's (`num_iterations=2`)",
    ),
    "TPO": Method("arXiv 2604.06159", {**_LISTWISE, "beta": 1.0, "utility_transform": "zscore"}),
    "LPO-forward": Method("arXiv 2605.06139", {**_LISTWISE, "beta": 0.5}, "its other divergences; β is an example"),
    "FlowRL": Method(
        "arXiv 2509.15207",
        {**_REGRESSION, "beta": 1 / 15, "utility_transform": "zscore", "nll_reduction": "mean"},
        "its learned log Z, for which the group's mean stands; its importance weights; β is one over its 15",
    ),
    "TBA": Method(
        "arXiv 2503.18929",
        {**_REGRESSION, "beta": 0.1, "length_normalize_ref": False},
        "its replay of earlier samples; β is an example",
    ),
    "GVPO": Method("arXiv 2504.19599", {**_REGRESSION, "anchor": "old", "beta": 0.1}, "β is an example"),
    "xDr.GRPO": Method(
        "'Exploration Should Act at the Group Level in RL LLM Fine-Tuning'", {**_SURROGATE, "surrogate_tau": 0.05}
    ),
    "Re:Max": Method(_REMAX, {**_MAXRL, "nll_reduction": "max_length", "bank_weight": 0.1}, _MODES),
    "Re:Dr": Method(_REMAX, {**_SURROGATE, "bank_weight": 0.1}, _MODES),
    "tempered DPG": Method(
        "arXiv 2112.00791; α-DPG: arXiv 2512.05962",
        {
            "tau": 0.5, "beta": 0.5, "length_normalize_ref": False, "q_temperature": 1e-3, "q_eps": 0.0,
            "soft_dedup": 0.5, "skip": "all_min",
        },
        "weights are normalized per group and capped at 5 nats; the power is an example: `beta` = `soft_dedup` = 1 − "
        "`tau`",
    ),
    "W-REINFORCE": Method(
        "arXiv 2506.01347", {**_SURROGATE, "baseline": "none"}, "its rewards, 0.1 and −1, are yours to give"
    ),
}  # fmt: skip
"""Methods by name."""


def write_recipe(name: str) -> str:
    """Return a method's settings as the YAML of a recipe.

    Raises:
        ValueError: if there is no such method.

    >>> print(write_recipe("GAPO"))
    # GAPO (arXiv 2511.12596). Not reproduced: the number of valid answers, which is counted in the group.
    maxent_projection: surrogate
    maxent_utility_transform: gapo,zscore
    """
    if name not in METHODS:
        raise ValueError(f"Expected one of {list(METHODS)}, got {name!r}.")
    method = METHODS[name]
    fields = {
        "init_kl_coeff" if known == "beta" else f"maxent_{known}": _write_value(value)
        for known, value in method.settings.items()
    }
    head = f"# {name} ({method.reference}). Not reproduced: {method.missing}."
    return "\n".join([head, *(f"{known}: {value}" for known, value in fields.items())])


def write_settings(method: Method) -> str:
    """Return a method's settings as arguments of `MaxEntConfig`."""
    return ", ".join(f"{name}={value!r}".replace("'", '"') for name, value in method.settings.items())


def _write_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isinf(value):
        return ".inf"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", nargs="?", help="print this one as a recipe")
    name = parser.parse_args(argv).method
    if name is None:
        for known, method in METHODS.items():
            print(
                f"{known}  ({method.reference})\n    {write_settings(method)}\n    not reproduced: {method.missing}"
            )
        return 0
    try:
        print(write_recipe(name))
    except ValueError as error:
        print(f"maxent_grpo.methods: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
