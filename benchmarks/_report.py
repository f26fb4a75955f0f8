"""The table, the goals and the bar chart of a benchmark's JSON."""

import json
import math
from pathlib import Path

ONE_PASS, TRL = "maxent_grpo one pass", "TRL ChunkedLogProbFunction"


def written(path: Path) -> str:
    """Write `<name>.md` and `<name>.png` beside the JSON; return the table."""
    result = json.loads(path.read_text())
    text = table(result)
    path.with_suffix(".md").write_text(text)
    try:
        chart(result, path.with_suffix(".png"))
    except ImportError:
        text += "\nNo chart: matplotlib is not installed (pip install matplotlib).\n"
    return text


def table(result: dict) -> str:
    """Markdown: one table a case, then the goals."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"# Kernels on {result['hardware']}",
        "",
        f"{result['time']}, {result['threads']} threads, load average {result['load_average'][0]:.1f} before and "
        f"{result['load_average_after'][0]:.1f} after; {versions}. Medians of interleaved rounds; × is the median of "
        "the paired ratios to the first row, memory is the peak of what the step allocates, its gradients included.",
    ]
    for case in result["cases"]:
        shape = " × ".join(map(str, case["shape"]))
        lines += ["", f"## {case['case']}: {case['model']}, {shape}, {case['dtype']}", ""]
        lines += ["| | ms | × | MiB | of the floor |", "|---|---:|---:|---:|---:|"]
        for name, timing in case["timings"].items():
            share = f"{case['floor_ms'] / timing['median_ms']:.2f}" if case["floor_ms"] else ""
            lines.append(
                f"| {name} | {timing['median_ms']:.4g} | {timing['ratio']:.2f} | {timing['peak_mib']:.0f} | {share} |"
            )
        lines += [f"| {name} | absent: {reason} | | | |" for name, reason in case["absent"].items()]
    if result["preset"] in ("cpu-goals", "h200"):
        lines += ["", "## Goals", "", "| goal | measured | |", "|---|---:|---|"]
        lines += [f"| {name} | {value:.2f} | {'met' if met else 'missed'} |" for name, value, met in goals(result)]
    return "\n".join(lines) + "\n"


def goals(result: dict) -> list[tuple[str, float, bool]]:
    """(goal, figure, whether it is met) for the goals this preset can speak to."""
    found = []

    def at_least(name: str, value: float, bound: float) -> None:
        found.append((f"{name} ≥ {bound:g}", value, value >= bound))

    def spared(name: str, eager: float, ours: float, bound: float) -> None:
        # Compared without a division: a step that takes nothing beside its gradient meets every bound.
        factor = eager / ours if ours > 0 else math.inf
        found.append((f"{name} ≥ {bound:g}", factor, eager >= bound * ours))

    for case in result["cases"]:
        timings, where = case["timings"], f"{case['case']} ({case['model']})"
        if case["case"] == "LM head, train" and "eager" in timings:
            gradient = case["shape"][1] * case["shape"][2] * (4 if case["dtype"] == "float32" else 2) / 2**20
            eager, ours = (timings[name]["peak_mib"] - gradient for name in ("eager", ONE_PASS))
            if result["preset"] == "h200":
                at_least(f"{where}: speed over TRL", timings.get(TRL, {}).get("ratio", 0.0), 1.3)
                at_least(f"{where}: share of the 6F floor", case["floor_ms"] / timings[ONE_PASS]["median_ms"], 0.85)
            else:
                at_least(f"{where}: speed over TRL", timings.get(TRL, {}).get("ratio", 0.0), 2.0)
                at_least(f"{where}: speed over eager", timings["eager"]["ratio"], 1.0)
                spared(f"{where}: eager's peak memory over ours, dW not counted", eager, ours, 4.0)
        elif "75 %" in case["case"]:
            at_least(f"{where}: speed over TRL", timings.get(TRL, {}).get("ratio", 0.0), 6.0)
        elif case["case"].startswith("sequences"):
            at_least(f"{where}: speed over eager", timings["eager"]["ratio"], 1.0)
            ours = timings["maxent_grpo sequence_logps"]["peak_mib"]
            element = 4 if case["dtype"] == "float32" else 2
            gradient = 0.0
            if case["case"].endswith("train"):
                gradient = case["shape"][0] * case["shape"][1] * case["shape"][2] * element / 2**20
            eager, ours = timings["eager"]["peak_mib"] - gradient, ours - gradient
            spared(f"{where}: eager's peak memory over ours, the gradient not counted", eager, ours, 8.0)
        elif case["case"] == "logits, train" and result["preset"] == "h200":
            in_place = timings["maxent_grpo one pass in place"]["median_ms"]
            trl = timings.get("TRL selective_log_softmax", {}).get("median_ms", 0.0)
            at_least(f"{where}: in place, speed over TRL", trl / in_place, 1.4)
    return found


def chart(result: dict, path: Path) -> None:
    """Bars of the medians, one panel a case, ours dark."""
    import matplotlib  # noqa: PLC0415 - the table does without

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    cases = [case for case in result["cases"] if len(case["timings"]) > 1]
    columns = 2
    figure, axes = pyplot.subplots(-(-len(cases) // columns), columns, figsize=(13, 1.9 * len(cases)), squeeze=False)
    for axis in axes.flat[len(cases) :]:
        axis.axis("off")
    for axis, case in zip(axes.flat, cases, strict=False):
        names = list(case["timings"])[::-1]
        medians = [case["timings"][name]["median_ms"] for name in names]
        dark = [name.startswith("maxent_grpo") or name.endswith("MiB") for name in names]
        axis.barh(names, medians, color=["#28527a" if ours else "#b8c4d0" for ours in dark])
        if case["floor_ms"]:
            axis.axvline(case["floor_ms"], color="#c0392b", linewidth=1, label="floor")
            axis.legend(loc="lower right", frameon=False, fontsize=8)
        axis.bar_label(axis.containers[0], fmt="%.4g", padding=3, fontsize=8)
        axis.margins(x=0.15)
        axis.set_title(f"{case['case']}\n{case['model']}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_xlabel("ms", fontsize=8)
    figure.suptitle(f"{result['hardware']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
