"""What the TRL trainer refuses and says about model, data and rewards before it loads a model."""

import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from trl.trainer import grpo_trainer

from maxent_grpo.adapters.trl import MaxEntGRPOTrainer
from maxent_grpo.adapters.trl.preflight import write_preflight
from support import trl_tiny


def test_prompts_that_overflow_the_context_are_refused_before_training(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"4 tokens .* context of 64 tokens, got max_completion_length=61"):
        trl_tiny.build_trainer(tmp_path, max_completion_length=61)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that fills with the models that TRL loads."""
    loaded: list[str] = []
    load = grpo_trainer.create_model_from_path

    def note(path: str, **kwargs: Any) -> Any:
        loaded.append(path)
        return load(path, **kwargs)

    monkeypatch.setattr(grpo_trainer, "create_model_from_path", note)
    return loaded


def chat(*parts: dict[str, str]) -> Dataset:
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": list(parts)}]] * 4})


IMAGES = {
    "a column": trl_tiny.make_prompts(4).add_column("image", [None] * 4),
    "a streamed column": trl_tiny.make_prompts(4).add_column("images", [None] * 4).to_iterable_dataset(),
    "a part of a message": chat({"type": "text", "text": "a"}, {"type": "image", "text": ""}),
}


@pytest.mark.parametrize("dataset", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("evaluated", [False, True], ids=["training", "evaluation"])
def test_images_are_refused_before_a_model_is_loaded(
    dataset: Any, evaluated: bool, tmp_path: Path, loads: list[str]
) -> None:
    train, evaluation = (trl_tiny.make_prompts(4), {"one": dataset}) if evaluated else (dataset, None)
    with pytest.raises(ValueError, match="images are not supported"):
        MaxEntGRPOTrainer(
            trl_tiny.save_model(tmp_path),
            trl_tiny.reward,
            trl_tiny.build_arguments(tmp_path),
            train,
            eval_dataset=evaluation,
        )
    assert loads == []


LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "two weights for one reward": (
        {"reward_weights": [1.0, 2.0]}, r"a weight for each of 1 reward functions, got reward_weights=\[1\.0, 2\.0\]",
    ),
    "weights that are all zero": (
        {"reward_weights": [0.0]}, r"a weight other than 0 .*got reward_weights=\[0\.0\]",
    ),
    "a router's loss without a router": (
        {"router_aux_loss_coef": 0.1}, r"has no router, got router_aux_loss_coef=0\.1",
    ),
    "evaluation batches of broken groups": (
        {"extra": {"eval_dataset": trl_tiny.make_prompts(2)}, "per_device_eval_batch_size": 6},
        "whole groups of 4 candidates, got per_device_eval_batch_size=6",
    ),
    "an adapter's reference that is to move": (
        {"extra": {"peft_config": LORA}, "sync_ref_model": True, "init_kl_coeff": 0.1},
        "sync_ref_model=False with PEFT .*, got sync_ref_model=True",
    ),
    "too long a prompt, by the model's own tokenizer": (
        {"max_completion_length": 61}, r"4 tokens .* context of 64 tokens, got max_completion_length=61",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_model_data_or_rewards_is_refused_before_a_model_is_loaded(
    settings: dict[str, Any], message: str, tmp_path: Path, loads: list[str]
) -> None:
    extra = settings.get("extra", {})
    args = trl_tiny.build_arguments(tmp_path, **{name: value for name, value in settings.items() if name != "extra"})
    with pytest.raises(ValueError, match=message):
        MaxEntGRPOTrainer(trl_tiny.save_model(tmp_path), trl_tiny.reward, args, trl_tiny.make_prompts(8), **extra)
    assert loads == []


@pytest.mark.parametrize("settings", [{"beta": 0.1}, {"init_kl_coeff": 0.1}])
def test_a_reference_of_a_model_that_was_never_saved_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    args = trl_tiny.build_arguments(tmp_path, **settings)
    with pytest.raises(ValueError, match=r"save_pretrained it first\), .*got name_or_path=''"):
        MaxEntGRPOTrainer(trl_tiny.build_model(), trl_tiny.reward, args, trl_tiny.make_prompts(8))


def test_models_and_their_tokenizer_are_loaded_by_name(tmp_path: Path, loads: list[str]) -> None:
    path = trl_tiny.save_model(tmp_path / "model")
    args = trl_tiny.build_arguments(tmp_path, init_kl_coeff=0.1)
    run = MaxEntGRPOTrainer(path, trl_tiny.reward, args, trl_tiny.make_prompts(8))
    assert loads == [path, path]  # policy and reference
    assert run.processing_class("ab")["input_ids"] == trl_tiny.build_tokenizer()("ab")["input_ids"]
    assert (args.beta, run.beta) == (0.0, 0.1)


@pytest.mark.parametrize("settings", [{}, {"router_aux_loss_coef": 0.1}])
def test_pruning_is_refused_beside_a_routers_loss_and_allowed_without_it(
    settings: dict[str, Any], tmp_path: Path, loads: list[str]
) -> None:
    path, common = str(tmp_path / "moe"), {"maxent_keep_fraction": 0.5, "max_steps": 1}
    trl_tiny.build_mixture_of_experts().save_pretrained(path)
    with pytest.raises(
        ValueError, match=r"router_aux_loss_coef=0 with maxent_keep_fraction .*got router_aux_loss_coef=0\."
    ):
        trl_tiny.build_trainer(tmp_path, policy=path, **common, **settings)
    assert loads == []
    trl_tiny.build_trainer(tmp_path, policy=path, router_aux_loss_coef=0.0, **common).train()


@pytest.mark.parametrize(
    ("dataset", "tokenizer"),
    [(trl_tiny.make_prompts(8), None), (chat({"type": "text", "text": "a"}), trl_tiny.build_tokenizer())],
)
def test_prompts_that_cannot_be_measured_are_said_not_to_be(dataset: Any, tokenizer: Any, tmp_path: Path) -> None:
    report = write_preflight(trl_tiny.build_arguments(tmp_path), trl_tiny.build_model().config, dataset, tokenizer)
    assert "prompt (not measured) + completion 6 <= context 64" in report


@pytest.mark.parametrize("streamed", [False, True])
def test_the_preflight_says_that_a_stream_is_not_resumed_beyond_its_first_epoch(
    streamed: bool, tmp_path: Path
) -> None:
    dataset = trl_tiny.make_prompts(8).to_iterable_dataset() if streamed else trl_tiny.make_prompts(8)
    report = write_preflight(trl_tiny.build_arguments(tmp_path), None, dataset, None)
    assert ("prompts are streamed" in report) == streamed


def test_the_preflight_says_what_the_target_will_be(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="maxent_grpo"):
        trl_tiny.build_trainer(tmp_path, num_generations=8, maxent_tau=0.2)
    (report,) = [record.getMessage() for record in caplog.records if record.name.startswith("maxent_grpo")]
    assert "1 prompts x 8 candidates" in report
    assert "q^5 (tau=0.2, beta=0)" in report
    one_right = 1 / (1 + 7 * 2.718281828**-5)  # softmax of (5, 0, …, 0): the first of eight
    assert f"gets {one_right:.0%}" in report
    assert "prompt 4 + completion 6 <= context 64" in report


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"maxent_projection": "listwise"}, True),
        ({"maxent_projection": "regression"}, True),
        ({"maxent_projection": "listwise", "maxent_skip": "equal"}, False),
        ({"maxent_projection": "listwise", "maxent_anchor": "old", "init_kl_coeff": 1.0}, False),
        ({}, False),
    ],
)
def test_the_preflight_warns_of_levelling_where_nothing_is_to_be_learnt(
    settings: dict[str, Any], warned: bool, tmp_path: Any
) -> None:
    report = write_preflight(trl_tiny.build_arguments(tmp_path, **settings), None, None, None)
    assert ("maxent_skip='equal'" in report) == warned


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "loss: divided by maxent_max_length=6, on the scale of TRL's loss_type='dr_grpo'"),
        ({}, "'dapo' are 6 / (mean completion length) times as large"),
        ({"maxent_projection": "surrogate"}, "loss: divided by maxent_max_length=6"),
        (
            {"maxent_preset": "published"},
            "loss: a sum over tokens. Gradients are max_completion_length=6 times those",
        ),
        ({"maxent_nll_reduction": "mean"}, "on the scale of TRL's loss_type='grpo'"),
    ],
)
def test_the_preflight_says_how_large_gradients_are_beside_those_of_trl(
    settings: dict[str, Any], line: str, tmp_path: Any
) -> None:
    assert line in write_preflight(trl_tiny.build_arguments(tmp_path, **settings), None, None, None)
