r"""math-verify's reader of LaTeX, for what lies beyond the grammar here: sums, integrals, limits, determinants.

It only reads. What is equal is decided here, because on its own it compares to six decimals, lowercases variables,
reads words as products and takes the last side of a relation that it does not know.
"""

import re

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from math_verify.grader import should_treat_as_complex

from maxent_grpo.pipeline.answers.equality import check_value
from maxent_grpo.pipeline.answers.tokens import GREEK, Unreadable

_COMMAND = re.compile(r"\\([A-Za-z]+|.)")
_OPERATORS = frozenset(["sum", "prod", "int", "iint", "lim", "det", "gcd", "max", "min"])
_DERIVATIVE = re.compile(r"\\frac\s*\{\s*d\s*\}")
_READ_NAMES = """
    frac sqrt binom pi infty to times cdot le sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan exp ln log
    lfloor rfloor lceil rceil begin end partial
"""
_KNOWN = _OPERATORS | GREEK | frozenset(_READ_NAMES.split()) | {"\\", "{"}
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{vmatrix\}")
_WORD = re.compile(r"(?<![A-Za-z\\])(?!d[A-Za-z](?![A-Za-z]))[A-Za-z]{2}")
_RELATION = re.compile("[<>;:⦃⦄⟨⟩¤%?]|(?<!=)=(?!=)")
_BOUND = re.compile(r"_\s*\{[^{}]*\}")
_LONG_DECIMAL = re.compile(r"\d*\.\d{12}|\d{12}\d*\.\d")
_CONFIG = ConversionConfig(lowercase_symbols=False)


def read_formula(text: str) -> sympy.Expr:
    r"""Return the expression that a formula spells.

    Raises:
        Unreadable: if it is none, or uses anything that is not known here to be read rightly.

    >>> read_formula(r"\sum_{k=1}^{10} k"), read_formula(r"\int_0^1 x dx")
    (55, 1/2)
    """
    check_formula(text)
    try:
        formula = latex2sympy(
            text.replace("*", r"\cdot "),
            is_real=not should_treat_as_complex(text),
            convert_degrees=False,
            normalization_config=None,
            conversion_config=_CONFIG,
        )
        if not isinstance(formula, sympy.Expr) or isinstance(formula, sympy.MatrixExpr):
            raise Unreadable("no expression")
        formula = formula.doit()
    except Exception as error:  # its parser raises whatever its grammar generator does
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    exact = {number: sympy.Rational(str(number)) for number in formula.atoms(sympy.Float)}
    plain = {symbol: sympy.Symbol(symbol.name) for symbol in formula.free_symbols}
    return check_value(formula.xreplace(exact | plain))


def check_formula(text: str) -> None:
    """Raise Unreadable for a formula that the engine is known or feared to misread."""
    commands = set(_COMMAND.findall(text))
    if not (commands & _OPERATORS or "{vmatrix}" in text or _DERIVATIVE.search(text)):
        raise Unreadable("nothing that the engine is for")
    text = _ENVIRONMENT.sub("", text)
    if not commands <= _KNOWN or _WORD.search(text) or _LONG_DECIMAL.search(text):
        raise Unreadable("commands, words or long decimals that the engine does not read")
    if _RELATION.search(_BOUND.sub("", text)) or ("," in text and not commands & {"gcd", "max", "min"}):
        raise Unreadable("a relation or a list")
