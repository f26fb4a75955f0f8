"""Training and evaluation call a reward in one way, with chats and columns as TRL passes them."""

import math
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from maxent_grpo.pipeline.arguments import GRPOScriptArguments
from maxent_grpo.pipeline.data.prompts import load_rows
from maxent_grpo.pipeline.evaluation.generation import Sample
from maxent_grpo.pipeline.evaluation.subjects import build_dataset_subject
from maxent_grpo.pipeline.rewards import Reward, read_completion
from maxent_grpo.pipeline.tasks.answers import WRONG
from support import trl_tiny

CHAT = [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1"}]
TOOLS = [
    {"role": "user", "content": "1+1"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "name": "add", "tool_call_id": "call_0", "content": "2"},
    {"role": "user", "content": "So?"},
]


class Recorder:
    """A reward that keeps what it was called with."""

    def __init__(self, rewards: Any = 0.0) -> None:
        self.rewards, self.calls = rewards, []

    def __call__(self, completions: list[Any], **columns: Any) -> Any:
        self.calls.append({"completions": completions, **columns})
        return self.rewards if isinstance(self.rewards, list) else [self.rewards] * len(completions)


def judge(recorder: Recorder, prompts: list[Any], texts: list[list[str]], **columns: list[Any]) -> Any:
    rows = Dataset.from_dict({"prompt": prompts, **columns})
    samples = [[Sample(text, [ord(text)]) for text in drawn] for drawn in texts]
    return build_dataset_subject("rows", rows, Reward(recorder)).judge(samples)


def test_training_and_evaluation_pass_a_reward_the_same(tmp_path: Path) -> None:
    training, evaluation = Recorder(), Recorder()
    trainer = trl_tiny.build_trainer(tmp_path, rewards=training)
    trainer.train_dataset = trainer.train_dataset.add_column("level", list(range(64)))
    trainer.train()
    judge(evaluation, ["ab"] * 2, [["a"] * 4] * 2, level=[0, 1])
    asked, evaluated = training.calls[0], evaluation.calls[0]
    assert asked.keys() == evaluated.keys()
    for name in ("prompts", "completions", "completion_ids", "level"):
        assert [type(each) for each in asked[name]] == [type(each) for each in evaluated[name]]
    assert evaluated["level"] == [0] * 4 + [1] * 4
    assert evaluated["completion_ids"] == [[ord("a")]] * 8
    for call in (asked, evaluated):
        call["log_metric"]("length", 1.0)
        call["log_extra"]("column", [0.0] * len(call["completions"]))


def test_a_chats_completion_is_a_message_of_the_assistant() -> None:
    recorder = Recorder()
    judge(recorder, [CHAT], [["2", "3"]])
    assert recorder.calls[0]["prompts"] == [CHAT] * 2
    assert recorder.calls[0]["completions"] == [[{"role": "assistant", "content": text}] for text in "23"]


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_verdict_is_none_in_evaluation_too(missing: float | None) -> None:
    assert judge(Recorder([missing, 0.0]), ["p"], [["a", "b"]]) == [[None, WRONG]]


@pytest.mark.parametrize(
    ("rewards", "complaint"),
    [
        ([1.0], "Expected 2 rewards, one per completion, got 1 from Recorder"),
        ([1.0] * 3, "Expected 2 rewards, one per completion, got 3 from Recorder"),
        ([math.inf, 0.0], "finite rewards, or None without a verdict, got Recorder=inf"),
        (["1", "0"], "Expected rewards to be numbers or None, got Recorder='1'"),
    ],
)
def test_what_training_refuses_evaluation_refuses(rewards: list[Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        judge(Recorder(rewards), ["p"], [["a", "b"]])


def test_a_completion_of_parts_is_their_text() -> None:
    parts = [{"type": "text", "text": "<answer>"}, {"type": "text", "text": "2</answer>"}]
    assert read_completion([{"role": "assistant", "content": parts}]) == "<answer>2</answer>"
    assert read_completion([{"role": "assistant", "content": None, "tool_calls": [{}]}]) == ""
    assert read_completion([{"role": "assistant", "tool_calls": [{}]}]) == ""


def load_chats(folder: Path, *chats: Any) -> list[Any]:
    file = folder / "rows.jsonl"
    Dataset.from_list([{"prompt": chat} for chat in chats]).to_json(file)
    return list(load_rows(GRPOScriptArguments(dataset_name=str(file)), [Reward(Recorder(), ())])["prompt"])


def test_calls_and_names_of_tools_reach_the_template(tmp_path: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1"}]}]
    assert load_chats(tmp_path, parts) == [[{"role": "user", "content": "1+1"}]]
    (chat,) = load_chats(tmp_path, TOOLS)
    kept = [{name: value for name, value in message.items() if value is not None} for message in chat]
    assert kept[0] == {"role": "user", "content": "1+1"}
    assert kept[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert kept[2] == TOOLS[2]


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"role": "user", "content": [{"type": "image", "text": ""}]}, "a message with a part of type 'image'"),
        ({"role": "user", "content": None}, "a message without content"),
        ({"role": None, "content": "1"}, "a message without a role"),
        ({"role": "user", "content": {"text": "1"}}, "a message whose content is a dict"),
    ],
)
def test_a_message_that_no_template_reads_is_refused(message: Any, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"in row 0 \({complaint};"):
        load_chats(tmp_path, [message])
