r"""Where the parts of an answer end: brackets, separators, groups of thousands."""

import re

from maxent_grpo.pipeline.answers.tokens import Unreadable

OPENING, CLOSING = "([{⦃⟨", ")]}⦄⟩"
_BRACES = {"\\{": "⦃", "\\}": "⦄", "\\langle": "⟨", "\\rangle": "⟩"}
_BRACE = re.compile(r"\\[{}]|\\[lr]angle(?![A-Za-z])")
_SPELLED_CONNECTOR = re.compile(r"\\text\s*\{\s*(and|or)\s*\}|\\(and|or)(?![A-Za-z])")
SEPARATOR = re.compile(r"[,;]\s*(?:(?:and|or)(?![A-Za-z]))?|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
RELATION = re.compile(r"<=|>=|\\ne(?![A-Za-z])|!=|[=<>]|\\approx(?![A-Za-z])|\\equiv(?![A-Za-z])|\\sim(?![A-Za-z])")
COLON = re.compile(r":|\\colon(?![A-Za-z])")
CUP = re.compile(r"\\cup(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?!\d)(?!,\d)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,/^] )(?<![\d.,/^])(\d{1,3}(?: \d{3})+)(?![\d/])(?! \d)")
_MIXED = re.compile(r"(?<![\d.,/^*(] )(?<![\d.,/^])(\d+) (\d+)/(\d+)(?![\d/.])")


def mark_brackets(text: str) -> str:
    r"""Return the text with one character for each bracket, and `and` and `or` as bare words.

    >>> mark_brackets(r"\{1,2\}"), mark_brackets(r"1\text{ or }2")
    ('⦃1,2⦄', '1 or 2')
    """
    text = text.replace("{:}", ":").replace("{,}", ",")
    text = _BRACE.sub(lambda match: _BRACES[match[0]], text)
    return _SPELLED_CONNECTOR.sub(lambda match: f" {match[1] or match[2]} ", text)


def measure_depths(text: str) -> list[int]:
    """Return how many brackets are open before each character.

    Raises:
        Unreadable: if they are not balanced; an interval may open with one kind and close with another.
    """
    depths: list[int] = []
    stack: list[str] = []
    for character in text:
        if character in CLOSING:
            if not stack or not _match_brackets(stack.pop(), character):
                raise Unreadable("brackets that do not match")
            depths.append(len(stack))
            continue
        depths.append(len(stack))
        if character in OPENING:
            stack.append(character)
    if stack:
        raise Unreadable("brackets that stay open")
    return depths


def _match_brackets(opening: str, closing: str) -> bool:
    return OPENING.index(opening) == CLOSING.index(closing) or (opening in "([" and closing in ")]")


def split_top(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    r"""Return the parts of a text between separators outside all brackets, and the separators.

    >>> split_top("(1,2), 3 and 4", SEPARATOR)
    (['(1,2)', '3', '4'], [',', 'and'])
    """
    depths = measure_depths(text)
    parts, separators, start = [], [], 0
    for match in separator.finditer(text):
        if depths[match.start()] == 0:
            parts.append(text[start : match.start()].strip())
            separators.append(match[0].strip())
            start = match.end()
    return [*parts, text[start:].strip()], separators


def find_enclosure(text: str) -> tuple[str, str, str] | None:
    """Return (opening, inside, closing) where one pair of brackets holds the whole text.

    >>> find_enclosure("[1,2)"), find_enclosure("(1)(2)")
    (('[', '1,2', ')'), None)
    """
    if len(text) < 2 or text[0] not in OPENING or text[-1] not in CLOSING:
        return None
    if 0 in measure_depths(text)[1:-1]:
        return None
    return text[0], text[1:-1].strip(), text[-1]


def join_thousands(text: str, *, enclosed: bool = False) -> str:
    """Return the text with numbers like 1,000 without their commas.

    Between brackets a comma separates, unless what follows starts with a zero, as no number does, or commas that
    separate have a space after them.

    >>> join_thousands("1,234"), join_thousands("1,234", enclosed=True), join_thousands("1,000", enclosed=True)
    ('1234', '1,234', '1000')
    """
    spaced = ", " in text
    return _THOUSANDS.sub(
        lambda match: match[1].replace(",", "") if not enclosed or spaced or ",0" in match[1] else match[1], text
    )


def join_digits(text: str) -> str:
    r"""Return an item of an answer with 1 000 as 1000, and 1 1/4 as a whole and a fraction.

    >>> join_digits("12 000"), join_digits("1 1/4"), join_digits("1 2")
    ('12000', '1\\frac{1}{4}', '1 2')
    """
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    return _SPACED_THOUSANDS.sub(lambda match: match[1].replace(" ", ""), text)
