"""Whether two expressions are equal: exactly where they are numbers, at every point tried where they have variables.

No tolerance stands for a difference that is small in itself. Two numbers that agree to 60 digits count as equal only
once a proof is found, or once they agree to far more digits than either of them is written with.
"""

from collections.abc import Iterator

import sympy

from maxent_grpo.pipeline.answers.tokens import Unreadable

DIGITS = 60
MOST_PROVED = 150
"""Operations in an expression up to which a proof is tried, because its time grows fast."""
# Values of variables: signs, halves and whole numbers, so that roots, |x| and floors show what they are. The others
# are no root of anything that is written down.
_SEEDS = ("1.7320493817", "-2.2360211943", "0.3183178861", "3", "-2", "5/2", "-0.5773412907", "7.3890718243")
_STEPS = ("0.61803", "0.41421", "1.30279", "2", "3", "1", "0.71828", "1.14159")
MOST_MAGNITUDES = 12
_INVERSES = (sympy.asin, sympy.acos, sympy.atan, sympy.acot, sympy.asec, sympy.acsc)
_BENT = (sympy.Abs, sympy.Max, sympy.Min, sympy.sign, sympy.Piecewise, *_INVERSES)
_STEPPED = (sympy.floor, sympy.ceiling, sympy.Mod)


def are_equal(first: sympy.Expr, second: sympy.Expr) -> bool:
    """Return whether two expressions are equal.

    >>> x = sympy.Symbol("x")
    >>> are_equal((x + 1) ** 2, x**2 + 2 * x + 1), are_equal(sympy.sqrt(x**2), x)
    (True, False)
    >>> are_equal(sympy.Rational(1, 3), sympy.Rational(333333, 10**6))
    False
    """
    if first == second:
        return True
    if first.is_Rational and second.is_Rational:
        return False
    difference = first - second
    if difference.is_Rational or first.is_infinite or second.is_infinite:
        return bool(difference.is_zero)
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    return _are_equal_numbers(first, second) if not symbols else _are_equal_functions(first, second, symbols)


def check_value(expression: sympy.Expr) -> sympy.Expr:
    """Return an expression that has a value.

    Raises:
        Unreadable: if it has none, such as infinity minus infinity.
    """
    if expression.has(sympy.nan, sympy.zoo):
        raise Unreadable("an expression without a value")
    return expression


def _are_equal_numbers(first: sympy.Expr, second: sympy.Expr) -> bool:
    if not _agree(first.evalf(DIGITS), second.evalf(DIGITS), DIGITS):
        return False
    if _find_proof(first - second):
        return True
    # More digits than the numbers in them have: a difference that somebody wrote down shows.
    digits = 300 + 2 * max(_count_digits(first), _count_digits(second))
    return _agree(first.evalf(digits), second.evalf(digits), digits)


def _agree(first: sympy.Expr, second: sympy.Expr, digits: int) -> bool:
    """Return whether two numbers agree in all but the last 20 of their digits, relative to the larger one."""
    scale = max(abs(first), abs(second))
    if first == 0 or second == 0:  # nothing is small relative to zero, and what cancels leaves a last digit
        return bool(scale < sympy.Float(10, digits) ** -digits)
    return bool(abs(first - second) <= scale * sympy.Float(10, digits) ** (20 - digits))


def _count_digits(expression: sympy.Expr) -> int:
    return max((len(str(number.p)) + len(str(number.q)) for number in expression.atoms(sympy.Rational)), default=0)


def _find_proof(difference: sympy.Expr) -> bool:
    if sympy.expand(difference) == 0:
        return True
    return bool(difference.count_ops() <= MOST_PROVED and sympy.simplify(difference) == 0)


def _are_equal_functions(first: sympy.Expr, second: sympy.Expr, symbols: list[sympy.Symbol]) -> bool:
    if first.has(*_STEPPED) or second.has(*_STEPPED):
        return _find_proof(first - second)  # two steps may differ at whole numbers that nobody tries
    magnitudes = 0
    if _is_bent(first) or _is_bent(second):  # as far out as its bends can be
        magnitudes = min(2 + max(_count_digits(first), _count_digits(second)), MOST_MAGNITUDES)
    points = 0
    for point in (*list_points(symbols), *list_far_points(symbols, magnitudes)):
        values = _evaluate(first, point), _evaluate(second, point)
        if values[0] is None or values[1] is None:
            continue
        # Where one is real and the other is not, they have other domains: ln |x| is not ln x.
        if not _agree(values[0], values[1], DIGITS):
            return False
        points += 1
    return (points >= 3 and _is_small_everywhere(first - second)) or _find_proof(first - second)


def _is_small_everywhere(difference: sympy.Expr) -> bool:
    """Return whether a difference that is none at the points tried has no written-down part that is too small to see.

    A polynomial is zero or it is not, whatever its size; anything else was compared to 40 digits of numbers that
    have fewer than 20.
    """
    if difference.count_ops() <= MOST_PROVED and difference.is_polynomial(*difference.free_symbols):
        return bool(sympy.expand(difference) == 0)
    return _count_digits(difference) <= 20 or _find_proof(difference)


def _is_bent(expression: sympy.Expr) -> bool:
    """Return whether an expression follows another formula elsewhere: |x|, a root of a square, arctan(tan x)."""
    if expression.has(*_BENT):
        return True
    roots = (power for power in expression.atoms(sympy.Pow) if power.exp.is_Rational and not power.exp.is_Integer)
    return any(power.base.free_symbols for power in roots)


def list_far_points(symbols: list[sympy.Symbol], magnitudes: int) -> Iterator[dict[sympy.Symbol, sympy.Expr]]:
    """Yield the values of `list_points` times powers of ten, up to this one."""
    for power in range(1, magnitudes + 1):
        for point in list_points(symbols):
            yield {symbol: value * 10**power for symbol, value in point.items()}


def list_points(symbols: list[sympy.Symbol]) -> Iterator[dict[sympy.Symbol, sympy.Expr]]:
    """Yield values for the variables, other ones for each of them."""
    for seed, step in zip(_SEEDS, _STEPS, strict=True):
        start, by = sympy.Rational(seed), sympy.Rational(step)
        sign = -1 if start < 0 else 1
        yield {
            symbol: abs(start + sign * by * place) if symbol.is_positive else start + sign * by * place
            for place, symbol in enumerate(symbols)
        }


def _evaluate(expression: sympy.Expr, point: dict[sympy.Symbol, sympy.Expr]) -> sympy.Expr | None:
    """Return the value at a point, None where there is none."""
    value = expression.subs(point, simultaneous=True).evalf(DIGITS)
    return value if value.is_number and value.is_finite else None
