"""Tables across studies, from their JSON: model sizes, and the other studies.

python -m benchmarks.diversity.across --page benchmarks/diversity/RESULTS.md
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.diversity.arms import RECIPE
from benchmarks.diversity.report import interval, name_of, replace_section
from benchmarks.diversity.run import WARM
from benchmarks.diversity.tables import number, table

HERE = Path(__file__).parent
SIZES = ("small", "cpu", "large")
SIZED = ("grpo", "dr_grpo", "entropy_high", "raft", "xdr", RECIPE, "full_0_mild", "passes_2")
OTHERS = ("confirm", "single", "noted", "hard", "countdown4", "graph_confirm", "graph_long")
Summary = Mapping[str, Any]


def sizes_table(results: Sequence[Summary]) -> str:
    """Return a row for each model size and method; differences are the recipe's to the method of the row."""
    head = [
        "parameters", "method", "learning rate", "seeds", "mean@8 level", "coverage@8 there", "pass@8 there",
        "best mean@8", "`diverse()` minus it, coverage@8 at level", "the same at the common level",
    ]  # fmt: skip
    rows = []
    for result in sorted(results, key=lambda each: each["parameters"]):
        found = result["comparisons"].get(RECIPE, {})
        for arm in (arm for arm in SIZED if arm in result["arms"]):
            run = result["arms"][arm]
            row, seeds = run["mean"], len(run["seeds"])
            rows.append([
                f"{result['parameters']:,}", name_of(arm), f"{run['learning_rate']:g}", str(seeds),
                f"{result['levels']['level']:.2f}", number(row["coverage@8 at level"]),
                number(row["pass@8 at level"]), number(row["best mean@8"]),
                *(interval(found.get(f"coverage@8 at {at}", {}).get(arm), seeds) for at in ("level", "common")),
            ])  # fmt: skip
    return table(head, rows, text_column=1)


def studies_table(results: Sequence[Summary]) -> str:
    """Return a row for each study and method; differences as in `sizes_table`.

    They are at the study's level, or at the common level where the recipe does not get there with every seed.
    """
    head = [
        "study", "method", "seeds", "mean@8", "coverage@8 there", "were answers even", "pass@8 there",
        "best mean@8", "`diverse()` minus it, coverage@8", "pass@8", "best mean@8",
    ]  # fmt: skip
    rows = []
    for result in results:
        reached = result["arms"][RECIPE]["mean"]["coverage@8 at level"] is not None
        at, found = "level" if reached else "common", result["comparisons"][RECIPE]
        for arm in (arm for arm in result["arms"] if arm != WARM):
            row, seeds = result["arms"][arm]["mean"], len(result["arms"][arm]["seeds"])
            rows.append([
                f"`{result['study']}`", name_of(arm), str(seeds), number(result["levels"][at]),
                *(number(row[f"{name} at {at}"]) for name in ("coverage@8", "even@8", "pass@8")),
                number(row["best mean@8"]),
                *(
                    interval(found.get(name, {}).get(arm), seeds)
                    for name in (f"coverage@8 at {at}", f"pass@8 at {at}", "best mean@8")
                ),
            ])  # fmt: skip
    return table(head, rows, text_column=1)


SECTIONS: dict[str, tuple[Sequence[str], Callable[[Sequence[Summary]], str]]] = {
    "scaling": (SIZES, sizes_table),
    "studies": (OTHERS, studies_table),
}


def main(argv: list[str] | None = None) -> None:
    """Print the tables, and put them into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the JSON (%(default)s)")
    parser.add_argument("--page", type=Path, help="a page whose sections `scaling` and `studies` get the tables")
    options = parser.parse_args(argv)
    for section, (names, written) in SECTIONS.items():
        files = [options.results / f"{name}.json" for name in names]
        text = written([json.loads(file.read_text()) for file in files if file.exists()])
        print(text)
        if options.page is not None:
            options.page.write_text(replace_section(options.page.read_text(), section, text))


if __name__ == "__main__":
    main()
