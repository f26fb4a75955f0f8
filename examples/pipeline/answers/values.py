r"""Single values: numbers and expressions with units, percentages, times of day, numerals in a base, words."""

import re

import sympy

from maxent_grpo.pipeline.answers.equality import check_value
from maxent_grpo.pipeline.answers.grammar import read_expression
from maxent_grpo.pipeline.answers.layout import join_digits
from maxent_grpo.pipeline.answers.readings import Clock, Numeral, Reading, Value, Words
from maxent_grpo.pipeline.answers.spelling import CURRENCY
from maxent_grpo.pipeline.answers.tokens import FUNCTIONS, GREEK, Unreadable, is_product
from maxent_grpo.pipeline.answers.units import UNITS, Unit, read_unit

_SIGNS = {CURRENCY: "dollar", "€": "euro", "¥": "yen", "£": "pound sterling"}
_PERCENT = re.compile(r"\s*(?:%|\\text\s*\{\s*(?:percent|%)\s*\}|(?<=[\d})\s])percent)$")
_DEGREE = re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?\s*(?:\\text\s*\{\s*([CF])\s*\}|([CF]))?$")
_TRIGONOMETRY = re.compile(r"\b(?:arc)?(?:sin|cos|tan|cot|sec|csc)")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_TEXT_FRACTION = re.compile(
    r"\\frac\s*\{\s*(\\text\s*\{[^{}]*\})\s*\}\s*\{\s*(\\text\s*\{[^{}]*\}(?:\^\{?\d\}?)?)\s*\}"
)
_BARE_UNIT = re.compile(r"(?<=[\d})! ])(?=([A-Za-z][A-Za-z/^ \d.{}*-]*)$)")
_PERIODIC = re.compile(r"(-?\d*\.\d*?)(\d)\2{2,40}(?:\.\.\.|\\dots)")
_LOOSE_UNIT = re.compile(r"(.*[\d}])\s*([A-Za-z])$")
MOST_WITH_UNIT = 200
_SCALE = re.compile(r"\s*(?:\\text\s*\{\s*)?(hundred|thousand|million|billion|trillion|dozen)s?(?![A-Za-z])")
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_CLOCK = re.compile(
    r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*(?:\\text\s*\{)?\s*(?:([ap])\.?\s*m\.?)?\s*\}?\.?", re.IGNORECASE
)
_NUMERAL = re.compile(r"\(?([0-9A-Za-z]+)\)?\s*_\s*(?:\{?\s*(\d+)\s*\}?|\{?\s*(?:\\text\s*\{)?\s*([a-z]+)\s*\}{0,2})")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
          "twelve": 12, "sixteen": 16, "hex": 16, "bin": 2, "oct": 8}  # fmt: skip
_PLAIN_WORDS = re.compile(r"[A-Za-zÀ-ɏ][A-Za-zÀ-ɏ'\- ]*")


def read_single(text: str, *, loose: bool = False) -> Reading:  # noqa: PLR0911 - one return per kind
    r"""Return what one item of an answer is.

    Args:
        text: in the spelling of `spelling` and `layout`.
        loose: whether a bare letter after a number is a unit, which it is where the other answer has one.

    Raises:
        Unreadable: if it is nothing known.

    >>> read_single("60%").percent, read_single("12:00").hours, read_single("1010_2").base, read_single("east").text
    (True, 12, 2, 'east')
    """
    text = join_digits(text.strip())
    if words := read_words(text):
        return words
    for reader in (read_clock, read_numeral):
        if (reading := reader(text)) is not None:
            return reading
    if periodic := _PERIODIC.fullmatch(text):
        text = f"{periodic[1]}\\overline{{{periodic[2]}}}"
    if (sign := next((sign for sign in _SIGNS if text.removeprefix("-").startswith(sign)), None)) is not None:
        return _read_quantity(text.replace(sign, "", 1), read_unit(_SIGNS[sign]))
    if percent := _PERCENT.search(text):
        return Value(_read_finite(text[: percent.start()]), percent=True, source=text)
    if (degree := _DEGREE.search(text)) and not _TRIGONOMETRY.search(text):
        scale = {"C": "celsius", "F": "fahrenheit", None: "degree"}[degree[1] or degree[2]]
        return Value(_read_finite(text[: degree.start()]), UNITS[scale], source=text)
    if loose and (letter := _LOOSE_UNIT.fullmatch(text)) and letter[2] in UNITS:
        return Value(_read_finite(letter[1]), UNITS[letter[2]], source=text)
    return _read_quantity(text, None)


def _read_finite(text: str) -> sympy.Expr:
    return check_value(read_expression(text))


def _read_quantity(text: str, unit: Unit | None) -> Value:
    """Read a number, perhaps with "million", and its unit."""
    scale = _SCALE.search(text)
    if scale and re.search(r"\d\s*$", text[: scale.start()]):
        rest = text[scale.end() :].strip().removeprefix("}").strip(" }")
        rest = _TEXT.sub(r" \1 ", rest + "}" if rest.count("{") > rest.count("}") else rest)
        if rest and unit is None:
            unit = read_unit(rest)
        elif rest:
            raise Unreadable("two units")
        return Value(_read_finite(text[: scale.start()]) * _SCALES[scale[1]], unit, source=text)
    text = _TEXT_FRACTION.sub(r"\1/\2", text)
    for finder in (_find_text_unit, _find_bare_unit):
        place = finder(text)
        if place is None:
            continue
        if unit is not None and read_unit(_TEXT.sub(r" \1 ", text[place:])) != unit:
            raise Unreadable("two units")
        return Value(_read_finite(text[:place]), read_unit(_TEXT.sub(r" \1 ", text[place:])), source=text)
    return Value(_read_finite(text), unit, source=text)


def _find_text_unit(text: str) -> int | None:
    place = text.find("\\text")
    return place if place > 0 and text[:place].strip() else None


def _find_bare_unit(text: str) -> int | None:
    """Return where bare words after a number start that are a unit and no product of variables."""
    return next(
        (match.start() for match in _BARE_UNIT.finditer(text[:MOST_WITH_UNIT]) if _is_unit(text, match)), None
    )


def _is_unit(text: str, match: re.Match[str]) -> bool:
    words = re.findall(r"[A-Za-z]+", match[1])
    if not re.search(r"\d[}) ]*$|!\s*$", text[: match.start()]):
        return False
    # A single letter is a variable; so are xy and abc. Two letters that are a known unit are hardly anything else.
    if words[0] not in UNITS and (is_product(words[0]) or words[0] in FUNCTIONS or words[0] in GREEK):
        return False
    if len(words[0]) == 1 and not (len(words) > 1 and "/" in match[1]):
        return False
    try:
        read_unit(match[1])
        read_expression(text[: match.start()])
    except Unreadable:
        return False
    return True


def read_words(text: str) -> Words | None:
    r"""Return the words that a text consists of, None where it is something else.

    >>> read_words(r"\text{no solution}").text, read_words("xy"), read_words("sin x"), read_words("evil").text
    ('no solution', None, None, 'evil')
    """
    plain = " ".join(_TEXT.sub(r" \1 ", text).split())
    if not _PLAIN_WORDS.fullmatch(plain):
        return None
    words = re.findall(r"[A-Za-zÀ-ɏ]+", plain)
    if all(len(word) == 1 or _is_mathematics(word) for word in words):
        return None
    return Words(plain)


def _is_mathematics(word: str) -> bool:
    """Return whether a run of letters is the name of a function or constant, or a product that is no word."""
    known = word in FUNCTIONS or word in GREEK or word in ("pi", "sqrt")
    return known or (word.islower() and len(word) <= 3 and not set("aeiou") & set(word))


def are_same_words(first: str, second: str) -> bool:
    """Return whether words are the same; of four letters and more, and of some shorter ones, whatever their capitals.

    >>> are_same_words("East", "east"), are_same_words("AB", "ab"), are_same_words("live", "evil")
    (True, False, False)
    """
    pairs = list(zip(first.split(), second.split(), strict=False))
    return len(first.split()) == len(second.split()) and all(
        a == b
        or (a.casefold() == b.casefold() and (len(a) > 3 or a.casefold() in ("yes", "no", "red", "odd", "all")))
        for a, b in pairs
    )


def read_clock(text: str) -> Clock | None:
    """Return a time of day, None where the text is none."""
    match = _CLOCK.fullmatch(text)
    if match is None or int(match[2]) > 59 or int(match[3] or 0) > 59 or int(match[1]) > 24:
        return None
    half = (match[4] or "").lower()
    return Clock(int(match[1]), int(match[2]), int(match[3] or 0), half + "m" if half else "")


def read_numeral(text: str) -> Numeral | None:
    """Return a numeral with its base, None where the text is none; `x_2` is a variable."""
    match = _NUMERAL.fullmatch(text)
    if match is None or (match[2] is None and match[3] not in _BASES):
        return None
    base = int(match[2]) if match[2] else _BASES[match[3]]
    if not any(digit.isdigit() for digit in match[1]) and base != 16:
        return None
    if not 2 <= base <= 36:
        raise Unreadable("a base that is none")
    try:
        return Numeral(int(match[1], base), base)
    except ValueError as error:
        raise Unreadable("a digit that the base does not have") from error
