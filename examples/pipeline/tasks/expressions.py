r"""Arithmetic expressions over whole numbers: parsed by hand, evaluated exactly, keyed by their mode.

A tree is an int, or `(operator, left, right)` with an operator of `+-*/`. Its mode sorts the two children of
every + and *, flattens nothing and keeps those of - and / in order: `3+2` and `2+3` are one mode, `(1+2)+3`
and `1+(2+3)` are two.

`parse` reads whole numbers of at most nine ASCII digits without leading zeros, the operators + - * / and
their spellings × · ⋅ ÷ − `\times` `\cdot` `\div`, parentheses (also `\left( \right)`), `\frac{a}{b}` (also
`\dfrac`, `\tfrac`) and ASCII white space (also `\,` `\:` `\;` `\!`). Operators of one precedence group from
the left. There are no signs, no powers, no implied products and no equals sign.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import product

Tree = int | tuple[str, "Tree", "Tree"]

MAX_DEPTH = 64
COMMUTATIVE = "+*"
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_SPELLING = {"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", r"\times": "*", r"\cdot": "*", r"\div": "/"}
_TOKEN = re.compile(
    r"""(?P<number>0|[1-9][0-9]{0,8})
      | (?P<operator>[-+*/×·⋅÷−]|\\(?:times|cdot|div)(?![A-Za-z]))
      | (?P<open>(?:\\left)?\()
      | (?P<close>(?:\\right)?\))
      | (?P<numerator>\\[dt]?frac\{)
      | (?P<denominator>\}\{)
      | (?P<end>\})
      | (?P<space>(?:\s|\\[,:;!])++)""",
    re.VERBOSE | re.ASCII,
)
_OPENED_BY = {"close": "open", "denominator": "numerator", "end": "denominator"}


def parse(text: str, *, max_numbers: int) -> Tree:
    r"""Return the tree of an expression.

    One pass with an explicit stack, never recursive: whatever the text, at most `max_numbers` numbers and
    `MAX_DEPTH` pending brackets and operators are held.

    Raises:
        ValueError: if the text is no expression or is over one of the limits.

    >>> parse("(3+5)*2", max_numbers=3)
    ('*', ('+', 3, 5), 2)
    >>> parse(r"\frac{8}{3 - 1} \times 2", max_numbers=4)
    ('*', ('/', 8, ('-', 3, 1)), 2)
    >>> parse("3+", max_numbers=3)
    Traceback (most recent call last):
    ValueError: Expected a number or an opening bracket, got the end.
    """
    stack = _Stack()
    numbers = 0
    wants_operand = True
    for kind, lexeme in _read_tokens(text):
        if wants_operand != (kind in ("number", "open", "numerator")):
            wanted = "a number or an opening bracket" if wants_operand else "an operator or a closing bracket"
            raise ValueError(f"Expected {wanted}, got {lexeme!r}.")
        wants_operand = kind not in ("number", "close", "end")
        numbers += kind == "number"
        stack.push(kind, lexeme)
        if numbers > max_numbers or len(stack.pending) > MAX_DEPTH:
            raise ValueError(f"Expected <= {max_numbers} numbers and <= {MAX_DEPTH} open levels, got more.")
    if wants_operand:
        raise ValueError("Expected a number or an opening bracket, got the end.")
    return stack.finish_tree()


def evaluate(tree: Tree, *, whole_steps: bool = False) -> Fraction | None:
    """Return the exact value, or None where it divides by zero (with `whole_steps`: or leaves the integers).

    >>> evaluate(("/", 8, ("-", 3, ("/", 8, 3))))
    Fraction(24, 1)
    """
    if isinstance(tree, int):
        return Fraction(tree)
    operator, left_tree, right_tree = tree
    left = evaluate(left_tree, whole_steps=whole_steps)
    right = evaluate(right_tree, whole_steps=whole_steps)
    if left is None or right is None:
        return None
    value = apply(operator, left, right)
    return None if value is None or (whole_steps and value.denominator != 1) else value


def apply(operator: str, left: Fraction, right: Fraction) -> Fraction | None:
    """Return `left operator right`, or None for a division by zero."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return left / right if right else None


def leaves(tree: Tree) -> list[int]:
    """Return the numbers of a tree from left to right."""
    return [tree] if isinstance(tree, int) else leaves(tree[1]) + leaves(tree[2])


def render(tree: Tree) -> str:
    """Return the expression with the fewest parentheses that parses to exactly this tree.

    >>> render(("+", 1, ("+", 2, ("*", 3, 4))))
    '1+(2+3*4)'
    """
    if isinstance(tree, int):
        return str(tree)
    operator, left, right = tree
    rank = PRECEDENCE[operator]
    return _bracket_tree(left, rank) + operator + _bracket_tree(right, rank + 1)


def mode_key(tree: Tree) -> str:
    """Return the mode of a tree, as the expression whose commutative children stand shortest first.

    >>> mode_key(("*", ("+", 5, 3), 2)), mode_key(("-", 5, 3))
    ('2*(3+5)', '5-3')
    """
    return render(_sort_children(tree))


def arrangements(tree: Tree) -> list[Tree]:
    """Return every tree of the same mode: the children of each + and * in both orders.

    >>> [render(each) for each in arrangements(("-", ("*", 2, 3), 4))]
    ['2*3-4', '3*2-4']
    """
    if isinstance(tree, int):
        return [tree]
    operator, left, right = tree
    children = list(product(arrangements(left), arrangements(right)))
    trees: list[Tree] = [(operator, a, b) for a, b in children]
    if operator in COMMUTATIVE:
        trees += [(operator, b, a) for a, b in children]
    return trees


class _Stack:
    """Operator-precedence parsing: finished trees, and the operators and brackets that wait for theirs."""

    def __init__(self) -> None:
        self.trees: list[Tree] = []
        self.pending: list[str] = []

    def push(self, kind: str, lexeme: str) -> None:
        if kind == "number":
            self.trees.append(int(lexeme))
        elif kind == "operator":
            operator = _SPELLING.get(lexeme, lexeme)
            self._join(PRECEDENCE[operator])
            self.pending.append(operator)
        else:
            if kind in _OPENED_BY:
                self._close(_OPENED_BY[kind])
            if kind == "end":
                self._join_last("/")
            elif kind != "close":
                self.pending.append(kind)

    def finish_tree(self) -> Tree:
        self._join(1)
        if self.pending:
            raise ValueError("Expected a closing bracket, got the end.")
        return self.trees[0]

    def _close(self, opening: str) -> None:
        self._join(1)
        if not self.pending or self.pending.pop() != opening:
            raise ValueError("Expected brackets that match, got others.")

    def _join(self, lowest: int) -> None:
        """Join trees while the last pending operator binds at least as tightly; brackets bind not at all."""
        while self.pending and PRECEDENCE.get(self.pending[-1], 0) >= lowest:
            self._join_last(self.pending.pop())

    def _join_last(self, operator: str) -> None:
        right, left = self.trees.pop(), self.trees.pop()
        self.trees.append((operator, left, right))


def _read_tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise ValueError(f"Expected an arithmetic expression, got {text[position]!r} in it.")
        position = token.end()
        kind = str(token.lastgroup)
        if kind != "space":
            yield kind, token.group()


def _bracket_tree(tree: Tree, rank: int) -> str:
    text = render(tree)
    return text if isinstance(tree, int) or PRECEDENCE[tree[0]] >= rank else f"({text})"


def _sort_children(tree: Tree) -> Tree:
    if isinstance(tree, int):
        return tree
    operator, left, right = tree[0], _sort_children(tree[1]), _sort_children(tree[2])
    if operator in COMMUTATIVE:
        left, right = sorted((left, right), key=_rank_by_length)
    return operator, left, right


def _rank_by_length(tree: Tree) -> tuple[int, str]:
    text = render(tree)
    return len(text), text
