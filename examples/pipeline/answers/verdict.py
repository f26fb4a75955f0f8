r"""The verdict on an answer, given the reference: the reader first, math-verify for a formula beyond it."""

import sympy

from maxent_grpo.pipeline.answers.comparison import compare_readings, compare_values
from maxent_grpo.pipeline.answers.engine import read_formula
from maxent_grpo.pipeline.answers.readings import Assignment, Opaque, Reading, Value
from maxent_grpo.pipeline.answers.structure import MOST_CHARACTERS, read_answer, spell_plainly
from maxent_grpo.pipeline.answers.tokens import Unreadable


def compare_answers(gold: str, answer: str) -> bool:
    r"""Return whether an answer equals the reference.

    Raises:
        Unreadable: if the reference says nothing.

    >>> compare_answers(r"\frac{1}{2}", "0.5"), compare_answers("5 cm", "5 m"), compare_answers("(1,2)", r"\{1,2\}")
    (True, False, False)
    """
    if len(answer) > MOST_CHARACTERS or len(gold) > MOST_CHARACTERS:
        return gold.strip() == answer.strip()
    plain_gold, plain_answer = spell_plainly(gold), spell_plainly(answer)
    if not plain_gold:
        raise Unreadable(f"the reference {gold[:80]!r} says nothing")
    if plain_gold == plain_answer:
        return True
    readings = read_answer(gold), read_answer(answer)
    try:
        if any(isinstance(reading, Opaque) for reading in readings):
            return _compare_formulas(*readings)
        return compare_readings(*readings)
    except (Unreadable, ArithmeticError, TypeError, AttributeError, NotImplementedError):
        return False


def _compare_formulas(gold: Reading, answer: Reading) -> bool:
    """Compare what the reader does not know: letters alone by spelling, formulas as math-verify reads them."""
    if isinstance(gold, Opaque) and isinstance(answer, Opaque):
        texts = [reading.text.replace(" ", "") for reading in (gold, answer)]
        # Spaces between digits may separate numbers, so only a text without digits may lose them.
        if texts[0] == texts[1] and not any(character.isdigit() for character in texts[0]):
            return True
    if any(isinstance(reading, Opaque) and reading.too_large for reading in (gold, answer)):
        return False  # a number too large to compute with equals none that is not
    values = [_read_value(reading) for reading in (gold, answer)]
    return compare_values(*values)


def _read_value(reading: Reading) -> Value:
    if isinstance(reading, Assignment):
        reading = reading.value
    if isinstance(reading, Value):
        return reading
    if not isinstance(reading, Opaque):
        raise Unreadable("a formula and something else")
    expression: sympy.Expr = read_formula(reading.text)
    return Value(expression, source=reading.text)
