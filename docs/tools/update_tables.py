"""Write the tables of the README and of the pages anew from the committed JSON, and from the adapters' sources.

python docs/tools/update_tables.py                   # all tables, as their data are committed
python docs/tools/update_tables.py --demo runs/demo  # first copy a finished demo run into docs/assets/demo
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maxent_grpo.methods import METHODS, write_settings
from maxent_grpo.pipeline.markdown import format_table, replace_section

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# Folders of the repository, not installed packages.
import refused_tables  # noqa: E402
import study_tables  # noqa: E402
from study_tables import NOT_YET  # noqa: E402

from benchmarks._report import compare_with_fastest  # noqa: E402

DEMO = ROOT / "docs" / "assets" / "demo"
KERNELS = ROOT / "benchmarks" / "results"
EVALUATION = KERNELS / "demo-evaluation"
DEMO_FILES = ("config.json", "results.json", "results.md", "curves.png")
PRUNED, TRL_LOGITS = "LM head, train, 75 % zero rows", "TRL selective_log_softmax"


def write_demo_section() -> str:
    """Return the text on the demo: setting, table and picture."""
    settings = json.loads((DEMO / "config.json").read_text())
    seeds = range(settings["seed"], settings["seed"] + settings["seeds"])
    matched = json.loads((DEMO / "results.json").read_text())["matched"]
    by_seed = ", ".join(
        f"seed {seed}: {values['coverage@8']['dr_grpo']:.3f} and {values['coverage@8']['maxent_diverse']:.3f}"
        f" at {values['mean@8']:.3f}"
        for seed, values in matched.items()
    )
    setting = ", ".join(
        f"{settings[name]} {label}"
        for name, label in (("steps", "updates"), ("prompts", "prompts each"), ("samples", "samples per prompt"))
    )
    held_out = f"{len(seeds)} seed(s) on {settings['eval_prompts']} held-out problems"
    return f"""
Countdown with three numbers and 2 to 8 right answers per problem; {setting}, all methods from
one warm start per seed; means over {held_out}. *Greedy* is the accuracy of
the likeliest answer; the others are at sampling temperature 1, and explained
[beside the evaluation](recipes.md#evaluate).
The last column compares at equal accuracy: each method at the sampling temperature (0.4 to 1.2) where it has the
highest mean@8 that all of them reach.

{(DEMO / "results.md").read_text()}
Coverage@8 of Dr.GRPO and of the diverse setting at the matched mean@8: {by_seed}.

![Reward, coverage, accuracy against coverage, ESS, and targets of three groups](assets/demo/curves.png)

Data: [`docs/assets/demo/`](assets/demo).
"""


def write_kernels_section() -> str:
    """Return the table of the kernels: ratios of the CPU's and of a GPU's run, one column each."""
    columns = {"CPU, float32": _read_kernels("cpu-goals"), "H200, bfloat16": _read_kernels("h200")}
    one_pass, trl = "maxent_grpo one pass", "TRL ChunkedLogProbFunction"
    rows: list[tuple[str, Callable[[Any], str]]] = [
        ("LM head, training step: time of TRL's fused head", _compare_times("LM head, train", trl)),
        ("the same: time of eager torch", _compare_times("LM head, train", "eager")),
        ("the same: time of the fastest peer", _compare_with_fastest("LM head, train")),
        ("the same: peak memory, ours and eager's", _compare_memory("LM head, train", one_pass, "eager")),
        ("with 75 % of the rows pruned: time of TRL's fused head", _compare_times(PRUNED, trl)),
        (
            "the same: time of eager torch that leaves those rows out",
            _compare_times(PRUNED, "eager, zero rows left out"),
        ),
        ("loss and gradient of given logits: time of TRL's kernel", _compare_times("logits, train", TRL_LOGITS)),
        ("the same: time of eager torch", _compare_times("logits, train", "eager")),
        ("log-probabilities of given logits: time of TRL's kernel", _compare_times("logits, score", TRL_LOGITS)),
        ("sequence log-probabilities: time of eager torch", _compare_times("sequences, score", "eager")),
    ]
    cells = [[label, *(_fill_cell(cell, run) for run in columns.values())] for label, cell in rows]
    shapes = [_fill_cell(_format_shape, run) for run in columns.values()]
    pages = (
        f"[{column}](../benchmarks/results/kernels-{preset}.md)"
        for (column, run), preset in zip(columns.items(), ("cpu-goals", "h200"), strict=True)
        if run is not None
    )
    return f"""
Times are multiples of ours, medians of paired runs on the hidden states of a model trained in the run. The LM head
(rows × width × vocabulary): {shapes[0]} on the CPU; on the H200 {shapes[1]}. All peers with their errors, shapes and
goals, met and missed: {", ".join(pages)}. What limits them is in [`benchmarks/NOTES.md`](../benchmarks/NOTES.md). One
command measures the H200's column: `benchmarks/run_gpu.sh`.

{format_table(["", *columns], cells)}
"""


def _read_kernels(preset: str) -> dict[str, Any] | None:
    file = KERNELS / f"kernels-{preset}.json"
    return json.loads(file.read_text()) if file.exists() else None


def _fill_cell(cell: Callable[[Any], str], run: dict[str, Any] | None) -> str:
    """Return the cell, unless there was no run, it was cut off before this case, or the peer was absent."""
    try:
        return NOT_YET if run is None else cell(run)
    except KeyError:
        return NOT_YET


def _find_timings(run: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the timings of the first case of this name: the smallest LM head's."""
    cases = {case["case"]: case["timings"] for case in reversed(run["cases"])}
    found: dict[str, Any] = cases[name]
    return found


def _compare_times(case: str, peer: str) -> Callable[[dict[str, Any]], str]:
    return lambda run: f"{_find_timings(run, case)[peer]['ratio']:.2f}×"


def _compare_with_fastest(case: str) -> Callable[[dict[str, Any]], str]:
    def cell(run: dict[str, Any]) -> str:
        ratio, name = compare_with_fastest({"timings": _find_timings(run, case)})
        return f"{ratio:.2f}× ({name})"

    return cell


def _format_shape(run: dict[str, Any]) -> str:
    return " × ".join(map(str, next(case for case in run["cases"] if case["case"] == "LM head, train")["shape"]))


def _compare_memory(case: str, ours: str, peer: str) -> Callable[[dict[str, Any]], str]:
    def cell(run: dict[str, Any]) -> str:
        timings = _find_timings(run, case)
        return f"{timings[ours]['peak_mib']:.0f} and {timings[peer]['peak_mib']:.0f} MiB"

    return cell


def write_train_section() -> str:
    """Return the table of the runs of the tiny recipes."""
    result = json.loads((KERNELS / "train_cpu.json").read_text())
    head = ["run", "wall seconds", "reward, first 10 updates", "last 10 updates"]
    rewards = ("reward, first 10 updates", "reward, last 10 updates")
    rows = [
        [run["run"], f"{run['wall seconds']:.0f}", *(f"{run[name]:.3f}" for name in rewards)]
        for run in result["runs"]
    ]
    killed = result["killed and resumed"]
    same = "bit by bit the same" if killed["weights at the end equal bit by bit"] else "not the same"
    updates = f"{killed['updates logged alike']} of {killed['updates in all']}"
    return f"""
{result["task"].split(";")[0]}, the tiny recipes on {result["cores"]} cores, one seed
([JSON](../benchmarks/results/train_cpu.json)). A run killed by {killed["killed with"]} and resumed logged {updates}
updates alike and ended with weights that are {same}.

{format_table(head, rows)}
"""


def write_step_section() -> str:
    """Return the table of whole training steps beside TRL's own."""
    result = json.loads((KERNELS / "trainer_step.json").read_text())
    rows = []
    for name, ratio in result["ratio to GRPOTrainer"].items():
        low, high = ratio["95 % interval"]
        rows.append([name, f"{ratio['median']:.3f} [{low:.3f}, {high:.3f}]"])
    shape, seconds = result["shape"], result["GRPOTrainer, dr_grpo: seconds a step, median"]
    return f"""
An optimizer step of the trainer for TRL, as a multiple of the same step of TRL's `GRPOTrainer` with
`loss_type="dr_grpo"` ({seconds:.2f} seconds). Medians with 95 % intervals. A CPU, {shape["parameters"]:,} parameters,
a vocabulary of {shape["vocabulary"]:,}, sampling not counted ([JSON](../benchmarks/results/trainer_step.json)).

{format_table(["settings", "time of a step"], rows)}
"""


def write_positives_section() -> str:
    """Return what training does to pass@k."""
    return study_tables.write_positives_section(json.loads((EVALUATION / "evaluation.json").read_text()))


def write_methods_section() -> str:
    """Return the table of known methods as settings."""
    rows = [
        [name, _link_papers(method.reference), f"`{write_settings(method)}`", method.missing]
        for name, method in METHODS.items()
    ]
    head = ["method", "reference", "settings of `MaxEntConfig`", "not reproduced"]
    return format_table(head, rows, text_columns=range(len(head)))


def _link_papers(reference: str) -> str:
    """Return a reference with its arXiv numbers as links.

    >>> _link_papers("AWR: arXiv 1910.00177")
    'AWR: arXiv [1910.00177](https://arxiv.org/abs/1910.00177)'
    """
    return re.sub(r"\b\d{4}\.\d{5}\b", r"[\g<0>](https://arxiv.org/abs/\g<0>)", reference)


SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"study": study_tables.write_study_section},
    "docs/choosing.md": {"choosing": study_tables.write_choosing_section},
    "docs/known_methods.md": {"methods": write_methods_section},
    "docs/same_answer.md": {"keys": study_tables.write_keys_section},
    "docs/faq.md": {"positives": write_positives_section, "temperature": study_tables.write_temperature_section},
    "docs/kernels.md": {"step": write_step_section, "kernels": write_kernels_section},
    "docs/measured.md": {"demo": write_demo_section, "train": write_train_section},
    "docs/adapters/trl.md": {"trl": refused_tables.write_trl_section},
    "docs/adapters/openrlhf.md": {"openrlhf": refused_tables.write_openrlhf_section},
    "docs/adapters/verl.md": {"verl": refused_tables.write_verl_section},
}
"""The pages with tables, and what stands between their marks `<!-- NAME:begin … -->` and `<!-- NAME:end -->`."""


def update_page(name: str) -> str:
    """Return a page with its sections anew.

    Raises:
        ValueError: if a section's marks are missing.
    """
    text = (ROOT / name).read_text()
    for section, write in SECTIONS[name].items():
        text = replace_section(text, section, write().strip())
    return text


def main() -> None:
    """Update the pages, and with --demo the committed results of the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="a finished demo run to commit the results of")
    run = parser.parse_args().demo
    if run is not None:
        DEMO.mkdir(parents=True, exist_ok=True)
        for name in DEMO_FILES:
            shutil.copy(run / name, DEMO / name)
    for name in SECTIONS:
        (ROOT / name).write_text(update_page(name))


if __name__ == "__main__":
    main()
