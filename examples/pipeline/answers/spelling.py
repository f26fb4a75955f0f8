r"""One spelling for what is written alike: characters, LaTeX commands, and what people put around an answer.

Every expression here is linear in the text: none repeats what can also be read another way.
"""

import re
import unicodedata

CURRENCY = "¤"
"""Stands for a dollar of money, where a dollar sign would mark a formula."""
DASH = "‒"
"""A dash between two numbers, which is a range to some and a difference to others."""
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_GREEK_NAMES = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi
    omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega
"""
_CHARACTERS = {
    "−": "-", "﹣": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "∗": "*", "÷": "/", "⁄": "/", "∕": "/", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "∞": r"\infty ", "π": r"\pi ", "√": r"\sqrt ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "∖": r"\setminus ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "º": r"^\circ ", "′": "'", "’": "'",
    "⟨": r"\langle ", "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
    "⌈": r"\lceil ", "⌉": r"\rceil ", "∣": "|", "。": ".", "\u200b": "", "\u2060": "", "\ufeff": "", "\u200e": "",
    **{letter: "\\" + name + " " for letter, name in zip(
        "αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΠΣΦΨΩ",
        _GREEK_NAMES.split(),
        strict=True,
    )},
}  # fmt: skip
_CHARACTER_TABLE = str.maketrans(_CHARACTERS)
_SAME_COMMANDS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le",
    "leqslant": "le", "geq": "ge", "geqslant": "ge", "neq": "ne", "cdot": "times",
    "ast": "times", "varnothing": "emptyset", "lbrace": "{", "rbrace": "}", "lvert": "vert", "rvert": "vert",
    "backslash": "setminus", "bar": "overline", "mathbf": "vec", "boldsymbol": "vec", "bm": "vec", "mathit": "vec",
    "overrightarrow": "vec", "textbf": "text", "textit": "text", "textrm": "text", "mathrm": "text", "mbox": "text",
    "operatorname": "text", "textsf": "text", "texttt": "text", "ldots": "dots", "cdots": "dots", "dotsc": "dots",
    "rightarrow": "to", "land": "and", "wedge": "and", "lor": "or", "vee": "or",
}  # fmt: skip
_DROPPED_NAMES = """
    left right big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle limits quad qquad thinspace nobreak
"""
_DROPPED_COMMANDS = frozenset(_DROPPED_NAMES.split())
_SPACES = frozenset(",;:!> ")
_COMMAND = re.compile(r"\\(?:([A-Za-z]+)\*?|(.))", re.DOTALL)
_REPLACEMENTS = {"times": "*", "div": "/", "le": "<=", "ge": ">=", "lt": "<", "gt": ">", "vert": "|"}
_SINGLE = re.compile(r"\\vec\s*(?:\{\s*([A-Za-z]|\d[\d.,]*)\s*\}|([A-Za-z])(?![A-Za-z]))")
_OVERLINE = re.compile(r"(\.\d*)\s*\\overline\s*(?:\{\s*(\d+)\s*\}|(\d))")
_UPRIGHT = re.compile(r"\\text\s*\{\s*((?:arc)?(?:sin|cos|tan)|ln|log|exp|[ei])\s*\}")
_DEGREE_BRACES = re.compile(r"\^\s*\{\s*\\circ\s*\}")
_EMPTY_TEXT = re.compile(r"\\text\s*\{[\s.,;:!]*\}")
_DOTTED = re.compile(r"(\.\d*)\\dot\s*\{?(\d)\}?")
_THIN_GROUPS = re.compile(r"(?<=\d)(?:,\\[!,]|\\[,!;:]|\{,\}|\{\\,\})(?=\d{3}(?!\d))")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
_WIDE_DASH = re.compile(r"(?<=\d)(\s*)[–—](?=\s*\d)")


def normalize_characters(text: str) -> str:
    r"""Return the text in plain characters: full-width digits, signs, powers and fractions of Unicode.

    >>> normalize_characters("－５"), normalize_characters("x²"), normalize_characters("1½")
    ('-5', 'x^{2}', '1\\frac{1}{2}')
    """
    text = _RAISED.sub(lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _LOWERED.sub(lambda match: "_{" + match[0].translate(_SUBSCRIPTS) + "}", text)
    text = _VULGAR.sub(lambda match: _spell_fraction(match[0]), text)
    text = unicodedata.normalize("NFKC", text.translate(_CHARACTER_TABLE)).translate(_CHARACTER_TABLE)
    return _WIDE_DASH.sub(DASH, text).replace("–", "-").replace("—", "-")


def _spell_fraction(character: str) -> str:
    numerator, _, denominator = unicodedata.normalize("NFKC", character).partition("⁄")
    return f"\\frac{{{numerator}}}{{{denominator}}}"


def normalize_commands(text: str) -> str:
    r"""Return the text with one command for each meaning, no marks of formulas and no commands for space.

    >>> [normalize_commands(text) for text in (r"$\dfrac{1}{2}\cdot\mathrm{cm}$", r"1\,000", r"\$5")]
    ['\\frac{1}{2}*\\text{cm}', '1000', '¤5']
    """
    text = _THIN_GROUPS.sub("", text)
    text = _TIMES_TEN.sub("*", _COMMAND.sub(_rename_command, text))
    text = _DEGREE_BRACES.sub(r"^\\circ ", _EMPTY_TEXT.sub("", text))
    text = _UPRIGHT.sub(lambda match: match[1] if len(match[1]) == 1 else f"\\{match[1]} ", text)
    text = _OVERLINE.sub(lambda match: f"{match[1]}\\overline{{{match[2] or match[3]}}}", text)
    text = _SINGLE.sub(lambda match: match[1] or match[2], _DOTTED.sub(r"\1\\overline{\2}", text))
    # An odd dollar sign marks no formula: it is money.
    if text.count("$") % 2:
        text = re.sub(r"\$(?=\s?[\d.])", CURRENCY, text)
    return " ".join(text.replace("$", " ").split())


def _rename_command(match: re.Match[str]) -> str:
    name, sign = match[1], match[2]
    if sign is not None:
        if sign in _SPACES or sign in "()[]\n":
            return " "
        return {"$": CURRENCY, "%": "%", "\\": "\\\\", "|": "|"}.get(sign, "\\" + sign)
    name = _SAME_COMMANDS.get(name, name)
    if name in _DROPPED_COMMANDS:
        return " " if "quad" in name else ""
    # What follows a command in letters must stay apart from it once it is a sign, and a letter from a command.
    return _REPLACEMENTS[name] if name in _REPLACEMENTS else "\\" + name


# `x**2` is a power: bold text has nothing right before and after it.
_BOLD = re.compile(r"(?<![\w)}*])\*\*(?=[^\s*])([^*]*)\*\*(?![\w({*])")
_MARKS = ("**", "__", "`", "*", '"', "'")
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore|and|finally)[,:]?\s+)?"
    r"(?:(?:the\s+|my\s+|our\s+)?(?:(?:final|correct)\s+)?(?:answer|result|solution|value)(?:\s+is|\s*[:=])\s*(?:[:=]\s*)?"
    r"|(?:it\s+is|it's)\s+(?=[-+\d$\\(\[.])|=\s*(?![=<>])|\\therefore\s+|####?\s+)",
    re.IGNORECASE,
)
_TEXT_LEAD = re.compile(r"\\text\s*\{([^{}]*)\}")


def strip_decorations(text: str) -> str:
    r"""Return an answer without markdown, without "The answer is" before it and without a full stop after it.

    >>> [strip_decorations(text) for text in ("**73**", "The answer is: 3.", r"\text{Answer: }5", "`x+1`")]
    ['73', '3', '5', 'x+1']
    """
    for _ in range(8):  # decorations within decorations, a few deep
        before = text
        text = _strip_marks(_BOLD.sub(r"\1", text).strip())
        lead = _TEXT_LEAD.match(text)
        if lead and (inner := _LEAD.fullmatch(lead[1].strip() + " ")) and inner[0].strip():
            text = text[lead.end() :]
        if (match := _LEAD.match(text)) and match.end() < len(text):
            text = text[match.end() :]
        if text.endswith((".", "!", ",", ";")) and not text.endswith(("..", "\\,", "\\;", "\\!", "\\.")):
            text = _strip_stop(text)
        if text == before:
            break
    return text.strip()


def _strip_stop(text: str) -> str:
    """Drop a sign at the end that ends a sentence; after a number or a variable `!` is a factorial."""
    if text.endswith("!"):
        return text[:-1] if len(text) > 3 and text[:-1].replace(" ", "").isalpha() else text
    return text[:-1]


def _strip_marks(text: str) -> str:
    for mark in _MARKS:
        inner = text[len(mark) : -len(mark)]
        if (
            inner
            and text.startswith(mark)
            and text.endswith(mark)
            and mark not in inner
            and len(text) > 2 * len(mark)
        ):
            return inner.strip()
    return text
