"""Time every kernel against its peers, next to the floor measured on the same machine in the same run.

`python benchmarks/kernels.py` writes `benchmarks/results/kernels-<preset>.json` with a table and a bar chart made
from it; `--report FILE` makes those again.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import _measure
import _peers
import _report
import torch
from _text_model import trained_hidden
from torch import Tensor

from maxent_grpo.kernels import linear_weighted_nll

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Preset:
    """Shapes (rows, width, vocabulary) of LM heads by name, the shape of the sequence case, and the effort."""

    heads: dict[str, tuple[int, int, int]]
    sequences: tuple[int, int, int]
    dtype: torch.dtype
    rounds: int
    training_steps: int
    chunk_mib: tuple[int, ...]


PRESETS = {
    "tiny": Preset({"tiny": (64, 32, 512)}, (2, 8, 512), torch.float32, 3, 2, (1,)),
    "cpu": Preset({"small": (256, 256, 32768)}, (2, 256, 32768), torch.float32, 15, 100, (4, 8, 16, 32)),
    "cpu-goals": Preset({"small": (1024, 512, 32768)}, (8, 512, 32768), torch.float32, 15, 240, (8, 16, 32, 64, 128)),
    "h200": Preset(
        {
            "Qwen2.5-1.5B": (8192, 1536, 151936),
            "Qwen2.5-7B": (8192, 3584, 151936),
            "Llama-3.1-8B": (8192, 4096, 128256),
        },
        (8, 512, 151936),
        torch.bfloat16,
        20,
        500,
        (128, 256, 512, 1024, 2048),
    ),
}
HEAD_OFTEN = (
    "maxent_grpo",
    "maxent_grpo one pass",
    "maxent_grpo linear_sequence_logps",
    _peers.EAGER,
    _peers.TRL,
)
"""What goals compare takes part in every round; the other peers of an LM head in every fourth."""


@dataclass(frozen=True)
class Case:
    """One field of runners on inputs drawn when its turn comes, and what a machine at its ceilings would need.

    `head` is the LM head whose matmul is the ceiling, `part` divides the preset's rounds.
    """

    name: str
    head: str
    shape: tuple[int, ...]
    runner: Callable[..., _peers.Field]
    inputs: Callable[[], tuple[Tensor, ...]]
    flop: float = 0.0
    bytes: float = 0.0
    often: tuple[str, ...] | None = HEAD_OFTEN
    bases: tuple[str, ...] = ()
    part: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="h200" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of a CPU; all cores unless told")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON, the table and the chart")
    parser.add_argument("--report", type=Path, help="only make table and chart again, from this JSON")
    parser.add_argument("--brief", action="store_true", help="print medians and goals instead of the whole table")
    arguments = parser.parse_args()
    path = arguments.report
    if path is None:
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / f"kernels-{arguments.preset}.json"
        unfinished = path.with_suffix(".part")
        for result in measured(PRESETS[arguments.preset], "cuda" if torch.cuda.is_available() else "cpu"):
            unfinished.write_text(json.dumps({"preset": arguments.preset, **result}, indent=1) + "\n")
            unfinished.replace(path)  # whoever cuts this off finds the last case's JSON whole
    text = _report.written(path)
    print(_report.brief(json.loads(path.read_text())) if arguments.brief else text)


def measured(preset: Preset, device: str) -> Iterator[dict[str, object]]:
    """Yield the result after every case, so that a run that is cut off keeps what it has measured."""
    plan = planned(preset, device)
    result: dict[str, object] = {
        **_measure.surroundings(device),
        "planned": [{"case": case.name, "model": case.head, "shape": case.shape} for case in plan],
        "cases": [],
    }
    ceilings: dict[str, dict[str, float]] = {}
    for case in plan:
        if case.head not in ceilings:
            ceilings[case.head] = _measure.ceilings(device, preset.dtype, preset.heads[case.head])
            result[f"ceilings {case.head}"] = ceilings[case.head]
        done = run(case, ceilings[case.head], preset, device)
        result = {**result, "cases": [*result["cases"], done], "load_average_after": os.getloadavg()}
        yield result


def planned(preset: Preset, device: str) -> list[Case]:
    """Return all cases, those that have goals on a GPU first."""
    goals: list[Case] = []
    rest = other_cases(preset, device)
    seen: set[tuple[int, int]] = set()
    for name, shape in preset.heads.items():
        goals += head_cases(name, shape, preset.dtype, device)
        if (shape[0], shape[2]) not in seen:  # given logits know nothing of the width
            goals += logits_cases(name, shape, preset.dtype, device)
            seen.add((shape[0], shape[2]))
        rest.append(sweep(name, shape, preset, device))
    return goals + rest + (launch_cases(preset) if device == "cuda" else [])


def head_cases(name: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> list[Case]:
    """Training with all rows and with a quarter of them, and scoring, through one LM head."""
    rows = shape[0]
    f = float(rows * shape[1] * shape[2])

    def head() -> tuple[Tensor, ...]:
        return random_head(shape, dtype, device)

    def pruned() -> tuple[Tensor, ...]:
        *rest, weights = head()
        return *rest, weights * (torch.rand(rows, device=device).argsort() < rows // 4)

    return [
        Case("LM head, train", name, shape, _peers.head_train, head, 6 * f),
        Case("LM head, train, 75 % zero rows", name, shape, _peers.head_pruned, pruned, 1.5 * f),
        Case("LM head, score", name, shape, _peers.head_score, head, 2 * f),
    ]


def logits_cases(name: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> list[Case]:
    """Training and scoring from given logits; floors of a read and a write, and of one read."""
    one_pass = float(shape[0] * shape[2] * dtype.itemsize)

    def logits() -> tuple[Tensor, ...]:
        return random_logits(shape, dtype, device)

    in_place = ("maxent_grpo one pass in place",)
    return [
        Case(
            "logits, train", name, shape, _peers.logits_train, logits, bytes=2 * one_pass, often=None, bases=in_place
        ),
        Case("logits, score", name, shape, _peers.logits_score, logits, bytes=one_pass, often=None),
    ]


def other_cases(preset: Preset, device: str) -> list[Case]:
    """Whole sequences, from given logits and through the LM head, and the head of a model trained here."""
    name, shape = next(iter(preset.heads.items()))
    rows, width, vocabulary = shape
    batch, length = preset.sequences[:2]
    one_pass, f = float(batch * length * vocabulary * preset.dtype.itemsize), float(rows * width * vocabulary)
    by_sequence = (8, rows // 8)

    def logits() -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        values = torch.randn(preset.sequences, device=device).to(preset.dtype).requires_grad_()
        return values, torch.randint(0, vocabulary, (batch, length), device=device)

    def head() -> tuple[Tensor, ...]:
        hidden, weight, ids, _ = random_head(shape, preset.dtype, device)
        return hidden.detach().view(*by_sequence, width).requires_grad_(), weight, ids.view(by_sequence)

    def learned() -> tuple[Tensor, ...]:
        hidden, weight, ids = trained_hidden(*shape, preset.training_steps, device)
        leaves = (value.to(preset.dtype).requires_grad_() for value in (hidden, weight))
        return *leaves, ids, torch.randn(rows, device=device)

    given, through = preset.sequences, (*by_sequence, width, vocabulary)
    score, train = _peers.head_sequence_score, _peers.head_sequence_train
    return [
        Case("sequences, score", name, given, _peers.sequence_score, logits, bytes=one_pass, often=None),
        Case("sequences, train", name, given, _peers.sequence_train, logits, bytes=3 * one_pass, often=None),
        Case("LM head, sequences, score", name, through, score, head, 2 * f, part=3),
        Case("LM head, sequences, train", name, through, train, head, 6 * f, part=3),
        Case("LM head, train, learned hidden states", name, shape, _peers.head_learned, learned, 6 * f, part=3),
    ]


def sweep(name: str, shape: tuple[int, int, int], preset: Preset, device: str) -> Case:
    """Time the one-pass step over budgets of a chunk."""

    def runner(hidden: Tensor, weight: Tensor, ids: Tensor, weights: Tensor) -> _peers.Field:
        field = _peers.Field()
        for mib in preset.chunk_mib:

            def step(budget: int = mib << 20) -> object:
                loss = linear_weighted_nll(hidden, weight, ids, weights, chunk_bytes=budget).loss
                return torch.autograd.grad(loss, (hidden, weight))

            field.enter(f"{mib} MiB", lambda step=step: step)
        return field

    def inputs() -> tuple[Tensor, ...]:
        return random_head(shape, preset.dtype, device)

    return Case("LM head, train, chunk budget", name, shape, runner, inputs, often=None, part=4)


def launch_cases(preset: Preset) -> list[Case]:
    """Scoring and the pass in place over launches of the Triton kernels, and scoring of rows that are not aligned."""
    name, shape = next(iter(preset.heads.items()))
    rows, width, vocabulary = shape
    one_pass = float(rows * vocabulary * preset.dtype.itemsize)

    def case(what: str, columns: int, runner: Callable[..., _peers.Field], passes: int) -> Case:
        drawn = rows, width, columns

        def logits() -> tuple[Tensor, ...]:
            return random_logits(drawn, preset.dtype, "cuda")

        return Case(f"logits, {what}", name, drawn, runner, logits, bytes=passes * one_pass, often=None)

    return [
        case("score, launches", vocabulary, _peers.score_launches, 1),
        case("in place, launches", vocabulary, _peers.inplace_launches, 2),
        case("score, unaligned rows", vocabulary + 1, _peers.logits_score, 1),
    ]


def random_logits(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Logits of such a head without the head, labels and coefficients drawn afresh."""
    hidden, weight, *rest = random_head(shape, dtype, device)
    return (hidden @ weight.t()).detach().requires_grad_(), *rest


def random_head(
    shape: tuple[int, int, int], dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, LM head, labels and coefficients drawn afresh."""
    rows, width, vocabulary = shape
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width, device=device) / width**0.5).to(dtype).requires_grad_()
    ids = torch.randint(0, vocabulary, (rows,), device=device)
    return hidden, weight, ids, torch.randn(rows, device=device)


def run(case: Case, ceilings: dict[str, float], preset: Preset, device: str) -> dict[str, object]:
    """Build and time one case's field; ratios are to the first, ours."""
    start = time.perf_counter()
    field = case.runner(*case.inputs())
    built = time.perf_counter() - start
    timings = _measure.interleaved(field.steps, -(-preset.rounds // case.part), device, case.often, case.bases)
    medians = ", ".join(f"{name} {timing.median_ms:.4g} ms" for name, timing in timings.items())
    taken = time.perf_counter() - start - built
    print(f"{case.head}: {case.name} {field.note}: {medians} ({built:.0f} s to build, {taken:.0f} s)", flush=True)
    floor = case.flop / ceilings["flop_per_second"] + case.bytes / ceilings["bytes_per_second"]
    return {
        "case": case.name,
        "model": case.head,
        "note": field.note,
        "shape": case.shape,
        "dtype": str(preset.dtype).removeprefix("torch."),
        "floor_ms": float(f"{1e3 * floor:.4g}"),
        "timings": _measure.as_json(timings),
        "absent": field.absent,
    }


if __name__ == "__main__":
    main()
