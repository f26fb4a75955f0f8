r"""What an answer is as a whole: a set, a tuple, an interval, a list, an equation, or a single value."""

import re
from dataclasses import replace

import sympy

from maxent_grpo.pipeline.answers.equality import are_equal
from maxent_grpo.pipeline.answers.layout import (
    COLON,
    CUP,
    RELATION,
    SEPARATOR,
    find_enclosure,
    join_thousands,
    mark_brackets,
    measure_depths,
    split_top,
)
from maxent_grpo.pipeline.answers.numerics import TooLarge
from maxent_grpo.pipeline.answers.readings import Assignment, Equation, Group, Opaque, Reading, Region, Value, Words
from maxent_grpo.pipeline.answers.regions import REALS, build_interval, read_inequality
from maxent_grpo.pipeline.answers.spelling import normalize_characters, normalize_commands, strip_decorations
from maxent_grpo.pipeline.answers.tokens import Unreadable
from maxent_grpo.pipeline.answers.values import read_clock, read_single

MOST_CHARACTERS = 2_000
MOST_ITEMS = 64
MOST_DEPTH = 40
_DOTS = re.compile(r"\\dots|\.\.\.+|…")
_CHOICE = re.compile(r"\(([A-Za-z])\)|([A-Z])[).:]")
_WHOLE_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_MEMBER = re.compile(r"([A-Za-z]|\\[a-z]+)\s*\\in(?![A-Za-z])\s*")
_BUILDER = re.compile(r"[a-z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid(?![A-Za-z])|:|\|)\s*")
_HEAD = re.compile(r"[A-Za-z]'?\s*\(\s*[A-Za-z]\s*(?:,\s*[a-z]\s*)*\)|[A-Za-z]\^\{-1\}\s*\(\s*[a-z]\s*\)")
_MATRIX = re.compile(r"\\begin\s*\{([pb]?matrix)\}")
_SETS = {r"\emptyset": sympy.S.EmptySet, r"\mathbb{R}": REALS}
_SIGNS = {r"\ne": "!="}


def read_answer(text: str) -> Reading:
    r"""Return what an answer says; `Opaque` where this reader does not know it.

    >>> read_answer(r"**$\{1, 2\}$**").kind, read_answer("x = 1,000").value.expression, read_answer("[0,1)").points
    ('set', 1000, Interval.Ropen(0, 1))
    """
    plain = spell_plainly(text)
    if len(plain) > MOST_CHARACTERS:
        return Opaque(plain)
    try:
        if max(measure_depths(plain), default=0) > MOST_DEPTH:  # each level is read once for every one around it
            return Opaque(plain)
        return _read_whole(plain)
    except TooLarge:
        return Opaque(plain, too_large=True)
    except (Unreadable, RecursionError, ArithmeticError, TypeError, AttributeError):
        return Opaque(plain)


def spell_plainly(text: str) -> str:
    """Return an answer in plain characters, without decorations."""
    text = strip_decorations(normalize_characters(text))
    plain = strip_decorations(mark_brackets(normalize_commands(text)))
    whole = _WHOLE_TEXT.fullmatch(plain)
    # \text{5} is 5; words stay words.
    return whole[1].strip() if whole and not re.search(r"[A-Za-z]{2}", whole[1]) else plain


def _read_whole(text: str) -> Reading:
    if choice := _CHOICE.fullmatch(text):
        return Value(sympy.Symbol(choice[1] or choice[2]), source=text)
    return _read_part(join_thousands(text, enclosed=text[:1] in "([⦃⟨" and find_enclosure(text) is not None))


def _read_part(text: str) -> Reading:  # noqa: PLR0911 - one return per kind
    while (pair := find_enclosure(text)) and pair[0] == "{":
        text = pair[1]
    if not text:
        raise Unreadable("nothing")
    if text in _SETS:
        return Region(_SETS[text])
    if _MATRIX.match(text):
        return read_matrix(text)
    if r"\setminus" in text or CUP.search(text):
        return read_union(text)
    parts, connectors = split_top(text, SEPARATOR)
    if len(parts) > 1:
        return read_list(parts, connectors)
    if (member := _MEMBER.match(text)) and not RELATION.search(text):
        return _name_member(member[1], _read_part(text[member.end() :]))
    sides, relations = split_top(text, RELATION)
    if relations:
        return read_relation(sides, [_SIGNS.get(relation, relation) for relation in relations])
    if pair and (group := read_group(*pair)) is not None:
        return group
    if r"\pm" in text or r"\mp" in text:
        return read_signs(text)
    if len(ratio := split_top(text, COLON)[0]) > 1 and read_clock(text) is None:
        return Group("ratio", tuple(map(_read_part, ratio)))
    return read_single(text)


def _name_member(name: str, members: Reading) -> Reading:
    if isinstance(members, Region):
        return replace(members, variable=name)
    if isinstance(members, Group) and members.kind == "tuple" and len(members.items) == 2:
        return Region(make_region(members).points, name)
    return members


def read_matrix(text: str) -> Group:
    match = _MATRIX.match(text)
    assert match is not None
    end = f"\\end{{{match[1]}}}"
    body = text[match.end() :]
    if body.count("\\end") != 1 or not body.endswith(end):
        raise Unreadable("more than a matrix")
    rows = [row for row in body.removesuffix(end).split("\\\\") if row.strip()]
    cells = [tuple(read_single(cell) for cell in row.split("&")) for row in rows]
    return Group("matrix", tuple(Group("row", row) for row in cells))


def read_union(text: str) -> Region:
    if r"\setminus" in text:
        whole, *taken = text.split(r"\setminus")
        points = make_region(_read_part(whole.strip())).points
        for part in taken:
            points = sympy.Complement(points, make_region(_read_part(part.strip())).points)
        return Region(points)
    member = _MEMBER.match(text)
    parts, _ = split_top(text[member.end() :] if member else text, CUP)
    if len(parts) == 1:
        raise Unreadable("a union within something else")
    points = sympy.Union(*(make_region(_read_part(part)).points for part in parts))
    return Region(points, member[1] if member else None)


def make_region(reading: Reading) -> Region:
    """Return the real numbers that a reading names: an interval, or a set of numbers beside one."""
    if isinstance(reading, Region):
        return reading
    if isinstance(reading, Group) and reading.kind in ("set", "tuple", "brackets"):
        numbers = [item.expression for item in reading.items if isinstance(item, Value)]
        if len(numbers) == len(reading.items):
            if reading.kind == "set":
                return Region(sympy.FiniteSet(*numbers))
            if len(numbers) == 2:
                return Region(build_interval(*numbers, *("()" if reading.kind == "tuple" else "[]")))
    raise Unreadable("no set of real numbers")


def read_list(parts: list[str], connectors: list[str]) -> Reading:
    """Return what stands between commas, "and" and "or"; inequalities that are joined are one."""
    if not parts[-1]:
        parts = parts[:-1]
    if len(parts) > MOST_ITEMS or not all(parts):
        raise Unreadable("a list with nothing between two separators, or of too many items")
    if any(_DOTS.search(part) for part in parts):
        return _read_dots("sequence", parts)
    items = tuple(_read_part(part) for part in parts)
    joined = {connector.split()[-1] for connector in connectors}
    if joined in ({"and"}, {"or"}) and (region := _join_regions(items, joined.pop())) is not None:
        return region
    flat = [item.items if isinstance(item, Group) and item.kind == "list" else (item,) for item in items]
    return Group("list", tuple(item for group in flat for item in group))


def _read_dots(kind: str, parts: list[str]) -> Group:
    """Return things in a row with dots among them, which keep their order and the place of the dots."""
    if not all(parts):
        raise Unreadable("nothing between two separators")
    return Group(kind, tuple(Words("...") if _DOTS.fullmatch(part) else _read_part(part) for part in parts))


def _join_regions(items: tuple[Reading, ...], connector: str) -> Region | None:
    regions = [item for item in items if isinstance(item, Region) and item.variable]
    if len(regions) < len(items) or len({region.variable for region in regions}) > 1:
        return None
    join = sympy.Union if connector == "or" else sympy.Intersection
    return Region(join(*(region.points for region in regions)), regions[0].variable)


def read_group(opening: str, inside: str, closing: str) -> Reading | None:
    """Return what a pair of brackets holds; None where the brackets only group an expression."""
    if opening == "⦃":
        return read_set(inside)
    parts, connectors = split_top(inside, re.compile("[,;]"))
    if opening == "⟨":
        return Group("vector", tuple(map(_read_part, parts)))
    if not connectors:
        return Group("brackets", (_read_part(inside),)) if opening == "[" else _read_inside(inside, opening + closing)
    if any(_DOTS.search(part) for part in parts):
        return _read_dots(f"dotted {opening}{closing}", parts)
    items = tuple(map(_read_part, parts))
    if len(items) == 2 and opening + closing in ("(]", "[)"):
        low, high = items
        if isinstance(low, Value) and isinstance(high, Value):
            return Region(build_interval(low.expression, high.expression, opening, closing))
    if opening + closing not in ("()", "[]"):
        raise Unreadable("brackets of two kinds")
    group = Group("tuple" if opening == "(" else "brackets", items)
    infinite = any(isinstance(item, Value) and item.expression.is_infinite for item in items)
    return make_region(group) if infinite else group


def _read_inside(inside: str, brackets: str) -> Reading | None:
    if brackets != "()":
        raise Unreadable("brackets of two kinds")
    try:
        return _read_part(inside)
    except Unreadable:
        return None


def read_set(inside: str) -> Reading:
    if not inside:
        return Region(sympy.S.EmptySet)
    if builder := _BUILDER.match(inside):
        described = _read_part(inside[builder.end() :])
        if not isinstance(described, Region):
            raise Unreadable("a set that is described")
        return replace(described, variable=None)
    parts, _ = split_top(inside, SEPARATOR)
    if any(_DOTS.search(part) for part in parts) or not all(parts):
        return _read_dots("dotted set", parts)
    items: list[Reading] = []
    for item in map(_read_part, parts):
        items += item.items if isinstance(item, Group) and item.kind == "list" else [item]
    return Group("set", tuple(items))


def read_signs(text: str) -> Group:
    r"""Return both values of an expression with \pm."""
    upper = text.replace(r"\pm", "+").replace(r"\mp", "-")
    lower = text.replace(r"\pm", "-").replace(r"\mp", "+")
    return Group("list", (read_single(upper), read_single(lower)))


def read_relation(sides: list[str], signs: list[str]) -> Reading:
    if set(signs) == {"="}:
        return read_equation(sides)
    if set(signs) <= {"<", "<="} or set(signs) <= {">", ">="} or signs == ["!="]:
        values = [_read_plain(side) for side in sides]
        links = zip(values, signs, values[1:], strict=False)
        relations = [read_inequality(left, sign, right) for left, sign, right in links]
        if len(relations) == 1:
            return relations[0]
        regions = [relation for relation in relations if isinstance(relation, Region)]
        if len(regions) == len(relations) and len({region.variable for region in regions}) == 1:
            return Region(sympy.Intersection(*(region.points for region in regions)), regions[0].variable)
    raise Unreadable("a relation of another kind")


def _read_plain(text: str) -> sympy.Expr:
    reading = read_single(text)
    if not isinstance(reading, Value) or reading.unit or reading.percent:
        raise Unreadable("a side of a relation that is no expression")
    return reading.expression


def read_equation(sides: list[str]) -> Reading:  # noqa: PLR0911 - one return per form
    """Return the value of a variable, the value of sides that are all equal, or an equation."""
    head = sides[0]
    if _HEAD.fullmatch(head):
        return Assignment(re.sub(r"\s", "", head), _read_last(sides[1:]))
    first = _read_part(head)
    if isinstance(first, Value) and first.expression.is_Symbol and not first.unit:
        value = _read_last(sides[1:])
        if not (isinstance(value, Value) and first.expression in value.expression.free_symbols):
            return Assignment(first.expression.name, value)
    if isinstance(first, Group) and first.kind == "tuple":
        names = [
            item.expression.name for item in first.items if isinstance(item, Value) and item.expression.is_Symbol
        ]
        if len(names) == len(set(names)) == len(first.items):
            return Assignment(",".join(names), _read_last(sides[1:]))
    if isinstance(first, Words) and len(sides) == 2:
        return Assignment(first.text, _read_part(sides[1]))
    values = [_read_plain(side) for side in sides]
    if len(sides) == 2 and values[1].is_Symbol and not values[0].free_symbols:
        return Assignment(values[1].name, Value(values[0]))
    if all(are_equal(values[0], value) for value in values[1:]):
        return Value(values[-1], source=sides[-1])
    if len(sides) > 2:
        raise Unreadable("a chain of equations that does not hold")
    return Equation(values[0] - values[1])


def _read_last(sides: list[str]) -> Reading:
    """Return the last of sides that are all equal, so that nobody guesses twice in one answer."""
    readings = [_read_part(side) for side in sides]
    last = readings[-1]
    for reading in readings[:-1]:
        if not (isinstance(reading, Value) and isinstance(last, Value)):
            raise Unreadable("a chain of equations between other things than numbers")
        if not are_equal(reading.expression, last.expression):
            raise Unreadable("a chain of equations that does not hold")
    return last
