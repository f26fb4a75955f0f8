"""Tables and sections of pages that programs write."""

import pytest

from maxent_grpo.pipeline.markdown import format_table, replace_section


def test_text_stands_left_and_numbers_right():
    table = format_table(["goal", "measured", ""], [["speed", "2.1", "met"]], text_columns=(0, 2))
    assert table.splitlines()[1] == "| --- | ---: | --- |"


def test_what_stands_around_a_section_stays_and_its_content_is_taken_literally():
    page = "Above.\n<!-- a:begin (make a) -->\nold\n<!-- a:end -->\n<!-- b:begin -->\nkept\n<!-- b:end -->\n"
    assert replace_section(page, "a", r"\1 new") == page.replace("old", r"\1 new")


@pytest.mark.parametrize("page", ["", "<!-- a:begin -->", "<!-- a:begin --><!-- a:end -->" * 2])
def test_a_page_without_a_sections_marks_or_with_two_is_refused(page: str):
    with pytest.raises(ValueError, match="Expected the marks of section 'a' once, got them"):
        replace_section(page, "a", "new")
