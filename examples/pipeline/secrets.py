"""Secrets, which no recipe and no command line may hold: found however deep they are, and never repeated."""

import contextlib
import json
import re
from collections.abc import Sequence
from typing import Any

_NAME = re.compile(r"(?:tok(?:e|en|n)?|secret|password|api_?key)$", re.IGNORECASE)
_VALUE = re.compile(r"(?:^|[^\w./-])hf_")
SPECIAL_TOKENS = frozenset(f"{kind}_token" for kind in ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "image"))


def is_secret(name: str, value: Any) -> bool:
    """Return whether a value is one that must not be show_field, by its own look or by the name of its field.

    >>> is_secret("HF_HUB_TOKEN", "x"), is_secret("name", "hf_x"), is_secret("eos_token", "</s>"), is_secret("token", True)
    (True, True, False, False)
    """  # noqa: E501
    if isinstance(value, str) and _VALUE.search(value):
        return True
    named = _NAME.search(name) is not None and name.lower() not in SPECIAL_TOKENS
    return named and value is not None and not isinstance(value, bool)


def show_field(name: str, value: Any) -> str:
    """Return `name=value` for a message, without a value that may be secret.

    >>> show_field("max_steps", 3), show_field("hub_tokn", "abc")
    ('max_steps=3', 'hub_tokn (its value is not repeated here)')
    """
    return f"{name} (its value is not repeated here)" if find_secret(value, name) else f"{name}={value!r}"


def find_secret(value: Any, name: str) -> str | None:
    """Return the path of the first secret in a value, through mappings, lists and JSON texts; None without one."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, dict):
        inner = ((f"{name}.{key}" if name else str(key), str(key), each) for key, each in value.items())
    elif isinstance(value, list | tuple):
        inner = ((f"{name}[{place}]", name, each) for place, each in enumerate(value))
    else:
        return name if is_secret(name, value) else None
    for path, key, each in inner:
        if is_secret(key, each):
            return path
        if secret := find_secret(each, path):
            return secret
    return None


def expect_no_secret(fields: dict[str, Any], where: Any) -> None:
    """Refuse fields of which one holds a secret.

    Raises:
        ValueError: naming the field, never its value.
    """
    if secret := find_secret(fields, ""):
        raise ValueError(
            f"{where}: Expected the Hub login in the environment's HF_TOKEN or stored by `hf auth login`, got "
            f"{secret} (its value is not repeated here)."
        )


def expect_no_secret_flags(flags: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Refuse flags, as names and their values, of which one holds a secret."""
    for name, values in flags:
        expect_no_secret({name: values[0] if len(values) == 1 else list(values) or None}, "command line")
