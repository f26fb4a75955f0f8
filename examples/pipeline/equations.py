r"""What a solution calculates: the expressions on the left of its equals signs, each in one spelling.

It is the way to an answer without the words around it, for tasks in which one final answer is right. Expressions
are those of `pipeline.tasks.expressions`, and decimals; terms of + and × are put in one order.
"""

import re

from maxent_grpo.pipeline.tasks.expressions import mode_key, parse

MOST_NUMBERS = 16
_LEFT_SIDE = re.compile(r"((?:[\d.\s+*/()×·⋅÷−-]|\\(?:times|cdot|div|left|right|[dt]?frac\{|[,:;!])|\}\{|\})++)=")
_DECIMAL = re.compile(r"(\d+)\.(\d+)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_LEADING = re.compile(r"^\s*[\d.]*[.)]?\s+|^\S+\s+")


def find_equations(text: str) -> list[str]:
    r"""Return the expressions before equals signs in the order of the text; numbers alone are none.

    >>> find_equations(r"1. 48 / 2 = 24 clips, then 48+24 = $72. So 24 + 48=72, and x = 3 \times 1.5 = 4.5")
    ['48/2', '24+48', '24+48', '3*(15/10)']
    """
    plain = _THOUSANDS.sub("", text.replace("$", " "))
    readings = (_read_expression(match[1]) for match in _LEFT_SIDE.finditer(plain))
    return [reading for reading in readings if reading is not None]


def _read_expression(text: str) -> str | None:
    """Return the longest end of a text that is an expression of several numbers, or None."""
    text = _DECIMAL.sub(lambda match: rf"\frac{{{int(match[1] + match[2])}}}{{{10 ** len(match[2])}}}", text).strip()
    while text:
        try:
            tree = parse(text, max_numbers=MOST_NUMBERS)
        except ValueError:
            shorter = _LEADING.sub("", text, count=1)  # the number of a list, or one that stands before it
            if shorter == text:
                return None
            text = shorter.strip()
        else:
            return None if isinstance(tree, int) else mode_key(tree)
    return None
