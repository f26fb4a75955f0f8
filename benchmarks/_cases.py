"""The cases of the kernels' benchmark: shapes, inputs, the steps to time, and the work of which the floor is made."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import _runners
import torch
from _peers import EAGER, TRL
from _runners import Runners
from _text_model import train_hidden_states
from torch import Tensor

from maxent_grpo.kernels import linear_weighted_nll

Inputs = tuple[Tensor, ...]
HeadShape = tuple[int, int, int]
"""(rows N, width D, vocabulary V)."""


@dataclass(frozen=True)
class Preset:
    """Shapes of LM heads by name, the shape [B, T, V] of the sequence case, and the effort."""

    heads: dict[str, HeadShape]
    sequences: tuple[int, int, int]
    dtype: torch.dtype
    rounds: int
    training_steps: int
    chunk_mib: tuple[int, ...]


PRESETS = {
    "tiny": Preset({"tiny": (64, 32, 512)}, (2, 8, 512), torch.float32, 3, 2, (1,)),
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
        (256, 512, 1024, 2048, 4096),
    ),
}
HEAD_OFTEN = ("maxent_grpo", "maxent_grpo one pass", "maxent_grpo linear_sequence_logps", EAGER, TRL)
"""What goals compare takes part in every round; the other peers of an LM head take part in every fourth."""


@dataclass(frozen=True)
class Case:
    """What is timed side by side, on inputs drawn when its turn comes.

    `head` is the LM head whose matmuls are the floor, `matmuls` says how much of each of the three the case needs
    (logits, dH, dW) and `bytes` what it reads and writes besides; `part` divides the preset's rounds, and `bases` are
    the steps that ratios are taken to, beside the first. `weighted` cases have gradients to compare with exact ones.
    """

    name: str
    head: str
    shape: tuple[int, ...]
    build: Callable[..., Runners]
    draw: Callable[[], Inputs]
    matmuls: tuple[float, float, float] = (0.0, 0.0, 0.0)
    bytes: float = 0.0
    often: tuple[str, ...] | None = HEAD_OFTEN
    bases: tuple[str, ...] = ()
    part: int = 1
    weighted: bool = False


TRAIN, SCORE, QUARTER = (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.25, 0.25, 0.25)


def list_cases(preset: Preset, device: str) -> list[Case]:
    """List all cases, those that have goals on a GPU first."""
    with_goals: list[Case] = []
    others = list_sequence_cases(preset, device)
    logit_shapes: set[tuple[int, int]] = set()
    for name, shape in preset.heads.items():
        with_goals += list_head_cases(name, shape, preset, device)
        if (shape[0], shape[2]) not in logit_shapes:  # given logits know nothing of the width
            with_goals += list_logits_cases(name, shape, preset, device)
            logit_shapes.add((shape[0], shape[2]))
        others.append(build_chunk_case(name, shape, preset, device))
    return with_goals + others + (list_launch_cases(preset) if device == "cuda" else [])


def list_head_cases(name: str, shape: HeadShape, preset: Preset, device: str) -> list[Case]:
    """List training with all rows and with a quarter of them, and scoring, through one LM head."""
    rows = shape[0]

    def draw() -> Inputs:
        return draw_trained_head(shape, preset, device)

    def draw_sparse() -> Inputs:
        hidden, weight, ids, weights = draw_trained_head(shape, preset, device)
        return hidden, weight, ids, weights * (torch.rand(rows, device=device).argsort() < rows // 4)

    train, train_sparse = _runners.build_head_training, _runners.build_sparse_head_training
    return [
        Case("LM head, train", name, shape, train, draw, TRAIN, weighted=True),
        Case("LM head, train, 75 % zero rows", name, shape, train_sparse, draw_sparse, QUARTER, weighted=True),
        Case("LM head, score", name, shape, _runners.build_head_scoring, draw, SCORE),
    ]


def list_logits_cases(name: str, shape: HeadShape, preset: Preset, device: str) -> list[Case]:
    """List training and scoring from given logits; the floors are a read and a write, and one read."""
    one_pass = float(shape[0] * shape[2] * preset.dtype.itemsize)

    def draw() -> Inputs:
        return draw_logits(shape, preset, device)

    train, score = _runners.build_logits_training, _runners.build_logits_scoring
    bases = ("maxent_grpo one pass in place",)
    return [
        Case("logits, train", name, shape, train, draw, bytes=2 * one_pass, often=None, bases=bases),
        Case("logits, score", name, shape, score, draw, bytes=one_pass, often=None),
    ]


def list_sequence_cases(preset: Preset, device: str) -> list[Case]:
    """List scoring and training of whole sequences, from given logits and through the LM head."""
    name, (rows, width, vocabulary) = next(iter(preset.heads.items()))
    one_pass = float(torch.Size(preset.sequences).numel() * preset.dtype.itemsize)
    head_sequences = (8, rows // 8)

    def draw() -> Inputs:
        torch.manual_seed(0)
        logits = torch.randn(preset.sequences, device=device).to(preset.dtype).requires_grad_()
        return logits, torch.randint(0, vocabulary, preset.sequences[:2], device=device)

    def draw_through_head() -> Inputs:
        hidden, weight, ids, _ = draw_trained_head((rows, width, vocabulary), preset, device)
        return hidden.detach().view(*head_sequences, width).requires_grad_(), weight, ids.view(head_sequences)

    shape, head_shape = preset.sequences, (*head_sequences, width, vocabulary)
    score, train = _runners.build_sequence_scoring, _runners.build_sequence_training
    score_head, train_head = _runners.build_head_sequence_scoring, _runners.build_head_sequence_training
    return [
        Case("sequences, score", name, shape, score, draw, bytes=one_pass, often=None),
        Case("sequences, train", name, shape, train, draw, bytes=3 * one_pass, often=None),
        Case("LM head, sequences, score", name, head_shape, score_head, draw_through_head, SCORE, part=3),
        Case("LM head, sequences, train", name, head_shape, train_head, draw_through_head, TRAIN, part=3),
    ]


def build_chunk_case(name: str, shape: HeadShape, preset: Preset, device: str) -> Case:
    """Return the one-pass step over budgets of a chunk."""

    def build(hidden: Tensor, weight: Tensor, ids: Tensor, weights: Tensor) -> Runners:
        runners = Runners()
        for mib in preset.chunk_mib:

            def step(budget: int = mib << 20) -> object:
                loss = linear_weighted_nll(
                    hidden, weight, ids, weights, row_count=len(ids), chunk_bytes=budget
                ).loss  # no coefficient of the draw is 0
                return torch.autograd.grad(loss, (hidden, weight))

            runners.add(f"{mib} MiB", lambda step=step: step)
        return runners

    def draw() -> Inputs:
        return draw_trained_head(shape, preset, device)

    return Case("LM head, train, chunk budget", name, shape, build, draw, TRAIN, often=None, part=4)


def list_launch_cases(preset: Preset) -> list[Case]:
    """List scoring and the pass in place over launches of the kernels, and scoring of rows that are not aligned."""
    name, (rows, width, vocabulary) = next(iter(preset.heads.items()))
    one_pass = float(rows * vocabulary * preset.dtype.itemsize)

    def build_case(title: str, columns: int, build: Callable[..., Runners], passes: int) -> Case:
        def draw() -> Inputs:
            return draw_logits((rows, width, vocabulary), preset, "cuda", columns=columns)

        shape = rows, width, columns
        return Case(f"logits, {title}", name, shape, build, draw, bytes=passes * one_pass, often=None)

    return [
        build_case("score, launches", vocabulary, _runners.build_scoring_launches, 1),
        build_case("in place, launches", vocabulary, _runners.build_inplace_launches, 2),
        build_case("score, unaligned rows", vocabulary - 1, _runners.build_logits_scoring, 1),
    ]


def draw_logits(shape: HeadShape, preset: Preset, device: str, *, columns: int | None = None) -> Inputs:
    """Draw logits as a trained head gives them, the first `columns` of each row, labels and coefficients."""
    hidden, weight, ids, weights = draw_trained_head(shape, preset, device)
    columns = shape[2] if columns is None else columns
    with torch.no_grad():
        logits = (hidden @ weight.t())[:, :columns].contiguous()
    return logits.requires_grad_(), ids.clamp(max=columns - 1), weights


def draw_trained_head(shape: HeadShape, preset: Preset, device: str) -> Inputs:
    """Train a model with such a head; return its hidden states, the head, labels and coefficients, none of them 0.

    Probabilities of a real model are peaked: a random head, with p near 1/V throughout, flatters whoever leaves small
    ones out, and draws another power.
    """
    return _draw_trained_head(shape, preset.dtype, preset.training_steps, device)


@functools.lru_cache(maxsize=1)  # training the model takes longer than the cases that share it
def _draw_trained_head(shape: HeadShape, dtype: torch.dtype, steps: int, device: str) -> Inputs:
    rows, width, vocabulary = shape
    hidden, weight, ids = train_hidden_states(rows, width, vocabulary, steps, device)
    leaves = (value.to(dtype).requires_grad_() for value in (hidden, weight))
    return *leaves, ids, torch.randn(rows, device=device)
