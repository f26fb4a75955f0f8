"""The parser of a recipe and its flags, whose complaints are one line each."""

import dataclasses
import difflib
import os
import re
import textwrap
from pathlib import Path
from typing import Any, NoReturn

import torch
from trl import GRPOConfig, ModelConfig, ScriptArguments, TrlParser

from maxent_grpo.adapters.trl import MaxEntGRPOConfig
from maxent_grpo.pipeline.arguments import GRPOScriptArguments
from maxent_grpo.pipeline.checks import expect_arguments, find_missing_packages
from maxent_grpo.pipeline.recipes import MAXENT_FIELDS, Flags, join_flags
from maxent_grpo.pipeline.schema import expect_fields


class RecipeParser(TrlParser):  # type: ignore[misc]
    """`TrlParser` that names the source of a value, the field and the value in every complaint.

    Args:
        task: whose trainer the arguments are for.
        path: the recipe, or None.
        flags: what overrides it.

    Attributes:
        missing: packages that are not installed, each with the field that asks for it; known once parsed.
    """

    dataclass_types: Any  # of the base class, which has no types

    def __init__(self, task: str, path: Path | None, flags: Flags) -> None:
        trainer_arguments = GRPOConfig if task == "grpo" else MaxEntGRPOConfig
        super().__init__((GRPOScriptArguments, trainer_arguments, ModelConfig), allow_abbrev=False)
        self.path, self.flags = path, flags
        self.missing: dict[str, str] = {}

    def parse_recipe(self, recipe: dict[str, Any]) -> tuple[GRPOScriptArguments, GRPOConfig, ModelConfig]:
        """Return the arguments of the script, the trainer and the model.

        Raises:
            ValueError: naming the source, the field and its value, on anything that is wrong.
        """
        self._expect_known(recipe)
        self.set_defaults_with_config(**recipe)
        arguments = join_flags(self.flags)
        # Values first, as plain Python: they are checked before the trainer's class makes its own of them.
        known, unknown = self.parse_known_args(arguments)
        if unknown:
            # Names alone: a value may be a secret under a misspelt name.
            names = [text.split("=")[0] for text in unknown if text.startswith("--")] or unknown
            near = difflib.get_close_matches(names[0], self._option_string_actions, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"command line: Expected fields of this script, got {' '.join(names)}{hint}.")
        values = vars(known)
        preflight = values["preflight_only"]
        ranks = values["gpus"] if preflight else int(os.environ.get("WORLD_SIZE", "1"))
        expect_arguments(values, ranks, self.name_source)
        self._find_missing(values, preflight=preflight)
        if preflight:
            script, trainer_arguments, model = self.dataclass_types
            self.dataclass_types = [script, _assume_ranks(trainer_arguments, ranks), model]
            if not torch.accelerator.is_available():
                arguments += ["--use_cpu", "true"]  # else a recipe for GPUs is refused where there is none
        try:
            script, training, model = self.parse_args_into_dataclasses(arguments, look_for_args_file=False)
        except ValueError as error:
            raise ValueError(f"{self._blame(str(error))}: {error}") from error
        return script, training, model

    def _blame(self, complaint: str) -> str:
        """Return where the fields that a complaint got are from: the command line if one of them is."""
        sources = [self.name_source(name) for name in re.findall(r"(?:got |, )(\w+)=", complaint)]
        return "command line" if "command line" in sources else str(self.path or "command line")

    def name_source(self, name: str) -> str:
        """Return where a field's value comes from."""
        on_command_line = name in {flag for flag, _ in self.flags}
        return "command line" if self.path is None or on_command_line else str(self.path)

    def error(self, message: str) -> NoReturn:
        """Complain in one line: argparse would show hundreds of flags."""
        name = message.removeprefix("argument --").split("/")[0].split(":")[0]
        raise ValueError(f"{self.name_source(name)}: {message}")

    def _expect_known(self, recipe: dict[str, Any]) -> None:
        choices = {action.dest: action.choices for action in self._actions if action.choices}
        for name, value in recipe.items():
            if name in choices and value is not None and value not in choices[name]:
                allowed = ", ".join(map(str, choices[name]))
                raise ValueError(f"{self.path}: Expected {name} of {allowed}, got {name}={value!r}.")
        expect_fields(recipe, self.dataclass_types, f"{self.path}: ", "this script", texts=True)

    def _find_missing(self, values: dict[str, Any], *, preflight: bool) -> None:
        """Note which packages are missing; refuse them but in a preflight, which needs none of them."""
        self.missing = find_missing_packages(values)
        if self.missing and not preflight:
            package, name = next(iter(self.missing.items()))
            raise ValueError(
                f"{self.name_source(name.split('=')[0])}: Expected {package} to be installed, got {name}."
            )


def write_help(description: str | None) -> str:
    """Return the usage, then the fields that are ours; those of TRL and transformers are documented there."""
    ours = [
        field for field in dataclasses.fields(GRPOScriptArguments) if field not in dataclasses.fields(ScriptArguments)
    ]
    method = [field for field in dataclasses.fields(MaxEntGRPOConfig) if field.name in MAXENT_FIELDS]
    lines = ["usage: train.py --config RECIPE.yaml [--task {maxent,grpo}] [--FIELD VALUE ...]", "", description or ""]
    for title, fields in (("what is trained on what", ours), ("the method (--task maxent)", method)):
        lines += [f"{title}:", *(_describe_field(field) for field in fields), ""]
    lines.append(
        "All fields of TRL's GRPOConfig, ScriptArguments and ModelConfig may stand in a recipe, or be flags, too."
    )
    return "\n".join(lines)


def _describe_field(field: Any) -> str:
    text = " ".join(str(field.metadata.get("help", "")).replace("%%", "%").split())
    return textwrap.fill(f"--{field.name}  {text}", 100, initial_indent="  ", subsequent_indent="      ")


def _assume_ranks(trainer_arguments: type[GRPOConfig], ranks: int) -> type[GRPOConfig]:
    """Return the class of arguments as each of so many processes would see it."""
    return type(trainer_arguments.__name__, (trainer_arguments,), {"world_size": property(lambda self: ranks)})
