"""Markdown that programs write: tables, and sections of a page that are made from results."""

import re
from collections.abc import Collection, Sequence


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: Collection[int] = (0,)) -> str:
    """Return a Markdown table.

    Args:
        head: the titles of the columns.
        rows: the cells, as many in each row as there are titles.
        text_columns: which columns hold text, on the left; the others hold numbers, on the right.

    Returns:
        The lines of the table, the last one without its end.

    >>> print(format_table(["method", "pass@8"], [["GRPO", "0.764"]]))
    | method | pass@8 |
    | --- | ---: |
    | GRPO | 0.764 |
    """
    marks = ["---" if column in text_columns else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, marks, *rows))


def replace_section(page: str, name: str, content: str) -> str:
    """Return a page with new content between the marks `<!-- NAME:begin … -->` and `<!-- NAME:end -->`.

    Args:
        page: the text of the page.
        name: the section's.
        content: what goes between the marks, on lines of its own.

    Raises:
        ValueError: unless the page has the marks once.

    >>> replace_section("<!-- a:begin (make a) --> old <!-- a:end -->", "a", "new").splitlines()
    ['<!-- a:begin (make a) -->', 'new', '<!-- a:end -->']
    """
    marks = re.compile(rf"(<!-- {re.escape(name)}:begin[^>]*-->).*?(<!-- {re.escape(name)}:end -->)", re.DOTALL)
    replaced, count = marks.subn(lambda match: f"{match[1]}\n{content}\n{match[2]}", page)
    if count != 1:
        raise ValueError(f"Expected the marks of section {name!r} once, got them {count} times.")
    return replaced
