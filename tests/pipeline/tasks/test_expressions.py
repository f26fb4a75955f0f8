import ast
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maxent_grpo.pipeline.tasks.expressions import MAX_DEPTH, arrangements, evaluate, leaves, mode_key, parse, render

N_MAX = 8
SYMBOLS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}

trees = st.recursive(
    st.integers(0, 999_999_999),
    lambda children: st.tuples(st.sampled_from("+-*/"), children, children),
    max_leaves=N_MAX,
)


def tree_by_python(text):
    """Return the tree of Python's own grammar, where it is made of whole numbers and + - * / alone."""

    def convert(node):
        if isinstance(node, ast.Constant):
            return node.value
        return SYMBOLS[type(node.op)], convert(node.left), convert(node.right)

    nodes = ast.parse(text.strip(), mode="eval").body
    allowed = (ast.BinOp, ast.operator, ast.Constant)
    if not all(isinstance(node, allowed) for node in ast.walk(nodes)):
        raise ValueError("not an arithmetic expression")
    return convert(nodes)


def outcome(function, *refusals):
    try:
        return function()
    except refusals:
        return "refused"


@given(st.text("27 +-*/()", max_size=14))
@example("2-7-2")
@example("2/7*2")
@example("2*(7-2)/7")
@example("2**7")
@example("-2+7")
@example("()")
@example("2 7")
@example("7(2)")
def test_parsing_agrees_with_the_grammar_of_python(text):
    theirs = outcome(lambda: tree_by_python(text), SyntaxError, ValueError, KeyError)
    assert outcome(lambda: parse(text, max_numbers=14), ValueError) == theirs


@given(trees)
def test_a_rendered_tree_parses_to_itself(tree):
    assert parse(render(tree), max_numbers=N_MAX) == tree


@given(trees)
def test_no_parenthesis_of_a_rendered_tree_can_be_left_out(tree):
    text = render(tree)
    pairs, open_at = [], []
    for i, character in enumerate(text):
        if character == "(":
            open_at.append(i)
        elif character == ")":
            pairs.append((open_at.pop(), i))
    for start, end in pairs:
        without = text[:start] + text[start + 1 : end] + text[end + 1 :]
        assert parse(without, max_numbers=N_MAX) != tree


@given(trees)
def test_the_mode_ignores_the_order_of_sums_and_products_only(tree):
    assert {mode_key(each) for each in arrangements(tree)} == {mode_key(tree)}
    if isinstance(tree, tuple):
        operator, left, right = tree
        swapped = mode_key((operator, right, left))
        assert (swapped == mode_key(tree)) == (operator in "+*" or mode_key(left) == mode_key(right))


@given(trees)
def test_a_mode_is_an_expression_of_that_mode_with_the_same_numbers_and_value(tree):
    again = parse(mode_key(tree), max_numbers=N_MAX)
    assert mode_key(again) == mode_key(tree)
    assert sorted(leaves(again)) == sorted(leaves(tree))
    assert evaluate(again) == evaluate(tree)


@given(trees, trees)
def test_different_orders_of_nesting_are_different_modes(one, other):
    assert mode_key(("+", ("+", one, other), 10**9)) != mode_key(("+", one, ("+", other, 10**9)))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("2×3", "2*3"),
        ("2·3", "2*3"),
        ("2⋅3", "2*3"),
        ("6÷3", "6/3"),
        ("6−3", "6-3"),
        (r"2\times3\cdot 4\div 5", "2*3*4/5"),
        (r"\left(2+3\right)\,\times 4", "(2+3)*4"),
        (r"\frac{2+3}{4-1}", "(2+3)/(4-1)"),
        (r"2-\dfrac{\tfrac{8}{4}}{5}\cdot 3", "2-(8/4)/5*3"),
        ("\t2 +\n3 ", "2+3"),
    ],
)
def test_other_spellings_parse_to_the_plain_expression(text, plain):
    assert parse(text, max_numbers=N_MAX) == parse(plain, max_numbers=N_MAX)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "+", "2+", "-2", "+2", "2 3", "2(3)", "(2)3", "()", "(2", "2)", "2+)3(", "2**3", "2//3", "2^3"),
        *("02", "2.0", "2e3", "0x2", "1_0", "1234567890", "x", "2=2", "2,3", "²", "٣", "2+３", "2\0", "[2]"),
        *(r"\frac{2}", r"\frac{2}{3", r"\frac{}{3}", r"(2}{3)", r"\frac(2){3}", r"\frac{2)}{3}", r"\frac{(2}{3)}"),
        *(r"\frac{2}{3}{4}", r"2\cdots3", r"2\timesx", r"{2}", r"2}", r"\left2", r"2\\times3", r"2 \ 3"),
    ],
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match="Expected"):
        parse(text, max_numbers=N_MAX)


def test_numbers_and_depth_are_limited():
    assert leaves(parse("1+1+1", max_numbers=3)) == [1, 1, 1]
    with pytest.raises(ValueError, match="Expected <= 2 numbers"):
        parse("1+1+1", max_numbers=2)
    assert parse("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH, max_numbers=1) == 1
    with pytest.raises(ValueError, match=f"<= {MAX_DEPTH} open levels"):
        parse("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1), max_numbers=1)


@pytest.mark.parametrize(
    ("text", "value", "in_whole_steps"),
    [
        ("8/(3-8/3)", Fraction(8) / (3 - Fraction(8, 3)), None),
        ("2/4*6", Fraction(2, 4) * 6, None),
        ("6*2/4", Fraction(12, 4), Fraction(3)),
        ("2-5+9", Fraction(6), Fraction(6)),
        ("1/(3-3)", None, None),
        ("0*(1/0)", None, None),
        ("0/5", Fraction(0), Fraction(0)),
    ],
)
def test_values_are_exact_and_a_division_by_zero_has_none(text, value, in_whole_steps):
    tree = parse(text, max_numbers=N_MAX)
    assert evaluate(tree) == value
    assert evaluate(tree, whole_steps=True) == in_whole_steps
