r"""A strict reader of expressions, LaTeX or plain, into SymPy with exact numbers.

It reads arithmetic and algebra, where every sign has one meaning. What has two, such as `1/2x`, and what lies beyond
it, such as an integral, raises `Unreadable`: nothing is skipped, nothing guessed.
"""

import re

import sympy

from maxent_grpo.pipeline.answers.numerics import build_factorial, build_power, build_root, read_number
from maxent_grpo.pipeline.answers.tokens import Token, Unreadable, split_tokens

_CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "infty": sympy.oo}
_CLOSING = {"(": ")", "[": "]", "{": "}", "lfloor": "rfloor", "lceil": "rceil"}
_FACTOR_STARTS = frozenset("frac sqrt binom ( [ { lfloor lceil".split())  # noqa: SIM905 - a list would fill a screen
_LOG_BASE = sympy.Symbol("base of log", positive=True)  # 10 to some and e to others: kept unknown
_DERIVATIVE = re.compile(
    r"\\frac\s*\{\s*(?:d|\\partial)[^{}]*\}\s*\{\s*(?:d|\\partial)\s*[a-zA-Z]|d[a-z]?\s*/\s*d[a-z]"
)
_ROOTS = {"root": 2, "cbrt": 3}
_UNARY = {
    **{name: getattr(sympy, name) for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")},
    **{"arc" + name: getattr(sympy, "a" + name) for name in ("sin", "cos", "tan")},
    "exp": sympy.exp,
    "ln": sympy.log,
    "abs": sympy.Abs,
    "floor": sympy.floor,
    "ceil": sympy.ceiling,
}


def read_expression(text: str) -> sympy.Expr:
    r"""Return the expression that a text spells.

    Raises:
        Unreadable: if it spells none, or one that can be read in two ways.

    >>> read_expression(r"\frac12 + 2^{-1}"), read_expression("2*pi"), read_expression("1e-3")
    (1, 2*pi, 1/1000)
    """
    if _DERIVATIVE.search(text):
        raise Unreadable("a derivative, which is no fraction of products with d")
    reader = _Reader(split_tokens(text))
    expression = reader.read_sum()
    if reader.peek() is not None:
        raise Unreadable(f"{text!r} goes on where an expression ends")
    return expression


class _Reader:
    """Recursive descent over tokens, one method per precedence."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.place = 0
        self.open_bars = 0
        self.in_function = False

    def peek(self, ahead: int = 0) -> Token | None:
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else None

    def sees(self, *values: str) -> bool:
        token = self.peek()
        return token is not None and token.kind != "word" and token.value in values

    def take(self) -> Token:
        token = self.peek()
        if token is None:
            raise Unreadable("the expression ends too early")
        self.place += 1
        return token

    def accept(self, *values: str) -> bool:
        if self.sees(*values):
            self.place += 1
            return True
        return False

    def expect(self, value: str) -> None:
        if not self.accept(value):
            raise Unreadable(f"{value!r} is missing")

    def read_sum(self) -> sympy.Expr:
        total = self.read_signed_product()
        while self.sees("+", "-"):
            sign = -1 if self.take().value == "-" else 1
            total = total + sign * self.read_signed_product()
        return total

    def read_signed_product(self) -> sympy.Expr:
        sign = 1
        while self.sees("+", "-"):
            sign *= -1 if self.take().value == "-" else 1
        return sign * self.read_product()

    def read_product(self) -> sympy.Expr:
        product, after_slash = self.read_power(), False
        while True:
            if self.accept("*"):
                product, after_slash = product * self.read_signed_power(), False
            elif self.accept("/"):
                if after_slash:
                    raise Unreadable("two slashes in a row")
                product, after_slash = self.divide(product, self.read_signed_power()), True
            elif self.starts_factor():
                if after_slash:  # 1/2x is x/2 to some and 1/(2x) to others
                    raise Unreadable("a product after a slash")
                product = product * self.read_implied_factor(product)
            else:
                return product

    def read_implied_factor(self, product: sympy.Expr) -> sympy.Expr:
        r"""Read a factor without a sign before it; digits and \frac after digits are another matter."""
        before, token = self.tokens[self.place - 1], self.peek()
        if token is not None and token.kind == "number":
            raise Unreadable("a number right after a factor")
        if before.kind == "number" and token is not None and token.value == "frac":
            return self.read_mixed_fraction(product, before)
        return self.read_power()

    def read_mixed_fraction(self, product: sympy.Expr, whole: Token) -> sympy.Expr:
        r"""Return the factor that turns `1\frac12` into 3/2; a fraction that is not plain is a factor itself."""
        fraction = self.read_power()
        if not (fraction.is_Rational and whole.value.isdigit()):
            return fraction
        if product != sympy.Integer(whole.value) or not 0 < fraction < 1:
            raise Unreadable("a fraction after a number")
        return (product + fraction) / product if product else self.fail("a fraction after a zero")

    def fail(self, reason: str) -> sympy.Expr:
        raise Unreadable(reason)

    def divide(self, numerator: sympy.Expr, denominator: sympy.Expr) -> sympy.Expr:
        if denominator.is_zero:
            raise Unreadable("a division by zero")
        return numerator / denominator

    def starts_factor(self) -> bool:
        token = self.peek()
        if token is None:
            return False
        if token.value == "|" and token.kind == "sign":
            return self.open_bars == 0
        return token.kind in ("number", "letter", "word", "function") or token.value in _FACTOR_STARTS

    def read_signed_power(self) -> sympy.Expr:
        return -self.read_signed_power() if self.accept("-") else self.read_power()

    def read_power(self) -> sympy.Expr:
        base = self.read_atom()
        while self.accept("!"):
            base = build_factorial(base)
            if self.sees("!"):
                raise Unreadable("a double factorial")
        if not self.accept("^"):
            return base
        if self.accept("circ"):
            return self.convert_degrees(base)
        power = build_power(base, self.read_exponent())
        if self.sees("^", "!"):
            raise Unreadable("a power of a power without brackets")
        return power

    def convert_degrees(self, angle: sympy.Expr) -> sympy.Expr:
        """Return an angle in radians; elsewhere than in a function degrees are a unit, read before."""
        if not self.in_function:
            raise Unreadable("degrees within an expression")
        return angle * sympy.pi / 180

    def read_exponent(self) -> sympy.Expr:
        if self.accept("{"):
            exponent = self.read_sum()
            self.expect("}")
            return exponent
        if self.accept("-"):
            return -self.read_exponent()
        exponent = self.read_atom()
        if self.accept("^"):  # 2^3^2 in plain text is 2^(3^2)
            return build_power(exponent, self.read_exponent())
        return exponent

    def read_atom(self) -> sympy.Expr:  # noqa: PLR0911 - one return per kind of token
        token = self.take()
        if token.kind == "number":
            return read_number(token.value)
        if token.kind == "word":
            return sympy.Symbol(token.value)
        if token.kind == "letter":
            return _CONSTANTS[token.value] if token.value in _CONSTANTS else self.read_symbol(token.value)
        if token.kind == "function":
            return self.read_function(token.value)
        if token.value in _CLOSING:
            return self.read_brackets(token.value)
        if token.value == "|":
            return self.read_absolute_value()
        if token.value == "frac":
            numerator = self.read_argument()
            return self.divide(numerator, self.read_argument())
        if token.value == "binom":
            return sympy.binomial(self.read_argument(), self.read_argument())
        if token.value == "sqrt":
            return self.read_root()
        raise Unreadable(f"{token.value!r} where a value is due")

    def read_symbol(self, name: str) -> sympy.Expr:
        after = self.peek()
        if name in ("f", "g", "F", "G") and self.sees("("):
            self.take()
            argument = self.read_sum()
            self.expect(")")
            return sympy.Function(name)(argument)
        if after is not None and after.kind == "sign" and after.value == "'":
            self.take()
            return self.read_symbol(name + "'")
        return sympy.Symbol(name)

    def read_brackets(self, opening: str) -> sympy.Expr:
        bars, self.open_bars = self.open_bars, 0
        inner = self.read_sum()
        self.expect(_CLOSING[opening])
        self.open_bars = bars
        if opening == "lfloor":
            return sympy.floor(inner)
        return sympy.ceiling(inner) if opening == "lceil" else inner

    def read_absolute_value(self) -> sympy.Expr:
        self.open_bars += 1
        inner = self.read_sum()
        self.expect("|")
        self.open_bars -= 1
        return sympy.Abs(inner)

    def read_argument(self) -> sympy.Expr:
        r"""Read what stands in braces, or one character: `\frac12` is a half."""
        if self.accept("{"):
            inner = self.read_sum()
            self.expect("}")
            return inner
        token = self.peek()
        if token is not None and token.kind == "number" and len(token.value) > 1:
            if not token.value.isdigit():
                raise Unreadable("an argument without braces")
            self.tokens[self.place : self.place + 1] = [Token("number", digit) for digit in token.value]
        return self.read_atom()

    def read_root(self) -> sympy.Expr:
        degree: sympy.Expr = sympy.Integer(2)
        if self.accept("["):
            degree = self.read_sum()
            self.expect("]")
        token = self.peek()
        if token is not None and token.kind == "number":  # \sqrt12 is written for the root of 12
            return build_root(self.read_atom(), degree)
        return build_root(self.read_argument(), degree)

    def read_function(self, name: str) -> sympy.Expr:
        base, exponent = None, None
        for _ in range(2):
            if name == "log" and self.accept("_"):
                base = self.read_argument()
            elif self.accept("^"):
                exponent = self.read_exponent()
        outer, self.in_function = self.in_function, True
        argument = self.read_function_argument(name)
        self.in_function = outer
        if exponent == -1 and name in ("sin", "cos", "tan"):
            return _UNARY["arc" + name](argument)
        if name == "log":
            if argument.is_zero or base in (0, 1):
                raise Unreadable("a logarithm of zero")
            value = sympy.log(argument) / sympy.log(_LOG_BASE if base is None else base)
        else:
            degree = _ROOTS.get(name)
            value = _UNARY[name](argument) if degree is None else build_root(argument, sympy.Integer(degree))
        return value if exponent is None else build_power(value, exponent)

    def read_function_argument(self, name: str) -> sympy.Expr:
        """Read the brackets after a function's name, or the product up to the next sum or function."""
        if self.sees("(", "[", "{", "|"):
            inner = self.read_atom()
            if self.sees("^"):  # sin(x)^2: of the sine to some, of x to others
                raise Unreadable("a power after a function's argument")
            return inner
        if name in ("abs", "floor", "ceil", *_ROOTS):
            raise Unreadable("a function without brackets")
        product = self.read_signed_power()
        while self.starts_factor() and (token := self.peek()) is not None:
            if token.kind in ("function", "number") or token.value in ("(", "["):
                break
            product = product * self.read_power()
        if self.sees("/"):  # sin x/2: of x/2 to some, half the sine to others
            raise Unreadable("a slash after a function's argument")
        return product
