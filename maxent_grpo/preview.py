"""Look before you train: what the method would make of rewards that were already collected.

    python -m maxent_grpo.preview rollouts.jsonl --plot rollouts.png
    python -m maxent_grpo.preview runs/maxent/completions --preset diverse     # TRL's, of log_completions=True

One JSON object per line is one group, the K candidates of one prompt, or one completion.

    {"rewards": [1, 0, null], "texts": ["6*7", "6+7", "?"], "ref_logps": [-3.1, -2.2, -9.0], "lengths": [4, 4, 2]}
    {"input": "2 3 7 = 42", "output": "6*7", "score": 1, "step": 10}

`rewards` is needed; null or NaN marks a candidate that could not be scored. `texts` show duplicates. `ref_logps`
(summed over tokens) with `lengths` (in tokens) are the reference of a target with --beta > 0. Completions are one
group where --group and the step are equal: files as verl and TRL dump them, .parquet and .gz included, or a folder
of such files. Where several reward functions have a column, --reward names one.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from maxent_grpo._rollout_files import GROUPS, REWARDS, TEXTS, Columns, Rollouts, read_rollouts
from maxent_grpo._secrets import DiscreetParser, hide_in_tracebacks, hide_secrets
from maxent_grpo.config import PRESETS, MaxEntConfig
from maxent_grpo.duplicates import duplicate_counts
from maxent_grpo.objective import MaxEntObjective, Target
from maxent_grpo.potential import effective_sample_size
from maxent_grpo.target import tau_for_ess

_TAUS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_SHOWN, _MOST, _WIDTH = 3, 16, 60
_MANY_DUPLICATES = 0.05
_COLORS = ("#bbbbbb", "#0072b2")


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
    diverse = MaxEntConfig.diverse().dedup  # the study decides, and the tests hold it to the study's result file
    return diverse, (
        f"{share:.1%} of the candidates are duplicates, and frequent answers crowd out the others; "
        f"{diverse:g} is the measured recipe, MaxEntConfig.diverse()"
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
    lines = [f"the first informative groups at τ = {config.tau:g}, their weights π* and coefficients c:"]
    columns = [rollouts.rewards, target.log_q.exp(), target.weights, MaxEntObjective(config).coefficients(target)]
    for group in target.informative.nonzero().flatten().tolist()[:_SHOWN]:
        lines.append(f"  group {group + 1}, ESS {effective_sample_size(target.weights[group]).item():.2f}")
        lines.append("    reward      q     π*       c" + ("" if rollouts.texts is None else "  text"))
        size = int(rollouts.present[group].sum())
        for candidate in range(min(size, _MOST)):
            values = [column[group, candidate].item() for column in columns]
            scored = rollouts.scored[group, candidate]
            numbers = "".join(f"{value:7.3f}" for value in values) if scored else "      –" * len(values)
            text = "" if rollouts.texts is None else f"  {_shorten(rollouts.texts[group][candidate])}"
            lines.append(f"   {numbers}{text}")
        lines += [f"    … and {size - _MOST} more"] if size > _MOST else []
    return lines


def _shorten(text: str) -> str:
    """Return the end of a text on one line: there a reasoner answers."""
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"…{line[1 - _WIDTH :]}"


def _phrase_suggestion(name: str, value: float | None, reason: str) -> str:
    return f"suggested {name}: {'none' if value is None else f'{value:.2g}'}, because {reason}"


def save_plot(rollouts: Rollouts, config: MaxEntConfig, file: Path) -> None:
    """Save q and π* of a few groups, and the distribution of the effective sample size.

    Raises:
        ValueError: where no group tells its candidates apart, so that there is nothing to draw.
        ImportError: without matplotlib, naming the command that brings it.
    """
    try:
        import matplotlib.pyplot as plt  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'maxent-grpo[pipeline]'") from error
    target = _build_target(rollouts, config)
    chosen = target.informative.nonzero().flatten().tolist()[:_SHOWN]
    if not chosen:
        raise ValueError("Expected a group whose rewards differ, for --plot to draw, got none.")
    width = 4 * (len(chosen) + 1)
    figure, (*bars, histogram) = plt.subplots(1, len(chosen) + 1, figsize=(width, 3.4), layout="constrained")
    for panel, group in zip(bars, chosen, strict=True):
        mask = rollouts.scored[group]
        positions = range(int(mask.sum()))
        q, weights = target.log_q[group][mask].exp(), target.weights[group][mask]
        panel.bar([at - 0.2 for at in positions], q.tolist(), width=0.4, color=_COLORS[0], label="q, from rewards")
        panel.bar([at + 0.2 for at in positions], weights.tolist(), width=0.4, color=_COLORS[1], label="target π*")
        panel.set_xticks(list(positions), [f"{reward:.3g}" for reward in rollouts.rewards[group][mask]])
        panel.set(title=f"group {group + 1}", xlabel="reward of each candidate")
        panel.sharey(bars[0])
    bars[0].set(ylabel="weight of the candidate")
    bars[0].legend(fontsize=8)
    most = int(rollouts.scored.sum(-1).max())
    edges = [1 + place * (most - 1) / 20 for place in range(21)]
    histogram.hist(effective_sample_size(target.weights)[target.informative].tolist(), bins=edges, color=_COLORS[1])
    histogram.set(
        title=f"{int(target.informative.sum())} groups, τ = {config.tau:g}",
        xlabel="candidates that count (effective sample size)",
        ylabel="groups",
        xticks=[size for size in (1, 2, 4, 8, 16, 32, 64) if size <= most],
    )
    for panel in (*bars, histogram):
        panel.spines[["top", "right"]].set_visible(False)
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


def choose_config(preset: str | None, knobs: Mapping[str, float | None]) -> MaxEntConfig:
    """Return a preset, or the default, with the knobs that are set; what NLLs are divided by plays no part here."""
    chosen: dict[str, Any] = {name: value for name, value in knobs.items() if value is not None}
    base = MaxEntConfig() if preset is None else PRESETS[preset]()
    return dataclasses.replace(base, nll_reduction="sum", **chosen)


def _mean_among(values: Tensor, among: Tensor) -> float:
    return values.double()[among].mean().item() if among.any() else math.nan


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    default = MaxEntConfig()
    hide_in_tracebacks()
    parser = DiscreetParser(
        "maxent-preview", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rollouts", type=Path, help="JSON lines, or parquet: one group or one completion per line")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="a whole recipe; what is given beside it overrides")
    add_knob = partial(parser.add_argument, type=float)
    add_knob("--tau", help=f"τ to look at ({default.tau:g})")
    add_knob("--beta", help=f"β; above 0 needs ref_logps ({default.beta:g})")
    add_knob("--dedup", help=f"κ; above 0 needs texts ({default.dedup:g})")
    add_knob("--q-temperature", help=f"T ({default.q_temperature:g})")
    add_knob("--q-eps", help=f"ε ({default.q_eps:g})")
    add_knob("--min-utility", help=f"highest reward of a failure ({default.min_utility:g})")
    parser.add_argument(
        "--ess", type=float, help="effective sample size to suggest τ for (a quarter of the group, at least 2)"
    )
    parser.add_argument("--group", help=f"column that completions of one prompt share ({', '.join(GROUPS)})")
    parser.add_argument("--reward", help=f"column of a completion's reward ({', '.join(REWARDS)})")
    parser.add_argument("--text", help=f"column of a completion's text ({', '.join(TEXTS)})")
    parser.add_argument("--plot", type=Path, help="save a picture here")
    options = vars(parser.parse_args(argv))
    file, ess, plot = options.pop("rollouts"), options.pop("ess"), options.pop("plot")
    columns, preset = Columns(*(options.pop(name) for name in ("group", "reward", "text"))), options.pop("preset")
    try:
        rollouts, config = read_rollouts(file, columns), choose_config(preset, options)
        print(write_report(rollouts, config, ess))
        if plot is not None:
            save_plot(rollouts, config, plot)
            print(f"picture: {plot}")
    except (OSError, ValueError, ImportError) as error:
        print(f"maxent-preview: {hide_secrets(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
