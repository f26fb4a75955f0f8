"""Secrets, which no recipe and no command line may hold: found by name and by shape, and never repeated."""

import argparse
import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NoReturn

_NAME = re.compile(
    r"secret|(?:tok(?:e|en|n)?|pass(?:wd|word|phrase|code)|[_-]pass|(?:^|[_.-])(?:pwd|pat|auth|authorization|bearer|cookie"
    r"|credentials?)|(?:api|access|private|signing|auth)[_-]?key|[_.-]key|access[_-]?key[_-]?id)$",
    re.IGNORECASE,
)
_SHAPE = (
    r"hf_(?!(?:hub_)?token\b)|A(?:KI|SI)A[A-Z0-9]{12,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|(?:Bearer|Basic) (?=[\w.~+/=-]{12})|(?:sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|eyJ|AIza|npm_|pypi-"
    r"|ya29\.|r8_|gsk_|wandb_v\d_|dckr_pat_|SG\.)[\w.-]{12,}"
)
_VALUE = re.compile(rf"(?:^|[^\w./-])(?:{_SHAPE})|:/+[^/\s:@]*:[^/\s@]+@")
_HIDDEN = "(not repeated here)"
_IN_TEXT = re.compile(rf"(?<![\w./-])(?:{_SHAPE})[^\s'\",;)}}\]]*")
_IN_URL = re.compile(r"(:/+)[^/\s@'\"]+@")  # a path of it has one slash
_IN_QUERY = re.compile(r"([?&][\w-]+)(=)([^&\s'\"]+)")
_FLAG = re.compile(r"(--?[\w.-]+)(=|\s+(?:--\s+)?(?!--?[A-Za-z]))('[^']*'|\"[^\"]*\"|\S+)")
_ASSIGNED = re.compile(r"([\w.-]+)(['\"]?\s*[:=]>?\s*)('[^']*'|\"[^\"]*\"|[^\s,;)}\]]+)")
SPECIAL_TOKENS = frozenset(f"{kind}_token" for kind in ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "image"))


def is_secret(name: str, value: Any) -> bool:
    """Return whether a value must not be shown, by its own look or by the name of its field.

    >>> is_secret("HF_HUB_TOKEN", "x"), is_secret("name", "hf_x"), is_secret("eos_token", "</s>"), is_secret("token", True)
    (True, True, False, False)
    >>> is_secret("api-key", "x"), is_secret("path", "https://me:pass@host/data"), is_secret("key_func", "f")
    (True, True, False)
    """  # noqa: E501
    if isinstance(value, str) and _VALUE.search(value):
        return True
    return _is_named(name) and value is not None and not isinstance(value, bool)


def _is_named(name: str) -> bool:
    # A shell's PWD is the working directory, which complaints about files are to show.
    return _NAME.search(name) is not None and name.lower() not in SPECIAL_TOKENS and name != "PWD"


def show_field(name: str, value: Any) -> str:
    """Return `name=value` for a message, without a value that may be secret.

    >>> show_field("max_steps", 3), show_field("hub_tokn", "abc")
    ('max_steps=3', 'hub_tokn (its value is not repeated here)')
    """
    return f"{name} (its value is not repeated here)" if find_secret(value, name) else f"{name}={value!r}"


def hide_secrets(text: str) -> str:
    """Return a text without values that may be secret: by shape, by name, or as the environment has them.

    >>> hide_secrets("unrecognized arguments: --nosuch hf_abc --wandb-key abc"), hide_secrets("api_key='abc', tau=1")
    ('unrecognized arguments: --nosuch (not repeated here) --wandb-key (not repeated here)', 'api_key=(not repeated here), tau=1')
    """  # noqa: E501
    for name, value in os.environ.items():
        if _is_named(name) and len(value) >= 8:
            text = text.replace(value, _HIDDEN)
    text = _IN_TEXT.sub(_HIDDEN, _IN_URL.sub(rf"\1{_HIDDEN}@", text))
    for pattern in (_IN_QUERY, _FLAG, _ASSIGNED):
        text = pattern.sub(_hide_named, text)
    return text


def _hide_named(match: re.Match[str]) -> str:
    name, between, value = match.groups()
    hidden = _is_named(name.lstrip("-?&")) and not value.startswith(("--", "(not", "(its"))
    return f"{name}{between}{_HIDDEN if hidden else value}"


def hide_in_tracebacks() -> None:
    """Print tracebacks without secrets: a library's error may quote a login that it was given."""

    def print_hidden(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(hide_secrets("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = print_hidden


class DiscreetParser(argparse.ArgumentParser):
    """A parser whose complaints are one line that repeats no secrets."""

    def error(self, message: str) -> NoReturn:
        """End with a line on stderr, and exit code 2."""
        self.exit(2, f"{self.prog}: {hide_secrets(message)} (--help lists the flags)\n")


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
            f"{where}: Expected secrets in the environment (the Hub's login in HF_TOKEN or by `hf auth login`), got "
            f"{secret} (its value is not repeated here)."
        )


def expect_no_secret_flags(flags: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Refuse flags, as names and their values, of which one holds a secret."""
    for name, values in flags:
        fields = {name or "an argument": values[0] if len(values) == 1 else list(values) or None}
        expect_no_secret(fields, "command line")
