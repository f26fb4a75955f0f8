"""How reports write tables and numbers."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_column: int = 0) -> str:
    """Return a Markdown table whose columns but one hold numbers.

    >>> print(table(["method", "pass@8"], [["GRPO", "0.764"]]))
    | method | pass@8 |
    | --- | ---: |
    | GRPO | 0.764 |
    """
    marks = ["---" if column == text_column else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, marks, *rows))


def number(value: float | None, digits: int = 3) -> str:
    """Return a number, or a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def points(value: float) -> str:
    """Return a difference in points."""
    return f"{100 * value:+.1f}"


def p_value(value: float | None) -> str:
    """Return a p-value, or a dash for none."""
    return "–" if value is None else f"{value:.4f}" if value >= 0.0001 else "<.0001"


def quoted(commands: Sequence[str]) -> str:
    """Return commands as code, in their order."""
    return ", then ".join(f"`{command}`" for command in commands)
