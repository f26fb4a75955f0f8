"""Exact numbers, and the powers, roots and factorials that stay within reach."""

import re
from fractions import Fraction

import sympy

from maxent_grpo.pipeline.answers.tokens import Unreadable

MOST_BITS = 40_000
MOST_FACTORIAL = 3_000
MOST_SYMBOLIC_POWER = 1_000
_NUMBER = re.compile(r"(\d*)(?:\.(\d*))?(?:\\overline\{(\d+)\})?(?:[eE]([+-]?\d+))?")


class TooLarge(Unreadable):
    """A number of more digits than anything here computes with."""


def read_number(text: str) -> sympy.Rational:
    r"""Return the number that digits spell, repeating ones included.

    >>> read_number("0.125"), read_number(r"0.1\overline{6}"), read_number("2.5e-3")
    (1/8, 1/6, 1/400)
    """
    match = _NUMBER.fullmatch(text)
    if match is None or not (match[1] or match[2]) or (match[3] and (match[2] is None or match[4])):
        raise Unreadable(f"{text!r} is no number")
    if (match[1] or "")[:2] == "00":  # the end of a number that was cut, as in 1,00
        raise Unreadable(f"{text[:20]!r} starts with zeros")
    whole, part, repeating, exponent = match[1] or "0", match[2] or "", match[3], int(match[4] or 0)
    if abs(exponent) * 4 + len(text) * 4 > MOST_BITS:
        raise TooLarge(f"{text[:20]!r} has too many digits")
    value = Fraction(int(whole + part), 10 ** len(part))
    if repeating:
        value += Fraction(int(repeating), (10 ** len(repeating) - 1) * 10 ** len(part))
    value *= Fraction(10) ** exponent
    return sympy.Rational(value.numerator, value.denominator)


def build_factorial(number: sympy.Expr) -> sympy.Expr:
    """Return n!, for a whole number that is not too large or for a symbol."""
    if number.is_number and not (number.is_Integer and number >= 0):
        raise Unreadable("the factorial of no whole number")
    if number.is_Integer and number > MOST_FACTORIAL:
        raise TooLarge("a factorial of too many digits")
    return sympy.factorial(number)


def build_power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    """Return base^exponent; the root of an odd degree of a negative number is real, as in the schoolbook.

    >>> build_power(sympy.Integer(-8), sympy.Rational(1, 3)), build_power(sympy.Integer(2), sympy.Integer(10))
    (-2, 1024)
    """
    if exponent.is_infinite or (base.is_zero and not exponent.is_positive):
        raise Unreadable("a power without a value")
    if exponent.is_Rational:
        if base.is_Rational and count_bits(base) * abs(exponent) > MOST_BITS:
            raise TooLarge("a power of too many digits")
        if not base.is_Rational and abs(exponent) > MOST_SYMBOLIC_POWER:
            raise TooLarge("a power that is too high")
        if exponent.q > 1 and exponent.q % 2 == 1:
            return build_root(base, sympy.Integer(exponent.q)) ** exponent.p
    elif exponent.is_number and base.is_number and is_out_of_reach(base, exponent):
        raise TooLarge("a power of too many digits")
    return base**exponent


def is_out_of_reach(base: sympy.Expr, exponent: sympy.Expr) -> bool:
    """Return whether a power of two numbers, one of them irrational, has too many digits to compute with."""
    size = abs(exponent.evalf(10)) * abs(sympy.log(base).evalf(10))
    return not size.is_number or bool(size > MOST_BITS)


def build_root(base: sympy.Expr, degree: sympy.Expr) -> sympy.Expr:
    """Return the root of a degree: real where the degree is odd, whatever the sign."""
    if degree.is_zero:
        raise Unreadable("a root of degree zero")
    if not (degree.is_Integer and degree % 2 == 1 and degree > 0):
        return base ** (1 / degree)
    if base.is_nonnegative:
        return base ** (1 / degree)
    if base.is_negative:
        return -((-base) ** (1 / degree))
    if base.is_number:
        return base ** (1 / degree)  # of a complex number: the principal one
    return sympy.sign(base) * sympy.Abs(base) ** (1 / degree)


def count_bits(number: sympy.Rational) -> int:
    """Return the size of a rational number."""
    bits = max(int(abs(number.p)).bit_length(), int(number.q).bit_length())
    return 0 if number.q == abs(number.p) == 1 else bits
