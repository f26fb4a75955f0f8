"""What an answer can be: kinds that are kept apart."""

from dataclasses import dataclass

import sympy

from maxent_grpo.pipeline.answers.units import Unit


@dataclass(frozen=True)
class Words:
    """Words, which are compared as words."""

    text: str


@dataclass(frozen=True)
class Opaque:
    """A text that this reader does not know; `too_large` where it is a number of too many digits."""

    text: str
    too_large: bool = False


@dataclass(frozen=True)
class Value:
    """A number or an expression, with its unit if it has one, and the text that it was read from."""

    expression: sympy.Expr
    unit: Unit | None = None
    percent: bool = False
    source: str = ""


@dataclass(frozen=True)
class Numeral:
    """A number written in a base."""

    value: int
    base: int


@dataclass(frozen=True)
class Clock:
    """A time of day as it is written; `half` is "am", "pm" or empty."""

    hours: int
    minutes: int
    seconds: int
    half: str


@dataclass(frozen=True)
class Group:
    """Several things: a "set", a bare "list" of values, a "sequence" with dots, a "tuple", "brackets", a "vector".

    Also a "ratio", and the "row" and "matrix" of rows.
    """

    kind: str
    items: tuple["Reading", ...]


@dataclass(frozen=True)
class Region:
    """A set of real numbers: intervals, or what an inequality in `variable` says."""

    points: sympy.Set
    variable: str | None = None


@dataclass(frozen=True)
class Inequality:
    """A relation `difference` < 0, <= 0 or != 0 between several variables."""

    difference: sympy.Expr
    sign: str


@dataclass(frozen=True)
class Assignment:
    """A single variable, or the head of a function, and the value that it is said to have."""

    name: str
    value: "Reading"


@dataclass(frozen=True)
class Equation:
    """An equation `difference` = 0."""

    difference: sympy.Expr


Reading = Words | Opaque | Value | Numeral | Clock | Group | Region | Inequality | Assignment | Equation
