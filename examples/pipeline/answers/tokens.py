r"""The signs of an expression: numbers, letters, words, functions and commands, each with one meaning."""

import re
from typing import NamedTuple


class Unreadable(ValueError):  # noqa: N818 - the state of a text, not a failure
    """A text that spells nothing that is known, or more than one thing."""


class Token(NamedTuple):
    """A sign: its kind ("number", "letter", "word", "function", "sign") and its value."""

    kind: str
    value: str


_FUNCTION_NAMES = """
    sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan exp ln log abs floor ceil root cbrt
"""
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "sqrt": "root", "ceiling": "ceil"}
_GREEK_NAMES = """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau
    upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell
"""
GREEK = frozenset(_GREEK_NAMES.split())
_COMMANDS = frozenset(["frac", "sqrt", "binom", "lfloor", "rfloor", "lceil", "rceil", "circ"])
# Each alternative begins with a character of its own, and none repeats within itself: linear in the text.
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?:\\overline\{\d+\})?)"
    r"|(?P<letters>[A-Za-z]+)"
    r"|\\(?P<command>[A-Za-z]+)"
    r"|(?P<sign>\*\*|[-+*/^_!()\[\]{}|']))"
)
_SUBSCRIPT = re.compile(r"\s*_\s*(?:\{\s*([A-Za-z0-9]+(?:\s*,\s*[A-Za-z0-9]+)*)\s*\}|([A-Za-z0-9]))")


def split_tokens(text: str) -> list[Token]:
    r"""Return the signs of a text.

    >>> [token.value for token in split_tokens(r"2\pi r^2 + 3xy")]
    ['2', 'pi', 'r', '^', '2', '+', '3', 'x', 'y']
    """
    tokens: list[Token] = []
    place, text = 0, text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise Unreadable(f"{text[place : place + 10]!r} is no sign of an expression")
        place = match.end()
        tokens += _name_tokens(match)
        if tokens[-1].kind in ("letter", "word") and (subscript := _SUBSCRIPT.match(text, place)):
            index = (subscript[1] or subscript[2]).replace(" ", "")
            tokens[-1] = Token("letter", f"{tokens[-1].value}_{index}")
            place = subscript.end()
    return tokens


def _name_tokens(match: re.Match[str]) -> list[Token]:
    if number := match["number"]:
        return [Token("number", number)]
    if sign := match["sign"]:
        return [Token("sign", "^" if sign == "**" else sign)]
    if letters := match["letters"]:
        return _split_letters(letters)
    command = match["command"]
    if command in _COMMANDS:
        return [Token("sign", command)]
    if command in FUNCTIONS:
        return [Token("function", command)]
    if command in GREEK or command in ("pi", "infty"):
        return [Token("letter", command)]
    raise Unreadable(f"the command {command}")


def _split_letters(letters: str) -> list[Token]:
    """Return a function, a constant, a product of variables or, where it could be a word, the word as one symbol.

    Capitals name points, matrices and segments as a whole, so that AB is not BA.
    """
    name = _ALIASES.get(letters, letters)
    if name in FUNCTIONS:
        return [Token("function", name)]
    if name in ("pi", "infty") or name in GREEK or len(letters) == 1:
        return [Token("letter", name)]
    if letters.startswith("pi") and len(letters) == 3:
        return [Token("letter", "pi"), Token("letter", letters[2])]
    if is_product(letters):
        return [Token("letter", letter) for letter in letters]
    return [Token("word", letters)]


def is_product(letters: str) -> bool:
    """Return whether a run of letters next to numbers and signs is a product of variables.

    >>> [is_product(letters) for letters in ("xy", "abc", "AB", "live")]
    [True, True, False, False]
    """
    return letters.islower() and len(letters) <= 3
