"""The options of trainers that the adapters refuse, read from the sources: their frameworks exclude one another."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maxent_grpo.pipeline.markdown import format_table

ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"


def read_constants(file: Path) -> dict[str, Any]:
    """Return a module's constants without importing it: of its statements, those run that need nothing else."""
    names: dict[str, Any] = {"dataclass": dataclass, "Any": Any}
    for node in ast.parse(file.read_text()).body:
        is_record = isinstance(node, ast.ClassDef) and node.name == "Refusal"
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        is_constant = isinstance(targets[0], ast.Name) and targets[0].id.isupper()
        if is_record or is_constant:
            code = ast.Module([node], type_ignores=[])
            try:
                exec(compile(code, str(file), "exec"), names)
            except NameError:  # a constant that holds a class or a function of the module
                continue
    return names


def write_trl_section() -> str:
    """Return the options of TRL that have one value."""
    refused = read_constants(ADAPTERS / "trl" / "options.py")["REFUSED"]
    rows = [[f"`{name}`", f"`{refusal.value!r}`", refusal.lost] for name, refusal in refused.items()]
    return f"\n{_format_rows(rows, 'option of TRL')}\n"


def write_openrlhf_section() -> str:
    """Return the options of OpenRLHF that have few values."""
    refused = read_constants(ADAPTERS / "openrlhf" / "options.py")["REFUSED"]
    rows = [[f"`--{name}`", _list_values(refusal.values), refusal.lost] for name, refusal in refused.items()]
    return f"\n{_format_rows(rows, 'option of OpenRLHF')}\n"


def write_verl_section() -> str:
    """Return the options of verl that have few values."""
    accepted = read_constants(ADAPTERS / "verl" / "options.py")["ACCEPTED"]
    rows = [[f"`{name}`", _list_values(values), lost] for name, (values, lost) in accepted.items()]
    return f"\n{_format_rows(rows, 'option of verl')}\n"


def _list_values(values: tuple[Any, ...]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _format_rows(rows: list[list[str]], title: str) -> str:
    return format_table([title, "may be", "why"], rows, text_columns=(0, 1, 2))
