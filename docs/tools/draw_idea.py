"""Draw the README's picture: one group of candidates, its target, and the target with duplicates discounted.

python docs/tools/draw_idea.py            # writes docs/assets/idea.png
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from maxent_grpo import answer_keys, discount_duplicates, duplicate_counts, listwise_q, tempered_target

PICTURE = Path(__file__).resolve().parents[1] / "assets" / "idea.png"
ANSWERS = ("2*3+4", "2*3+4", "2*3+4", "4+6", "12-2", "9", "7*2", "11")  # Countdown to 10: three kinds are right
REWARDS = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
TAU = 0.3
COLORS = {"2*3+4": "#0072b2", "4+6": "#e69f00", "12-2": "#009e73"}  # Okabe and Ito's, told apart by everyone
WRONG = "#bbbbbb"


def draw_bars(panel: Axes, title: str, values: torch.Tensor, ylabel: str) -> None:
    """Draw one bar per candidate in the color of its answer."""
    colors = [COLORS.get(answer, WRONG) for answer in ANSWERS]
    panel.bar(range(len(ANSWERS)), values.tolist(), color=colors)
    panel.set_xticks(range(len(ANSWERS)), ANSWERS, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    panel.set_title(title, fontsize=10)
    panel.set_ylabel(ylabel, fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw the three panels."""
    weights = tempered_target(listwise_q(REWARDS), tau=TAU)
    counts = duplicate_counts(answer_keys(ANSWERS))
    discounted = discount_duplicates(weights, counts, strength=1.0)
    figure, panels = plt.subplots(1, 3, figsize=(10, 2.7), layout="constrained")
    draw_bars(panels[0], "8 sampled answers to “make 10”", REWARDS, "reward")
    draw_bars(panels[1], f"the target π*, τ = {TAU:g}", weights, "weight of the candidate")
    draw_bars(panels[2], "duplicates discounted, κ = 1", discounted, "weight of the candidate")
    for panel in panels[1:]:
        panel.set_ylim(0, 1.25 * float(discounted.max()))
    for panel, values in ((panels[1], weights), (panels[2], discounted)):
        share = float(values[:3].sum())
        panel.annotate(
            f"together {share:.0%}", (1, float(values[0])), (1, float(values[0]) + 0.02), ha="center", fontsize=8
        )
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
