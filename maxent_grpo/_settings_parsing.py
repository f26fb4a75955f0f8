"""Values of settings as a recipe, a flag or the environment writes them, made what their fields are."""

from typing import Any, Literal, get_args, get_origin

from maxent_grpo._checks import expect

_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


def parse_setting(label: str, value: object, hint: Any) -> Any:
    """Return `value` (a string, or what YAML made of it) as the type of its field, or name it in an error."""
    if get_origin(hint) is Literal and value is not None:
        return value  # "none" is one of the choices
    optional = type(None) in get_args(hint)
    if value is None or (isinstance(value, str) and value.strip().lower() in ("none", "null", "")):
        expect(optional, f"{label} to have a value", **{label: value})
        return None
    kind = next(option for option in (get_args(hint) or (hint,)) if option is not type(None))
    if kind is str:
        return _as_names(label, value)
    parsed = _as_bool(value) if kind is bool else _as_number(value, kind)
    expect(parsed is not None, f"{label} to be a {kind.__name__}", **{label: value})
    return parsed


def _as_names(label: str, value: object) -> str | tuple[str, ...]:
    """Return one name, or the names of a list or of a text with commas."""
    names = value.split(",") if isinstance(value, str) else value
    texts = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    expect(texts, f"{label} to be names", **{label: value})
    stripped = tuple(name.strip() for name in names)  # type: ignore[attr-defined]  # checked
    return stripped[0] if len(stripped) == 1 else stripped


def _as_bool(value: object) -> bool | None:
    return value if isinstance(value, bool) else _BOOLEANS.get(str(value).strip().lower())


def _as_number(value: object, kind: type) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if kind is int:
        return int(number) if number.is_integer() else None
    return number
