r"""The answer that a completion gives, and one spelling for answers that are written alike.

Nothing here does mathematics: `canonicalize` joins spellings (`\dfrac12`, `\frac{1}{2}`, `1/2`), not values.
"""

import re

TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
BOX = "\\boxed{"
_WORDS = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"(?<!\\)\\[ ,;:!]|\\q?quad(?![a-zA-Z])|~|\s+")
_BARE_ARGUMENT = re.compile(r"\\(frac|sqrt)(?=[0-9a-zA-Z])([0-9a-zA-Z])")
_SLASH = re.compile(r"([+-]?)(\d+)/(\d+)")
_FRACTION = re.compile(r"\\frac\{([^{}]*)\}([0-9a-zA-Z])")
_DECIMAL = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?")
_THOUSANDS = re.compile(r"([+-]?)\d{1,3}(?:,\d{3})+(\.\d+)?")
_CHAIN = re.compile(r"=(?:(?!,|;|&|\\\\|\\q?quad|\\text|\\(?:l|v)?or\b|\band\b|\bor\b)[^=])*=", re.DOTALL)
_LITERAL_BRACES = re.compile(r"\\[{}]")
_DROPPED = re.compile(r"\$|\\left(?![a-z])|\\right(?![a-z])|\\\(|\\\)|\\\[|\\\]|\^\{?\\circ\}?|°")


def find_tagged_answer(completion: str) -> str | None:
    """Return what stands in the last <answer>...</answer>, or None.

    >>> find_tagged_answer("<answer>1</answer>, no: <answer> 2 </answer>")
    '2'
    """
    answers = TAGGED.findall(completion)
    return answers[-1].strip() if answers else None


def find_answer(completion: str) -> str | None:
    r"""Return the tagged answer, or else what stands in the last \boxed{...}; None without one or with open braces.

    >>> find_answer(r"so \boxed{\frac{1}{2}}."), find_answer("it is 3")
    ('\\frac{1}{2}', None)
    """
    tagged = find_tagged_answer(completion)
    answer = read_box(completion) if tagged is None else read_box(tagged) or tagged
    grouping = _LITERAL_BRACES.sub("", answer or "")
    return answer if answer and grouping.count("{") == grouping.count("}") else None


def is_chain(answer: str) -> bool:
    r"""Return whether an answer sets more than two things equal in a row, of which the last could be a guess.

    >>> is_chain("1=2=3"), is_chain("x=3"), is_chain("x=1, y=2")
    (True, False, False)
    """
    return _CHAIN.search(answer) is not None


def read_box(text: str, *, longest: int | None = None) -> str | None:
    r"""Return what stands in the last \boxed{...}, or None where there is no box or the last one is never closed.

    Args:
        text: read once, whatever it holds.
        longest: the most characters that a box may hold; a longer one counts as never closed.

    >>> read_box(r"\boxed{1}, no: \boxed{\frac{1}{2}}"), read_box(r"\boxed{1} or \boxed{2")
    ('\\frac{1}{2}', None)
    """
    start = text.rfind(BOX)
    if start < 0:
        return None
    content = text[start + len(BOX) :] if longest is None else text[start + len(BOX) :][: longest + 1]
    depth = 1
    for end, character in enumerate(content):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return content[:end].strip()
    return None


def canonicalize(answer: str) -> str:
    r"""Return an answer in the one spelling that all ways of writing it share.

    Dropped: dollar signs, boxes, \left and \right, \text and its like, spaces, degree signs, a full stop at the end,
    thousands separators, a leading plus, needless zeros. Capitals and the order of terms stay.

    >>> canonicalize(r"$\dfrac12$"), canonicalize("1/2"), canonicalize("1{,}000.50"), canonicalize(" .5")
    ('\\frac{1}{2}', '\\frac{1}{2}', '1000.5', '0.5')
    """
    text = read_box(answer) or answer
    text = text.replace("−", "-").replace("{,}", ",").replace("\\%", "%").replace("\\$", "")
    text = re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", text)
    text = _DROPPED.sub("", _WORDS.sub(r"\1", text))
    text = _SPACES.sub("", text)
    if len(text) > 1 and text.endswith("."):
        text = text[:-1]
    for pattern, brace in ((_BARE_ARGUMENT, r"\\\1{\2}"), (_FRACTION, r"\\frac{\1}{\2}")):
        text = pattern.sub(brace, text)
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if fraction := _SLASH.fullmatch(text):
        sign, numerator, denominator = fraction.groups()
        return f"{sign.replace('+', '')}\\frac{{{_strip_zeros(numerator)}}}{{{_strip_zeros(denominator)}}}"
    if text and (number := _DECIMAL.fullmatch(text)) and (number[2] or number[3]):
        sign, whole, part = number.groups()
        part = (part or "").rstrip("0")
        return f"{sign.replace('+', '')}{_strip_zeros(whole)}{'.' + part if part else ''}"
    return text


def _strip_zeros(digits: str) -> str:
    return digits.lstrip("0") or "0"  # no int(): it refuses thousands of digits
