"""Time every kernel against its peers, next to the floor measured on the same machine in the same run.

`python benchmarks/kernels.py` writes `benchmarks/results/kernels-<preset>.json` with a table and a bar chart made
from it; `--report FILE` makes those again.
"""

import argparse
import json
import os
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
Runner = Callable[[Tensor, Tensor, Tensor, Tensor], _peers.Field]


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
    "cpu": Preset({"small": (256, 256, 32768)}, (2, 256, 32768), torch.float32, 15, 20, (4, 8, 16, 32)),
    "cpu-goals": Preset({"small": (1024, 512, 32768)}, (8, 512, 32768), torch.float32, 15, 20, (8, 16, 32, 64, 128)),
    "h200": Preset(
        {
            "Qwen2.5-1.5B": (8192, 1536, 151936),
            "Qwen2.5-7B": (8192, 3584, 151936),
            "Llama-3.1-8B": (8192, 4096, 128256),
        },
        (8, 512, 151936),
        torch.bfloat16,
        20,
        300,
        (128, 256, 512, 1024, 2048),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="h200" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of a CPU; all cores unless told")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON, the table and the chart")
    parser.add_argument("--report", type=Path, help="only make table and chart again, from this JSON")
    arguments = parser.parse_args()
    if arguments.report:
        print(_report.written(arguments.report))
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"kernels-{arguments.preset}.json"
    for result in measured(PRESETS[arguments.preset], device):
        path.write_text(json.dumps({"preset": arguments.preset, **result}, indent=1) + "\n")
    print(_report.written(path))


def measured(preset: Preset, device: str) -> Iterator[dict[str, object]]:
    """Yield what has been measured so far, as plain JSON values, after every shape: a run may be cut off."""
    result = _measure.surroundings(device)
    cases: list[dict[str, object]] = []
    for name, shape in preset.heads.items():
        ceilings = _measure.ceilings(device, preset.dtype, shape)
        inputs = random_head(shape, preset.dtype, device)
        pruned = (*inputs[:3], inputs[3] * (torch.rand(shape[0], device=device).argsort() < shape[0] // 4))
        for case, values, runner, passes in (
            ("LM head, train", inputs, _peers.head_train, 6.0),
            ("LM head, train, 75 % zero rows", pruned, _peers.head_pruned, 1.5),
            ("LM head, score", inputs, _peers.head_score, 2.0),
        ):
            floor = passes * shape[0] * shape[1] * shape[2] / ceilings["flop_per_second"]
            cases.append(run(case, name, shape, values, runner, floor, preset, device))
        cases += logits_cases(name, shape, inputs, ceilings, preset, device)
        cases.append(sweep(name, shape, inputs, preset, device))
        result[f"ceilings {name}"] = ceilings
        yield {**result, "load_average_after": os.getloadavg(), "cases": cases}
    cases += extra_cases(preset, device)
    yield {**result, "load_average_after": os.getloadavg(), "cases": cases}


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


def run(
    case: str,
    model: str,
    shape: tuple[int, ...],
    values: tuple[Tensor, ...],
    runner: Callable[..., _peers.Field],
    floor_seconds: float,
    preset: Preset,
    device: str,
    *,
    part: int = 1,
) -> dict[str, object]:
    """Time one case's field over 1/part of the rounds; ratios are to the first, ours."""
    field = runner(*values)
    often = ("maxent_grpo one pass", "maxent_grpo one pass in place", "eager", "TRL ChunkedLogProbFunction")
    timings = _measure.interleaved(
        field.steps, -(-preset.rounds // part), device, often if case == "LM head, train" else None
    )
    print(
        f"{model}: {case}: " + ", ".join(f"{name} {timing.median_ms:.4g} ms" for name, timing in timings.items()),
        flush=True,
    )
    return {
        "case": case,
        "model": model,
        "shape": shape,
        "dtype": str(preset.dtype).removeprefix("torch."),
        "floor_ms": float(f"{1e3 * floor_seconds:.4g}"),
        "timings": _measure.as_json(timings),
        "absent": field.absent,
    }


def logits_cases(
    name: str,
    shape: tuple[int, int, int],
    inputs: tuple[Tensor, ...],
    ceilings: dict[str, float],
    preset: Preset,
    device: str,
) -> list[dict[str, object]]:
    """Scoring and training from given logits; floors of one pass and of a read, a write."""
    hidden, weight, ids, weights = inputs
    logits = (hidden @ weight.t()).detach().requires_grad_()
    one_pass = logits.numel() * logits.element_size() / ceilings["bytes_per_second"]
    cases = []
    for case, runner, passes in (
        ("logits, score", _peers.logits_score, 1),
        ("logits, train", _peers.logits_train, 2),
    ):
        cases.append(run(case, name, shape, (logits, ids, weights), runner, passes * one_pass, preset, device))
    return cases


def sweep(
    name: str, shape: tuple[int, int, int], inputs: tuple[Tensor, ...], preset: Preset, device: str
) -> dict[str, object]:
    """Time the one-pass step over budgets of a chunk."""

    def runner(hidden: Tensor, weight: Tensor, ids: Tensor, weights: Tensor) -> _peers.Field:
        field = _peers.Field()
        for mib in preset.chunk_mib:

            def step(budget: int = mib << 20) -> object:
                loss = linear_weighted_nll(hidden, weight, ids, weights, chunk_bytes=budget).loss
                return torch.autograd.grad(loss, (hidden, weight))

            field.enter(f"{mib} MiB", lambda step=step: step)
        return field

    return run("LM head, train, chunk budget", name, shape, inputs, runner, 0.0, preset, device, part=4)


def extra_cases(preset: Preset, device: str) -> list[dict[str, object]]:
    """Whole sequences, and the head on hidden states of a model trained here."""
    batch, length, vocabulary = preset.sequences
    torch.manual_seed(0)
    logits = torch.randn(preset.sequences, device=device).to(preset.dtype).requires_grad_()
    ids = torch.randint(0, vocabulary, (batch, length), device=device)
    sequences = (logits, ids, torch.ones(batch, device=device))
    cases = [
        run("sequences, score", "random", preset.sequences, sequences, _peers.sequence_score, 0.0, preset, device),
        run("sequences, train", "random", preset.sequences, sequences, _peers.sequence_train, 0.0, preset, device),
    ]
    del logits, sequences
    shape = next(iter(preset.heads.values()))
    hidden, weight, words, loss = trained_hidden(*shape, preset.training_steps, device)
    values = (
        hidden.to(preset.dtype).requires_grad_(),
        weight.to(preset.dtype).requires_grad_(),
        words,
        torch.randn(shape[0], device=device),
    )
    model = f"trained here to {loss:.2f} nats a word"
    return [*cases, run("LM head, train", model, shape, values, _peers.head_pruned, 0.0, preset, device, part=3)]


if __name__ == "__main__":
    main()
