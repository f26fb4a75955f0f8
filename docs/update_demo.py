"""Copy the results of a finished demo run into docs/assets/demo/ and its table into the README."""

import argparse
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "docs" / "assets" / "demo"
FILES = ("config.json", "results.json", "results.md", "curves.png")


def section(run: Path) -> str:
    """Return the README's text on a run: command, table and picture."""
    settings = json.loads((run / "config.json").read_text())
    seeds = range(settings["seed"], settings["seed"] + settings["seeds"])
    matched = json.loads((run / "results.json").read_text())["matched"]
    by_seed = ", ".join(
        f"seed {seed}: {values['coverage@8']['dr_grpo']:.3f} and {values['coverage@8']['maxent_diverse']:.3f}"
        f" at {values['mean@8']:.3f}"
        for seed, values in matched.items()
    )
    setting = ", ".join(
        f"{settings[name]} {label}"
        for name, label in (("steps", "updates"), ("prompts", "prompts each"), ("samples", "samples a prompt"))
    )
    held_out = f"{len(seeds)} seed(s) on {settings['eval_prompts']} held-out problems"
    return f"""
Countdown with three numbers and 2 to 8 right answers a problem; {setting}, all methods from
one warm start a seed; means over {held_out} at sampling temperature 1.
The last column compares at equal accuracy: each method at the sampling temperature (0.6 to 1.2) where it has the
highest mean@8 that all of them reach.

{(run / "results.md").read_text()}
Coverage@8 of Dr.GRPO and of the diverse setting at the matched mean@8: {by_seed}.

![Reward, coverage, accuracy against coverage, and the coefficients of one group](docs/assets/demo/curves.png)

Data: [`docs/assets/demo/`](docs/assets/demo).
"""


def main() -> None:
    """Update README and assets from a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=ROOT / "runs" / "demo")
    run = parser.parse_args().run
    text = section(run)
    ASSETS.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(run / name, ASSETS / name)
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split("<!-- demo:begin", 1)
    marker, rest = rest.split("-->", 1)
    after = rest.split("<!-- demo:end -->", 1)[1]
    readme.write_text(f"{before}<!-- demo:begin{marker}-->{text}<!-- demo:end -->{after}")


if __name__ == "__main__":
    main()
