"""What makes two candidates the same answer: their tokens, or what a function of the user's says of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters.trl import MaxEntGRPOConfig, MaxEntGRPOTrainer
from support import trl_tiny
from support.precision import Bounded, evaluate
from support.trl_formulas import compute_coefficients, compute_utilities, list_groups

pytestmark = pytest.mark.numerical

CONFIG = MaxEntConfig(center=True, dedup=1.0)


def train_with(path: Path, key_func: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """Return each candidate's coefficient, [PROMPTS, K], and what the update logged."""
    run = trl_tiny.build_trainer(
        path, log_completions=True, maxent_center=True, maxent_dedup=1.0, extra={"key_func": key_func}
    )
    run.train()
    table = pd.read_parquet(next((path / "completions").glob("*.parquet")))
    coefficients = torch.as_tensor(table["coefficient"].to_numpy(copy=True)).view(compute_utilities().shape)
    return coefficients, run.state.log_history[0]


def evaluate_coefficients(names: list[list[int]]) -> Bounded:
    def compute() -> list[torch.Tensor]:
        rows = []
        for group, u, named in zip(list_groups(), compute_utilities(), names, strict=True):
            lengths = np.array([len(completion) for _, completion in group])
            rows.append(compute_coefficients(CONFIG, u, 0.0 * u, 0.0 * u, lengths, named))
        return [torch.as_tensor(np.array(rows))]

    (exact,) = evaluate(compute)
    return exact


def number_answers(of: Any) -> list[list[int]]:
    """Return a number for each candidate, equal where `of` says the same of two completions."""
    numbers: dict[Any, int] = {}
    return [[numbers.setdefault(of(ids), len(numbers)) for _, ids in group] for group in list_groups()]


def test_a_key_function_is_called_as_a_reward_is_and_says_what_counts_as_the_same(tmp_path: Path) -> None:
    called: list[dict[str, Any]] = []

    def parity(completion_ids: list[list[int]], **given: Any) -> list[str]:
        called.append(given)
        return ["even" if len(ids) % 2 == 0 else "odd" for ids in completion_ids]

    found, logged = train_with(tmp_path / "keys", parity)
    assert {"prompts", "completions"} <= called[0].keys()
    shared = number_answers(lambda ids: len(ids) % 2)
    evaluate_coefficients(shared).assert_near(found)
    distinct = np.mean([len(set(group)) / len(group) for group in shared])
    assert logged["maxent/frac_distinct"] == pytest.approx(distinct)
    assert distinct < 1
    by_tokens, _ = train_with(tmp_path / "tokens", None)
    of_tokens = evaluate_coefficients(number_answers(tuple))
    of_tokens.assert_near(by_tokens)
    assert of_tokens.distance(found) > 100 * of_tokens.error


def test_where_no_answer_is_told_the_tokens_count(tmp_path: Path) -> None:
    def first_only(completion_ids: list[list[int]], **_: Any) -> list[str | None]:
        return ["even" if len(ids) % 2 == 0 else None for ids in completion_ids]

    found, _ = train_with(tmp_path, first_only)
    evaluate_coefficients(number_answers(lambda ids: "even" if len(ids) % 2 == 0 else tuple(ids))).assert_near(found)


def test_what_is_no_function_is_refused_before_a_model_loads() -> None:
    with pytest.raises(ValueError, match="Expected key_func to be a function or None, got key_func='final_answer'"):
        MaxEntGRPOTrainer(
            "no/model", trl_tiny.reward, MaxEntGRPOConfig("runs", use_cpu=True, bf16=False), key_func="final_answer"
        )


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["one"], "Expected key_func to return 8 answers, got answers=1"),
        ([3] * 8, "texts or None of key_func, got key_func="),
    ],
)
def test_answers_that_are_too_few_or_no_texts_are_refused(tmp_path: Path, answers: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_with(tmp_path, lambda **_: answers)
