"""Whether two answers are equal: kinds first, then what they hold."""

import sympy

from maxent_grpo.pipeline.answers.equality import are_equal
from maxent_grpo.pipeline.answers.readings import (
    Assignment,
    Clock,
    Equation,
    Group,
    Inequality,
    Numeral,
    Opaque,
    Reading,
    Region,
    Value,
    Words,
)
from maxent_grpo.pipeline.answers.regions import are_same_points
from maxent_grpo.pipeline.answers.structure import make_region
from maxent_grpo.pipeline.answers.tokens import Unreadable
from maxent_grpo.pipeline.answers.units import Unit
from maxent_grpo.pipeline.answers.values import are_same_words, read_single

_UNORDERED = frozenset({"set", "list"})


def compare_readings(gold: Reading, answer: Reading) -> bool:  # noqa: PLR0911 - one return per kind
    """Return whether an answer equals the reference.

    Raises:
        Unreadable: if one of the two cannot be read.
    """
    if isinstance(gold, Opaque) or isinstance(answer, Opaque):
        raise Unreadable("an answer of an unknown kind")
    if isinstance(gold, Assignment) or isinstance(answer, Assignment):
        return _compare_assignments(gold, answer)
    if isinstance(gold, Region) or isinstance(answer, Region):
        return _compare_regions(gold, answer)
    if isinstance(gold, Group) and isinstance(answer, Group):
        return _compare_groups(gold, answer)
    if isinstance(gold, Value) and isinstance(answer, Value):
        return compare_values(gold, answer)
    if isinstance(gold, Equation) and isinstance(answer, Equation):
        return _is_multiple(gold.difference, answer.difference)
    if isinstance(gold, Inequality) and isinstance(answer, Inequality):
        return gold.sign == answer.sign and _is_multiple(gold.difference, answer.difference, sign=gold.sign)
    if isinstance(gold, Clock) and isinstance(answer, Clock):
        return _compare_clocks(gold, answer)
    if isinstance(gold, Words) and isinstance(answer, Words):
        return are_same_words(gold.text, answer.text)
    return isinstance(gold, Numeral) and gold == answer


def compare_values(gold: Value, answer: Value) -> bool:
    """Return whether two values are equal: units where both have one, a percentage as its number."""
    if gold.unit is None and answer.unit is None:
        return _compare_percentages(gold, answer)
    if gold.unit is None or answer.unit is None:
        bare, other = (gold, answer) if gold.unit is None else (answer, gold)
        if bare.percent:
            return False
        loose = read_single(bare.source, loose=True) if bare.source and bare.expression.free_symbols else bare
        if isinstance(loose, Value) and loose.unit is not None:
            return compare_values(loose, other)
        return are_equal(bare.expression, other.expression)
    (gold_powers, gold_size), (powers, size) = _measure_unit(gold.unit), _measure_unit(answer.unit)
    return gold_powers == powers and are_equal(gold.expression * gold_size, answer.expression * size)


def _measure_unit(unit: Unit) -> tuple[tuple[tuple[str, int], ...], sympy.Expr]:
    """Return the base units and the size in them; of degrees in radians, which is no fraction."""
    if unit.powers == (("degree", 1),):
        return (("radian", 1),), sympy.pi / 180 * sympy.Rational(unit.size.numerator, unit.size.denominator)
    return unit.powers, sympy.Rational(unit.size.numerator, unit.size.denominator)


def _compare_percentages(gold: Value, answer: Value) -> bool:
    if gold.percent == answer.percent:
        return are_equal(gold.expression, answer.expression)
    share, number = (gold, answer) if gold.percent else (answer, gold)
    if are_equal(share.expression / 100, number.expression):
        return True
    # 50 stands for 50% where the sign is left out; 0.5 is 50% already, and no half of one.
    is_share = share.expression.is_number and bool(abs(share.expression.evalf(20)) < 1)
    return not is_share and are_equal(share.expression, number.expression)


def _compare_assignments(gold: Reading, answer: Reading) -> bool:
    """Compare `v = value` with a value, and with another `v = value` of the same variable."""
    if isinstance(gold, Assignment) and isinstance(answer, Assignment):
        return gold.name == answer.name and compare_readings(gold.value, answer.value)
    assigned, other = (gold, answer) if isinstance(gold, Assignment) else (answer, gold)
    assert isinstance(assigned, Assignment)
    if isinstance(other, Equation):
        value = assigned.value
        if not isinstance(value, Value) or not value.expression.free_symbols or not assigned.name.isalnum():
            return False  # 2x = 10 is the problem, and x = 5 its answer
        return _is_multiple(other.difference, sympy.Symbol(assigned.name) - value.expression)
    return compare_readings(assigned.value, other)


def _compare_regions(gold: Reading, answer: Reading) -> bool:
    try:
        regions = make_region(gold), make_region(answer)
    except Unreadable:
        return False
    # A set of numbers is kept apart from intervals, but for the empty one and for what is both.
    names = {region.variable for region in regions} - {None}
    return len(names) < 2 and are_same_points(regions[0].points, regions[1].points)


def _compare_groups(gold: Group, answer: Group) -> bool:
    kinds = {gold.kind, answer.kind}
    if kinds <= _UNORDERED:
        return _compare_unordered(gold, answer)
    if kinds == {"ratio"}:
        return _compare_ratios(gold.items, answer.items)
    if kinds == {"matrix"} or len(kinds) == 1:
        return len(gold.items) == len(answer.items) and all(map(compare_readings, gold.items, answer.items))
    return False


def _compare_unordered(gold: Group, answer: Group) -> bool:
    """Match the items of two collections, each with one of the other; a set holds each of them once."""
    collections = [list(group.items) for group in (gold, answer)]
    names = [_list_names(items) for items in collections]
    # x = 1, y = 2 says more than 1, 2; x_1 = 1, x_2 = 2 does not.
    if names[0] != names[1] and len({name.partition("_")[0] for name in names[0] | names[1]}) > 1:
        return False
    if "set" in (gold.kind, answer.kind):
        collections = [_drop_repeats(items) for items in collections]
    rest = collections[1]
    if len(collections[0]) != len(rest):
        return False
    for item in collections[0]:
        place = next((place for place, other in enumerate(rest) if compare_readings(item, other)), None)
        if place is None:
            return False
        del rest[place]
    return True


def _list_names(items: list[Reading]) -> set[str]:
    return {item.name for item in items if isinstance(item, Assignment)}


def _drop_repeats(items: list[Reading]) -> list[Reading]:
    kept: list[Reading] = []
    for item in items:
        if not any(compare_readings(item, other) for other in kept):
            kept.append(item)
    return kept


def _compare_ratios(gold: tuple[Reading, ...], answer: tuple[Reading, ...]) -> bool:
    values = [[item.expression for item in items if isinstance(item, Value)] for items in (gold, answer)]
    if not len(values[0]) == len(values[1]) == len(gold) == len(answer):
        return False
    if any(value.is_zero for value in (*values[0], *values[1])):
        return all(map(are_equal, *values))
    pairs = list(zip(*values, strict=True))
    return all(are_equal(a * pairs[0][1], b * pairs[0][0]) for a, b in pairs[1:])


def _compare_clocks(gold: Clock, answer: Clock) -> bool:
    times = [(clock.hours, clock.minutes, clock.seconds) for clock in (gold, answer)]
    if not (gold.half and answer.half):
        plain, marked = (answer, gold) if gold.half else (gold, answer)
        if not marked.half or times[0] == times[1]:
            return times[0] == times[1]
        return plain.hours > 12 and _count_hours(plain) == _count_hours(marked) and times[0][1:] == times[1][1:]
    return gold.half == answer.half and times[0] == times[1]


def _count_hours(clock: Clock) -> int:
    return clock.hours if not clock.half else clock.hours % 12 + 12 * (clock.half == "pm")


def _is_multiple(first: sympy.Expr, second: sympy.Expr, *, sign: str = "=") -> bool:
    """Return whether an expression is a number, other than 0, times another; for `<` a positive one."""
    if first.free_symbols != second.free_symbols:
        return False
    ratio = sympy.cancel(first / second)
    return bool(ratio.is_number and ratio.is_nonzero and (sign in ("=", "!=") or ratio.is_positive))
