"""Docstrings as Sphinx reads them: ours are plain text with backticks and Markdown tables, not reStructuredText."""

import re
from collections.abc import Iterator, Mapping, Sequence

_CODE = re.compile(r"(`[^`]+`)")
_EMPHASIS = re.compile(r"(?<!\w)\*(\w(?:[^*`]*\w)?)\*(?!\w)")
_MARKUP = re.compile(r"([*|\\])|(?<=\w)(_)(?!\w)")


def convert_docstring(lines: Sequence[str], links: Mapping[str, str], *, is_module: bool = False) -> list[str]:
    r"""Return a docstring as reStructuredText.

    Args:
        lines: of the docstring.
        links: full names of what is documented, by their short names.
        is_module: whether its indented paragraphs are code, which they are nowhere else.

    >>> convert_docstring(["The sum |c| of `f`'s and *all* `x`.", "", ">>> f(*x)", "1"], {"f": "m.f"})
    ["The sum \\|c\\| of :py:obj:`f <m.f>`'s and *all* ``x``.", '', '>>> f(*x)', '1', '']
    """
    converted: list[str] = []
    for kind, block in _split_blocks(lines):
        if kind == "table":
            converted += _convert_table(block, links)
        elif kind == "code" and is_module:
            converted += [".. code-block:: text", "", *block, ""]
        elif kind == "example":
            converted += block
        else:
            converted += [_convert_text(line, links) for line in block]
    return converted


def _split_blocks(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the runs of lines between empty ones, which go with the run before, and what each run is."""
    block: list[str] = []
    for line in [*lines, ""]:
        block.append(line)
        if not line.strip():
            first = block[0].strip()
            is_example, is_table = first.startswith(">>>"), first.startswith("|")
            is_code = block[0].startswith("    ")
            yield "example" if is_example else "table" if is_table else "code" if is_code else "text", block
            block = []


def _convert_text(line: str, links: Mapping[str, str]) -> str:
    return "".join(_convert_part(part, links) for part in _CODE.split(line))


def _convert_part(part: str, links: Mapping[str, str]) -> str:
    if part.startswith("`") and part.endswith("`") and len(part) > 2:
        name = part.strip("`")
        return f":py:obj:`{name} <{links[name]}>`" if name in links else f"``{name}``"
    # Emphasis stays: its text at the odd places.
    pieces = _EMPHASIS.split(part)
    return "".join(f"*{piece}*" if place % 2 else _MARKUP.sub(r"\\\1\2", piece) for place, piece in enumerate(pieces))


def _convert_table(lines: Sequence[str], links: Mapping[str, str]) -> list[str]:
    """Return a Markdown table as a list table, which takes cells of any length."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if line.strip()]
    body = [row for place, row in enumerate(rows) if place != 1]
    table = [".. list-table::", "   :header-rows: 1", ""]
    for row in body:
        for place, cell in enumerate(row):
            table.append(f"   {'-' if place else '* -'} {_convert_text(cell, links)}".replace("   - ", "     - "))
    return [*table, ""]
