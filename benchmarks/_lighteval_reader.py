"""LightEval reads commands: JSON [[word, ...], ...] on stdin, on the last line of stdout how many tasks each runs.

A task that it does not know, a flag or a setting of the model ends this with an error.
"""

import json
import sys
from types import ModuleType

import typer

# ruff: noqa: E402 - it must be there before the import
# These tasks load a file from the web when they are imported; they are none of those asked for.
sys.modules["lighteval.tasks.tasks.tiny_benchmarks"] = ModuleType("tiny_benchmarks")

from lighteval.__main__ import app
from lighteval.models.transformers.transformers_model import TransformersModelConfig
from lighteval.models.vllm.vllm_model import VLLMModelConfig
from lighteval.tasks.registry import Registry

MODELS = {"vllm": VLLMModelConfig, "accelerate": TransformersModelConfig}


def read_command(words: list[str]) -> int:
    """Return how many tasks a command runs."""
    program = typer.main.get_command(app)
    name, command, rest = program.resolve_command(program.make_context("lighteval", []), words)
    with command.make_context(name, rest) as context:
        settings = MODELS[name].from_args(context.params["model_args"])
        assert settings.dtype == "bfloat16", settings
        assert settings.generation_parameters.max_new_tokens == 64, settings
        assert settings.generation_parameters.temperature == 0.0, settings
        return len(Registry(tasks=context.params["tasks"]).task_to_configs)


print(json.dumps([read_command(words) for words in json.load(sys.stdin)]))
