r"""The answer that a completion gives, and one spelling for answers that are written alike.

Nothing here does mathematics: `canonicalize` joins spellings (`\dfrac12`, `\frac{1}{2}`, `1/2`), not values.
"""

import re

from maxent_grpo.pipeline.answers.spelling import normalize_characters, strip_decorations

OPEN, CLOSE = "<answer>", "</answer>"
BOX = "\\boxed"
# None of these repeats what it could also read another way: each is linear in the text.
_WORDS = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACE = r"(?:\\[ ,;:!]|\\q?quad(?![a-zA-Z])|~|\s)"
_THIN_SPACES = re.compile(rf"(?<=\d){_SPACE}(?=\d{{3}}(?!\d))")
_DIGIT_SPACES = re.compile(rf"(?<=\d){_SPACE}+(?=\d)")
_SPACES = re.compile(r"(?<!\\)\\[ ,;:!]|\\q?quad(?![a-zA-Z])|~|\s+")
_BARE_ARGUMENT = re.compile(r"\\(frac|sqrt)(?=[0-9a-zA-Z])([0-9a-zA-Z])")
_SLASH = re.compile(r"([+-]?)(\d+)/(\d+)")
_FRACTION = re.compile(r"\\frac\{([^{}]*)\}([0-9a-zA-Z])")
_DECIMAL = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?")
_THOUSANDS = re.compile(r"([+-]?)\d{1,3}(?:,\d{3})+(\.\d+)?")
_LITERAL_BRACES = re.compile(r"\\[{}]")
_DROPPED = re.compile(r"\$|\\left(?![a-z])|\\right(?![a-z])|\\\(|\\\)|\\\[|\\\]")
_DEGREES = re.compile(r"([+-]?[\d.,/]+|[+-]?\\frac\{\d+\}\{\d+\})\^\{?\\circ\}?")
_KEPT_SPACE = "\0"


def find_tagged_answer(completion: str) -> str | None:
    """Return what stands in the last <answer>...</answer>, or None.

    >>> find_tagged_answer("<answer>1</answer>, no: <answer> 2 </answer>")
    '2'
    """
    # From the end, so that tags that are never closed are passed once.
    start = completion.rfind(OPEN, 0, max(0, completion.rfind(CLOSE)))
    if start < 0:
        return None
    start += len(OPEN)
    return completion[start : completion.index(CLOSE, start)].strip()


def find_answer(completion: str) -> str | None:
    r"""Return the tagged answer, or else what stands in the last \boxed{...}; None without one or with open braces.

    >>> find_answer(r"so \boxed{\frac{1}{2}}."), find_answer("it is 3")
    ('\\frac{1}{2}', None)
    """
    tagged = find_tagged_answer(completion)
    answer = read_box(completion) if tagged is None else read_box(tagged) or tagged
    grouping = _LITERAL_BRACES.sub("", answer or "")
    return answer if answer and grouping.count("{") == grouping.count("}") else None


def read_box(text: str, *, longest: int | None = None) -> str | None:
    r"""Return what stands in the last \boxed{...}, or None where there is no box or the last one is never closed.

    Without braces, as in `\boxed 5`, it is what follows up to a space or a dollar sign.

    Args:
        text: read once, whatever it holds.
        longest: the most characters that a box may hold; a longer one counts as never closed.

    >>> read_box(r"\boxed{1}, no: \boxed{\frac{1}{2}}"), read_box(r"\boxed{1} or \boxed{2"), read_box(r"$\boxed 5$.")
    ('\\frac{1}{2}', None, '5')
    """
    start = text.rfind(BOX)
    if start < 0:
        return None
    content = text[start + len(BOX) :].lstrip()
    content = content if longest is None else content[: longest + 2]
    if not content.startswith("{"):
        bare = re.split(r"[\s$]|\\[\])]", content, maxsplit=1)[0].rstrip(".,;:")
        return bare if bare and (longest is None or len(bare) <= longest) else None
    depth = 0
    for end, character in enumerate(content):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return content[1:end].strip()
    return None


def canonicalize(answer: str) -> str:
    r"""Return an answer in the one spelling that all ways of writing it share.

    Dropped: dollar signs, boxes, \left and \right, \text and its like, spaces, the degree sign of a number, thousands
    separators, a leading plus, needless zeros, and decorations such as `**5**.` Capitals and the order of terms stay.

    >>> canonicalize(r"$\dfrac12$"), canonicalize("1/2"), canonicalize("1{,}000.50"), canonicalize(" .5")
    ('\\frac{1}{2}', '\\frac{1}{2}', '1000.5', '0.5')
    """
    text = strip_decorations(normalize_characters(read_box(answer) or answer))
    text = text.replace("{,}", ",").replace("\\%", "%").replace("\\$", "")
    text = re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", text)
    text = _DROPPED.sub("", _WORDS.sub(r"\1", text))
    # A space between digits parts two numbers, as in 1 1/4, unless it groups thousands.
    text = _DIGIT_SPACES.sub(_KEPT_SPACE, _THIN_SPACES.sub("", text))
    text = _SPACES.sub("", text).replace(_KEPT_SPACE, " ")
    if len(text) > 1 and text.endswith("."):
        text = text[:-1]
    for pattern, brace in ((_BARE_ARGUMENT, r"\\\1{\2}"), (_FRACTION, r"\\frac{\1}{\2}")):
        text = pattern.sub(brace, text)
    if degrees := _DEGREES.fullmatch(text):
        text = degrees[1]
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
