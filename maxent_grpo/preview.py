"""Look before you train: what the method would make of rewards that were already collected.

    python -m maxent_grpo.preview rollouts.jsonl --plot rollouts.png

One JSON object per line is one group: the K candidates of one prompt.

    {"rewards": [1, 0, null], "texts": ["6*7", "6+7", "?"], "ref_logps": [-3.1, -2.2, -9.0], "lengths": [4, 4, 2]}

`rewards` is needed; null or NaN marks a candidate that could not be scored. `texts` show duplicates. `ref_logps`
(summed over tokens) with `lengths` (in tokens) are the reference of a target with --beta > 0.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maxent_grpo.config import MaxEntConfig
from maxent_grpo.groups import answer_keys, pad_groups
from maxent_grpo.objective import MaxEntObjective, Target
from maxent_grpo.potential import effective_sample_size
from maxent_grpo.target import duplicate_counts, tau_for_ess

_TAUS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_SHOWN = 3
_MANY_DUPLICATES = 0.05
_LONGEST = 60


@dataclass(frozen=True)
class Rollouts:
    """Groups read from a file, padded: float64 [G, K] and bool [G, K]; None where the file has no such entries."""

    rewards: Tensor
    scored: Tensor
    lengths: Tensor
    ref_logps: Tensor | None
    keys: Tensor | None


def read_rollouts(file: Path) -> Rollouts:
    """Return the groups of a JSON-lines file.

    Raises:
        ValueError: naming the line and the entry, on anything that is not a group, or entries of unequal lengths.
    """
    groups = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            groups.append(_parse_group(line, f"{file}:{number}"))
    if not groups:
        raise ValueError(f"Expected at least one group, got none in {file}.")
    for name in ("texts", "ref_logps", "lengths"):
        if len({name in group for group in groups}) > 1:
            raise ValueError(f"Expected {name!r} in every group of {file} or in none.")
    sizes = [len(group["rewards"]) for group in groups]

    def pad_entry(name: str) -> Tensor | None:
        if name not in groups[0]:
            return None
        return pad_groups(
            torch.tensor([value for group in groups for value in group[name]], dtype=torch.float64), sizes
        )[0]

    rewards, lengths = pad_entry("rewards"), pad_entry("lengths")
    assert rewards is not None
    present = pad_groups(torch.ones(sum(sizes)), sizes)[1]
    keys = None
    if "texts" in groups[0]:
        keys = pad_groups(answer_keys([text for group in groups for text in group["texts"]]), sizes)[0]
    return Rollouts(
        rewards=rewards,
        scored=present & ~rewards.isnan(),
        lengths=present.to(torch.float64) if lengths is None else lengths,
        ref_logps=pad_entry("ref_logps"),
        keys=keys,
    )


def _parse_group(line: str, where: str) -> dict[str, list[Any]]:
    """Return one group, every entry checked, missing rewards as NaN."""
    try:
        group = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of 5000 digits and deep nesting are no JSONDecodeError
        raise ValueError(f"Expected a JSON object at {where}, got {line[:_LONGEST]!r} ({error}).") from error
    if not isinstance(group, dict) or not isinstance(group.get("rewards"), list) or not group["rewards"]:
        raise ValueError(f"Expected an object with a non-empty list 'rewards' at {where}, got {line[:_LONGEST]!r}.")
    size = len(group["rewards"])
    group["rewards"] = [math.nan if reward is None else reward for reward in group["rewards"]]
    for name in [name for name in _ENTRIES if name in group]:
        values = group[name]
        if not isinstance(values, list) or len(values) != size:
            raise ValueError(f"Expected {size} {name!r} at {where}, as many as rewards, got {_shorten(values)}.")
        for value in values:
            if (expected := _describe_expected(name, value)) is not None:
                raise ValueError(f"Expected {name!r} {expected} at {where}, got {_shorten(value)}.")
    return group


_ENTRIES: dict[str, tuple[type, ...]] = {
    "rewards": (int, float),
    "ref_logps": (int, float),
    "lengths": (int,),
    "texts": (str,),
}


def _describe_expected(name: str, value: object) -> str | None:
    """Return what one value of an entry should have been, None if it is all right."""
    kinds = _ENTRIES[name]
    if not isinstance(value, kinds):
        return f"of type {kinds[-1].__name__}"
    if not isinstance(value, (int, float)):
        return None
    if not -sys.float_info.max <= value <= sys.float_info.max:  # an integer can be too large for isfinite itself
        unscored = name == "rewards" and isinstance(value, float) and math.isnan(value)
        return None if unscored else "to be finite"
    return "to be at least 1" if name == "lengths" and value < 1 else None


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def mean_ess(rollouts: Rollouts, config: MaxEntConfig, groups: Tensor) -> float:
    """Return the effective sample size of the targets under a config, averaged over some groups."""
    return effective_sample_size(_build_target(rollouts, config).weights)[groups].mean().item()


def choose_ess(rollouts: Rollouts) -> float:
    """Return the effective sample size to suggest a τ for: a quarter of the group, at least 2.

    Groups of two or fewer are met half-way between one candidate and all, since only τ = ∞ counts all of them alike.
    """
    size = rollouts.scored.sum(-1).double().mean().item()
    return min(max(2.0, size / 4), (1 + size) / 2)


def suggest_tau(target: Target, config: MaxEntConfig, ess: float) -> tuple[float | None, str]:
    """Return the median over informative groups of the τ with the wanted effective sample size, and the reason."""
    taus = tau_for_ess(target.log_q, target.anchor_logps, ess=ess, beta=config.beta, mask=target.mask)[
        target.informative
    ]
    reachable = taus[(taus > 0) & taus.isfinite()]
    others = {
        "have it at any τ, by ties": int((taus == 0).sum()),
        "have no more candidates than that and come nearest at τ = inf": int(taus.isinf().sum()),
    }
    aside = "".join(f"; {number} {what}" for what, number in others.items() if number)
    if reachable.numel() == 0:
        return None, f"no group can reach an ESS of {ess:g} by a finite τ > 0{aside}"
    tau = reachable.quantile(0.5).item()
    return tau, (
        f"an ESS of {ess:g} takes τ = {tau:.2g} in the median of the {reachable.numel()} groups where τ decides it "
        f"(from {reachable.min():.2g} to {reachable.max():.2g}{aside})"
    )


def suggest_dedup(rollouts: Rollouts) -> tuple[float | None, str]:
    """Return κ by the share of candidates whose text occurs again in their group, and the reason."""
    if rollouts.keys is None:
        return None, "the file has no 'texts', so duplicates cannot be seen"
    share = _mean_among(duplicate_counts(rollouts.keys, mask=rollouts.scored) > 1, rollouts.scored)
    if share < _MANY_DUPLICATES:
        return 0.0, f"only {share:.1%} of the candidates are duplicates: a discount would change next to nothing"
    return 1.0, (
        f"{share:.1%} of the candidates are duplicates, and frequent answers crowd out the others; "
        "1 is the measured recipe, MaxEntConfig.diverse()"
    )


def write_report(rollouts: Rollouts, config: MaxEntConfig, ess: float | None) -> str:
    """Return what there is to know about the rollouts under a config, as text."""
    target = _build_target(rollouts, config)
    lines = _count_groups(rollouts, config, target)
    if not target.informative.any():
        return "\n".join([*lines, "no group tells candidates apart: there is nothing to learn from these rewards"])
    return "\n".join(
        [
            *lines,
            "",
            *_tabulate_ess(rollouts, config, target.informative),
            "",
            *_show_groups(rollouts, config, target),
            "",
            _phrase_suggestion("τ", *suggest_tau(target, config, choose_ess(rollouts) if ess is None else ess)),
            _phrase_suggestion("κ (dedup)", *suggest_dedup(rollouts)),
        ]
    )


def _count_groups(rollouts: Rollouts, config: MaxEntConfig, target: Target) -> list[str]:
    sizes = rollouts.scored.sum(-1)
    failed = ((rollouts.rewards <= config.min_utility) | ~rollouts.scored).all(-1)
    lines = [
        f"{len(sizes)} groups of {int(sizes.min())} to {int(sizes.max())} scored candidates, "
        f"mean reward {_mean_among(rollouts.rewards.nan_to_num(), rollouts.scored):.3f}",
        f"uninformative groups (all rewards equal): {(~target.informative).double().mean():.1%}, "
        f"without a reward above {config.min_utility:g}: {failed.double().mean():.1%} of all groups",
    ]
    if rollouts.keys is not None:
        repeated = duplicate_counts(rollouts.keys, mask=rollouts.scored) > 1
        share = _mean_among(repeated, rollouts.scored)
        lines.append(f"duplicates (candidates whose text occurs again in the group): {share:.1%}")
    return lines


def _tabulate_ess(rollouts: Rollouts, config: MaxEntConfig, informative: Tensor) -> list[str]:
    lines = [
        f"effective sample size over the {int(informative.sum())} informative groups, by τ (β = {config.beta:g}):"
    ]
    for tau in sorted({*_TAUS, config.tau}):
        setting = dataclasses.replace(config, tau=tau)
        here = "  <- now" if tau == config.tau else ""
        lines.append(f"  τ = {tau:<5g} ESS {mean_ess(rollouts, setting, informative):.2f}{here}")
    return lines


def _show_groups(rollouts: Rollouts, config: MaxEntConfig, target: Target) -> list[str]:
    lines = [f"the first informative groups at τ = {config.tau:g}:"]
    rows = {"reward": rollouts.rewards, "q": target.log_q.exp(), "π*": target.weights}
    for group in target.informative.nonzero().flatten().tolist()[:_SHOWN]:
        mask = rollouts.scored[group]
        lines.append(f"  group {group + 1}, ESS {effective_sample_size(target.weights[group]).item():.2f}")
        lines += [
            f"    {name:<7}" + " ".join(f"{value:6.3f}" for value in values[group][mask])
            for name, values in rows.items()
        ]
    return lines


def _phrase_suggestion(name: str, value: float | None, reason: str) -> str:
    return f"suggested {name}: {'none' if value is None else f'{value:.2g}'}, because {reason}"


def save_plot(rollouts: Rollouts, config: MaxEntConfig, file: Path) -> None:
    """Save q and π* of a few groups, and the distribution of the effective sample size."""
    try:
        import matplotlib.pyplot as plt  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'maxent-grpo[pipeline]'") from error
    target = _build_target(rollouts, config)
    chosen = target.informative.nonzero().flatten().tolist()[:_SHOWN]
    figure, panels = plt.subplots(1, len(chosen) + 1, figsize=(4 * (len(chosen) + 1), 3.2), layout="constrained")
    *bars, histogram = panels if chosen else [panels]
    for panel, group in zip(bars, chosen, strict=True):
        mask = rollouts.scored[group]
        positions = range(int(mask.sum()))
        panel.bar([at - 0.2 for at in positions], target.log_q[group][mask].exp().tolist(), width=0.4, label="q")
        panel.bar([at + 0.2 for at in positions], target.weights[group][mask].tolist(), width=0.4, label="π*")
        panel.set_xticks(list(positions), [f"{reward:g}" for reward in rollouts.rewards[group][mask]])
        panel.set(title=f"group {group + 1}", xlabel="reward")
        panel.legend()
    histogram.hist(effective_sample_size(target.weights)[target.informative].tolist(), bins=20)
    histogram.set(title=f"informative groups at τ = {config.tau:g}", xlabel="effective sample size", ylabel="groups")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _build_target(rollouts: Rollouts, config: MaxEntConfig) -> Target:
    return MaxEntObjective(config).target(
        rollouts.rewards,
        mask=rollouts.scored,
        lengths=rollouts.lengths,
        ref_logps=rollouts.ref_logps,
        keys=rollouts.keys,
    )


def _mean_among(values: Tensor, among: Tensor) -> float:
    return values.double()[among].mean().item() if among.any() else math.nan


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    default = MaxEntConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollouts", type=Path, help="JSON lines, one group per line")
    parser.add_argument("--tau", type=float, default=default.tau, help="τ to look at (%(default)s)")
    parser.add_argument("--beta", type=float, default=default.beta, help="β; above 0 needs ref_logps (%(default)s)")
    parser.add_argument("--dedup", type=float, default=default.dedup, help="κ; above 0 needs texts (%(default)s)")
    parser.add_argument("--q-temperature", type=float, default=default.q_temperature, help="T (%(default)s)")
    parser.add_argument("--q-eps", type=float, default=default.q_eps, help="ε (%(default)s)")
    parser.add_argument(
        "--min-utility", type=float, default=default.min_utility, help="highest reward of a failure (%(default)s)"
    )
    parser.add_argument(
        "--ess", type=float, help="effective sample size to suggest τ for (a quarter of the group, at least 2)"
    )
    parser.add_argument("--plot", type=Path, help="save a picture here")
    options = vars(parser.parse_args(argv))
    file, ess, plot = options.pop("rollouts"), options.pop("ess"), options.pop("plot")
    try:
        rollouts, config = read_rollouts(file), MaxEntConfig(**options)
        print(write_report(rollouts, config, ess))
        if plot is not None:
            save_plot(rollouts, config, plot)
            print(f"picture: {plot}")
    except (OSError, ValueError, ImportError) as error:
        print(f"maxent-preview: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
