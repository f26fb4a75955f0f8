"""Whether values of a YAML file are of the types that a dataclass declares."""

import dataclasses
import difflib
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from maxent_grpo._secrets import show_field

_PLAIN: dict[Any, Any] = {
    int: int,
    float: (int, float),
    bool: bool,
    str: str,
    list: list,
    dict: dict,
    type(None): type(None),
}


def fits(value: Any, hint: Any, *, texts: bool = False) -> bool:
    """Return whether a value is of a type; with texts, a text counts that argparse will make one of it.

    >>> fits([1], list[str]), fits({"a": "b"}, dict[str, str]), fits("3", int | None, texts=True), fits(True, int)
    (False, True, True, False)
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part, texts=texts) for part in parts)
    kind = origin or hint
    if kind not in _PLAIN:
        return True
    if texts and isinstance(value, str):
        return kind not in (list, dict, type(None))
    if not isinstance(value, _PLAIN[kind]) or (isinstance(value, bool) and kind is not bool):
        return False
    # What a list or a mapping holds, beside the types of its parameters: items, or keys and values.
    contents = [value] if kind is list else [value, value.values()] if kind is dict else []
    return all(fits(item, part) for part, items in zip(parts, contents, strict=False) for item in items)


def expect_fields(entry: dict[str, Any], kinds: Any, where: str, what: str, *, texts: bool = False) -> None:
    """Refuse a mapping with names that no dataclass of these has, or values of other types.

    Raises:
        ValueError: naming the place, the field and its value.
    """
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    known = {each.name for kind in kinds for each in dataclasses.fields(kind) if each.init}
    for name, value in entry.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"{where}Expected fields of {what}, got {show_field(name, value)}{hint}.")
        if not fits(value, hints[name], texts=texts):
            raise ValueError(
                f"{where}Expected {name} of type {_name_type(hints[name])}, got {show_field(name, value)}."
            )


def _name_type(hint: Any) -> str:
    return str(hint).replace("typing.", "") if get_args(hint) else getattr(hint, "__name__", str(hint))
