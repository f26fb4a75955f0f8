import pytest

from maxent_grpo.pipeline.tasks.answers import MAX_ANSWER_LENGTH, read_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("  1+2\n", "1+2"),
        (r"so \boxed{ 1+2 }.", "1+2"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\frac{6}{3}} }", r"\frac{6}{3}"),
        (r"\boxed{}", ""),
    ],
)
def test_the_answer_is_the_last_box_or_else_the_whole_text(text, answer):
    assert read_answer(text) == answer


@pytest.mark.parametrize("text", [r"\boxed{1} or \boxed{2", r"\boxed{\frac{1}{2}", r"\boxed{"])
def test_a_last_box_that_is_never_closed_is_no_answer_even_after_a_closed_one(text):
    with pytest.raises(ValueError, match="Expected the box closed"):
        read_answer(text)


@pytest.mark.parametrize("text", ["1+2", r"boxed 3", r"$1+2$", ""])
def test_only_a_box_counts_where_one_is_asked_for(text):
    with pytest.raises(ValueError, match=r"Expected an answer in \\boxed"):
        read_answer(text, boxed=True)


@pytest.mark.parametrize("form", ["{}", r"\boxed{{{}}}"])
def test_an_answer_may_have_the_greatest_length_and_not_one_character_more(form):
    fits = "7" * MAX_ANSWER_LENGTH
    assert read_answer(form.format(fits)) == fits
    with pytest.raises(ValueError, match=f"{MAX_ANSWER_LENGTH} characters"):
        read_answer(form.format(fits + "7"))


@pytest.mark.parametrize("text", [None, 7, b"1+2", ["1+2"], float("nan")])
def test_anything_but_a_string_holds_no_answer(text):
    with pytest.raises(ValueError, match="Expected text of type str"):
        read_answer(text)
