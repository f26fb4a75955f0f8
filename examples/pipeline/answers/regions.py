"""Sets of real numbers: intervals, unions, and the inequalities in one variable that describe them."""

import sympy

from maxent_grpo.pipeline.answers.equality import are_equal
from maxent_grpo.pipeline.answers.readings import Inequality, Region
from maxent_grpo.pipeline.answers.tokens import Unreadable

_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
REALS = sympy.S.Reals


def build_interval(low: sympy.Expr, high: sympy.Expr, opening: str, closing: str) -> sympy.Set:
    """Return the interval between two brackets.

    >>> build_interval(sympy.Integer(0), sympy.oo, "[", ")")
    Interval(0, oo)
    """
    if low.is_extended_real is False or high.is_extended_real is False or (high - low).is_negative:
        raise Unreadable("an interval whose ends are in no order")
    if (low == -sympy.oo and opening == "[") or (high == sympy.oo and closing == "]"):
        raise Unreadable("an interval that includes infinity")
    return sympy.Interval(low, high, left_open=opening == "(", right_open=closing == ")")


def read_inequality(left: sympy.Expr, sign: str, right: sympy.Expr) -> Region | Inequality:
    """Return what an inequality says: of one variable, the numbers that it admits.

    >>> x = sympy.Symbol("x")
    >>> read_inequality(2 * x, ">", sympy.Integer(6)).points
    Interval.open(3, oo)
    """
    difference = left - right
    symbols = difference.free_symbols
    if not symbols:
        raise Unreadable("an inequality without a variable")
    if len(symbols) == 1:
        (symbol,) = symbols
        return Region(_solve_inequality(difference, sign, symbol), symbol.name)
    if sign in (">", ">="):
        difference, sign = -difference, _FLIPPED[sign]
    return Inequality(difference, sign)


def _solve_inequality(difference: sympy.Expr, sign: str, symbol: sympy.Symbol) -> sympy.Set:
    slope = sympy.diff(difference, symbol)
    if not slope.is_number:
        return _solve_curve(difference, sign, symbol)
    bound = -difference.subs(symbol, 0) / slope
    if slope.is_negative:
        sign = _FLIPPED[sign]
    elif not slope.is_positive:
        raise Unreadable("an inequality whose slope has no sign")
    if sign == "!=":
        return sympy.Complement(REALS, sympy.FiniteSet(bound))
    if sign[0] == "<":
        return sympy.Interval(-sympy.oo, bound, right_open=sign == "<")
    return sympy.Interval(bound, sympy.oo, left_open=sign == ">")


def _solve_curve(difference: sympy.Expr, sign: str, symbol: sympy.Symbol) -> sympy.Set:
    real = sympy.Symbol(symbol.name, real=True)
    relation = sympy.Rel(difference.subs(symbol, real), 0, sign)
    try:
        return sympy.solve_univariate_inequality(relation, real, relational=False)
    except (NotImplementedError, ValueError, TypeError) as error:
        raise Unreadable("an inequality that is not solved") from error


def are_same_points(first: sympy.Set, second: sympy.Set) -> bool:
    """Return whether two sets of real numbers are the same: piece by piece, end by end."""
    if first == second:
        return True
    pieces = [_list_pieces(points) for points in (first, second)]
    return len(pieces[0]) == len(pieces[1]) and all(
        a[2:] == b[2:] and are_equal(a[0], b[0]) and are_equal(a[1], b[1]) for a, b in zip(*pieces, strict=True)
    )


def _list_pieces(points: sympy.Set) -> list[tuple[sympy.Expr, sympy.Expr, bool, bool]]:
    """Return (low, high, whether the low end is out, whether the high end is out) of each piece, in order."""
    pieces = []
    for piece in points.args if isinstance(points, sympy.Union) else (points,):
        if isinstance(piece, sympy.FiniteSet):
            pieces += [(point, point, False, False) for point in piece]
        elif isinstance(piece, sympy.Interval):
            pieces.append((piece.start, piece.end, bool(piece.left_open), bool(piece.right_open)))
        else:
            raise Unreadable("a set that is no union of intervals")
    return sorted(pieces, key=lambda piece: (float(piece[0].evalf()), piece[2])) if len(pieces) > 1 else pieces
