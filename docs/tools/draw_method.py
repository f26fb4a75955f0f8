"""Draw the pictures of the page on the target: where π* lies, what it weighs, and how the potential rises.

python docs/tools/draw_method.py            # writes docs/assets/method/*.png
"""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from maxent_grpo import (
    effective_sample_size,
    forward_kl,
    improvement_gap,
    listwise_log_q,
    listwise_q,
    optimal_potential,
    regularized_potential,
    tempered_target,
)

PICTURES = Path(__file__).resolve().parents[1] / "assets" / "method"
BLUE, ORANGE, GREEN, PINK, GREY = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#888888"  # Okabe and Ito's
CANDIDATES = 8
PUBLISHED_TAU = 0.2
SUCCESSES = {1: BLUE, 2: ORANGE, 4: GREEN, 6: PINK}
UTILITIES, ANCHOR = torch.tensor([1.0, 0.6, 0.0]), torch.tensor([0.08, 0.22, 0.70])
CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])


def draw_simplex() -> None:
    """Draw the paths of π* over three candidates as τ and as β grow."""
    q = listwise_q(UTILITIES)
    powers = torch.logspace(-3, 3, 400).tolist()
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.7), layout="constrained")
    _draw_path(panels[0], "more τ, no anchor (β = 0)", [tempered_target(q, tau=tau) for tau in (0.0, *powers)])
    for label, tau in {"τ = 0.2": 0.2, "τ = 1: q": 1.0, "τ = ∞: all alike": math.inf}.items():
        _mark(panels[0], label, tempered_target(q, tau=tau))
    _mark(panels[0], "τ = 0:\nthe best one", tempered_target(q, tau=0.0), left=True)
    logps = ANCHOR.log()
    pulled = [tempered_target(q, logps, tau=PUBLISHED_TAU, beta=beta) for beta in (0.0, *powers)]
    _draw_path(panels[1], f"more β, τ = {PUBLISHED_TAU}", pulled)
    for label, beta in {"β = 0.1": 0.1, "β = 0.5": 0.5, "β = ∞: the anchor ρ": math.inf}.items():
        _mark(panels[1], label, tempered_target(q, logps, tau=PUBLISHED_TAU, beta=beta))
    _mark(panels[1], "β = 0", tempered_target(q, tau=PUBLISHED_TAU), left=True)
    _save(figure, "simplex")


def _draw_path(panel: Axes, title: str, weights: list[Tensor]) -> None:
    triangle = torch.cat([CORNERS, CORNERS[:1]])
    panel.plot(*triangle.T.tolist(), color=GREY, linewidth=1)
    panel.plot(*(torch.stack(weights) @ CORNERS).T.tolist(), color=BLUE, linewidth=2)
    for corner, utility, (shift, side) in zip(
        CORNERS.tolist(), UTILITIES.tolist(), ((-0.07, "top"), (-0.07, "top"), (0.05, "bottom")), strict=True
    ):
        panel.text(corner[0], corner[1] + shift, f"reward {utility:g}", ha="center", va=side, fontsize=9, color=GREY)
    panel.set(title=title, aspect="equal", xlim=(-0.35, 1.25), ylim=(-0.12, 0.96))
    panel.axis("off")


def _mark(panel: Axes, label: str, weights: Tensor, *, left: bool = False) -> None:
    x, y = (weights @ CORNERS).tolist()
    panel.plot([x], [y], "o", color=ORANGE)
    # Beside the curve: below the triangle's edge where the point is next to it.
    shift, side = ((-14, 8), "right") if left else ((9, -18 if y < 0.1 else -6), "left")
    frame = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    panel.annotate(label, (x, y), xytext=shift, textcoords="offset points", ha=side, fontsize=9, bbox=frame)


def draw_weights() -> None:
    """Draw what a candidate weighs, and how many candidates the target uses, by τ."""
    taus = torch.logspace(-2, 1.3, 200)
    figure, (weights, sizes) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for right, color in SUCCESSES.items():
        targets = tempered_target(_make_binary_q(right).expand(len(taus), -1), tau=taus)
        label = f"{right} of {CANDIDATES} right"
        weights.plot(taus.tolist(), targets[:, 0].tolist(), color=color, label=label)
        weights.plot(taus.tolist(), targets[:, -1].tolist(), color=color, linestyle=":")
        sizes.plot(taus.tolist(), effective_sample_size(targets).tolist(), color=color, label=label)
    weights.set(
        title="one right candidate (solid), one wrong (dotted)", ylabel="weight in the target", ylim=(0, 1.02)
    )
    sizes.set(
        title="how many candidates count", ylabel="effective sample size", yticks=[1, 2, 4, 6, 8], ylim=(0, 8.4)
    )
    for panel in (weights, sizes):
        panel.set(xlabel="τ, the temperature of the target", xscale="log")
        panel.set_xticks([0.01, 0.1, 0.2, 1, 10], ["0.01", "0.1", "0.2", "1", "10"])
        panel.axvline(PUBLISHED_TAU, color=GREY, linewidth=0.8, linestyle="--")
    weights.legend(fontsize=8)
    _save(figure, "weights")


def _make_binary_q(right: int) -> Tensor:
    return listwise_q((torch.arange(CANDIDATES) < right).float())


def draw_potential() -> None:
    """Draw the potential and both divergences while a policy is fitted to the target."""
    generator = torch.Generator().manual_seed(0)
    log_q = listwise_log_q((torch.arange(CANDIDATES) < 3).double())
    tau, logits = 0.3, 1.5 * torch.randn(CANDIDATES, generator=generator, dtype=torch.float64)
    target = tempered_target(log_q.exp(), tau=tau)
    potentials, gaps, forward = [], [], []
    for _ in range(101):
        log_policy = logits.log_softmax(-1)
        potentials.append(regularized_potential(log_policy.exp(), log_q, tau=tau).item())
        gaps.append(improvement_gap(log_policy, log_q, tau=tau).item() / tau)
        forward.append(forward_kl(target.log(), log_policy).item())
        logits = logits + 0.5 * (target - log_policy.exp())  # the negative gradient of −Σ π* log π
    figure, (rise, fall) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    rise.plot(potentials, color=BLUE, label="J(π)")
    rise.axhline(optimal_potential(log_q, tau=tau).item(), color=GREY, linestyle="--", label="its maximum J*")
    rise.set(
        title="the potential rises to its maximum", ylabel="potential", xlabel="steps of the listwise projection"
    )
    fall.plot(gaps, color=BLUE, label="KL(π ‖ π*), which the gap is a multiple of")
    fall.plot(forward, color=ORANGE, label="KL(π* ‖ π), which a step lowers")
    fall.set(title="two distances to the target", ylabel="nats", xlabel="steps of the listwise projection")
    rise.legend(fontsize=8)
    fall.legend(fontsize=8)
    _save(figure, "potential")


def _save(figure: plt.Figure, name: str) -> None:
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / f"{name}.png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Draw all pictures."""
    draw_simplex()
    draw_weights()
    draw_potential()


if __name__ == "__main__":
    main()
