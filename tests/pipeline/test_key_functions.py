"""What makes two completions the same answer in a recipe."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maxent_grpo.pipeline.data.prompts import load_prompts
from maxent_grpo.pipeline.equations import find_equations
from maxent_grpo.pipeline.key_functions import (
    KEY_FUNCTIONS,
    countdown_mode,
    equation_skeleton,
    final_answer,
    find_key_function,
    geography_mode,
    graph_coloring_mode,
)
from maxent_grpo.pipeline.rewards import find_reward
from maxent_grpo.pipeline.run import Run, parse_run
from support.recipes import write_recipe


def parse(folder: Path, **fields: object) -> Run:
    return parse_run(["--config", str(write_recipe(folder, **fields))])


def test_reasoning_does_not_make_an_answer_another_one() -> None:
    chats = [[{"role": "assistant", "content": rf"{thought} \boxed{{ {answer} }}"}] for thought, answer in (
        ("first", "2*(3+5)"), ("otherwise", "2 * (3 + 5)"), ("or", "(3+5)*2"),
    )]  # fmt: skip
    spelt = final_answer(chats)
    assert spelt[0] == spelt[1] != spelt[2]
    modes = countdown_mode(chats, numbers=[[2, 3, 5]] * 3, target=[16] * 3)
    assert len(set(modes)) == 1


def test_a_wrong_answer_is_never_taken_for_a_right_one() -> None:
    right, wrong = countdown_mode([r"\boxed{2*3}", r"\boxed{right: 2*3}"], numbers=[[2, 3]] * 2, target=[6] * 2)
    assert right == "right: 2*3"
    assert wrong != right


def test_the_way_is_what_is_calculated_in_any_order_and_any_words() -> None:
    halves = ["48/2=24 clips in May. Then 48 + 24 = 72.", "We have 24+48 = 72, as 48 / 2 = 24", "72"]
    one, same, none = equation_skeleton(halves)
    assert one == same == "24+48; 48/2"
    assert none is None
    other, wrong = equation_skeleton([r"48*1.5 = 72. \boxed{72}", r"48*1.5 = 70. \boxed{70}"])
    assert len({one, other, wrong}) == 3


@given(st.text(alphabet="0123456789+-*/=(). \n\\{}fractimes,$x", max_size=60))
@example("(" * 200 + "=")
@example("1 " * 300 + "=")
def test_no_text_is_too_odd_to_look_for_equations_in(text: str) -> None:
    assert all("=" not in equation for equation in find_equations(text))


def test_a_right_coloring_is_its_mode() -> None:
    keys = graph_coloring_mode(["GR", r"\boxed{G R}", "GG"], [[[0, 1]]] * 3, ["??"] * 3)
    assert keys[0] == keys[1] == "right: GR"
    assert keys[2] != keys[0]


def test_a_place_is_the_same_in_all_its_spellings() -> None:
    neighbors = [{"name": "Czechia", "spellings": ["czechia", "czech republic"]}]
    keys = geography_mode(["The Czech Republic", "czechia.\n", "Pôland", "poland!"], [neighbors] * 4)
    assert keys == ["right: Czechia", "right: Czechia", "poland", "poland"]
    assert geography_mode(["Czechia.\nI think"], [neighbors]) == ["czechia i think"]  # the whole answer is judged


def test_questions_of_geography_reach_their_reward_and_key_function(tmp_path: Path) -> None:
    run = parse(
        tmp_path,
        dataset_name="task:name-one",
        reward_funcs=["geography"],
        key_func="geography_mode",
        max_prompt_chars=200,
    )
    train, _ = load_prompts(run)
    answers = train[0]["answers"]
    texts = [answers[0]["spellings"][-1], answers[1]["name"], "Atlantis"]
    assert find_reward("geography").function(texts, answers=[answers] * 3) == [1.0, 1.0, 0.0]
    keys = run.key_function.function(texts, answers=[answers] * 3)
    assert keys == [f"right: {answers[0]['name']}", f"right: {answers[1]['name']}", "atlantis"]


MODES = {"graph_coloring_mode", "geography_mode"}
"""Key functions of another task than the recipe's."""


@pytest.mark.parametrize(
    "name", [*sorted(KEY_FUNCTIONS.keys() - MODES), "maxent_grpo.pipeline.key_functions.final_answer"]
)
def test_a_recipe_names_its_key_function(name: str, tmp_path: Path) -> None:
    run = parse(tmp_path, key_func=name)
    assert run.key_function == find_key_function(name)
    train, _ = load_prompts(run)
    assert {"numbers", "target"} <= set(train.column_names)


def test_names_and_columns_that_are_not_there_are_refused_with_the_field(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipe\.yaml: key_func: Expected one of final_answer, .*'final_anser'"):
        parse(tmp_path, key_func="final_anser")
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "x", "solution": "1"}\n')
    math = {"dataset_name": str(data), "reward_funcs": ["pure_accuracy_math"], "do_eval": False}
    with pytest.raises(ValueError, match="numbers"):
        load_prompts(parse(tmp_path, **math, key_func="countdown_mode"))
