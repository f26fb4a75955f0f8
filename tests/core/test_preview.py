"""`python -m maxent_grpo.preview`: what it says of rollouts, and what it says of files that hold none."""

import gzip
import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from maxent_grpo import MaxEntConfig, effective_sample_size, listwise_q, tempered_target
from maxent_grpo.preview import main, mean_ess, read_rollouts, suggest_dedup


def write(folder: Path, *groups: object) -> Path:
    file = folder / "rollouts.jsonl"
    file.write_text("\n".join(group if isinstance(group, str) else json.dumps(group) for group in groups) + "\n\n")
    return file


def list_shown(printed: str, column: int) -> list[str]:
    """Return a column of the shown groups: reward, q, π* and c."""
    lines = printed[printed.index("    reward") :].split("\n\n", maxsplit=1)[0].splitlines()[1:]
    return [line.split()[column] for line in lines]


def test_groups_of_unequal_size_are_padded_and_missing_rewards_are_not_scored(tmp_path: Path) -> None:
    rollouts = read_rollouts(write(tmp_path, {"rewards": [1, None, 0.5]}, {"rewards": [math.nan, 0]}))
    assert rollouts.scored.tolist() == [[True, False, True], [False, True, False]]
    assert rollouts.rewards[rollouts.scored].tolist() == [1.0, 0.5, 0.0]
    assert rollouts.keys is None
    assert rollouts.ref_logps is None


def test_equal_texts_have_equal_keys_and_others_do_not(tmp_path: Path) -> None:
    keys = read_rollouts(write(tmp_path, {"rewards": [1, 0, 1], "texts": ["a", "b", "a"]})).keys
    assert keys is not None
    assert keys[0, 0] == keys[0, 2] != keys[0, 1]


def test_the_effective_sample_size_is_that_of_the_target(tmp_path: Path) -> None:
    rollouts = read_rollouts(write(tmp_path, {"rewards": [1, 0, 0, 0]}))
    rewards = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    expected = effective_sample_size(tempered_target(listwise_q(rewards), tau=0.5)).item()
    assert mean_ess(rollouts, MaxEntConfig(tau=0.5), torch.tensor([True])) == pytest.approx(expected, rel=1e-12)


def test_the_suggested_tau_gives_the_wanted_effective_sample_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, {"rewards": [1, 0, 0, 0]}, {"rewards": [0, 0, 0, 0]})
    assert main([str(file), "--ess", "3"]) == 0
    printed = capsys.readouterr().out
    suggested = suggested_tau(printed)
    rewards = torch.tensor([1.0, 0, 0, 0])
    assert effective_sample_size(tempered_target(listwise_q(rewards), tau=suggested)).item() == pytest.approx(
        3, rel=0.02
    )
    assert "uninformative groups (all rewards equal): 50.0%" in printed


def test_an_unreachable_effective_sample_size_is_said_to_be_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(tmp_path, {"rewards": [1, 1, 1, 0]})), "--ess", "2"]) == 0
    assert (
        "suggested τ: none, because no group can reach an ESS of 2 by a finite τ > 0; 1 have it at any τ, by ties"
        in capsys.readouterr().out
    )


def suggested_tau(printed: str) -> float:
    line = next(line for line in printed.splitlines() if line.startswith("suggested τ: "))
    return float(line.removeprefix("suggested τ: ").split(",")[0])


def test_pairs_get_a_suggestion_below_the_size_that_only_infinite_temperature_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(tmp_path, {"rewards": [1, 0]}, {"rewards": [0, 1]}))]) == 0
    tau = suggested_tau(capsys.readouterr().out)
    ess = effective_sample_size(tempered_target(listwise_q(torch.tensor([1.0, 0.0])), tau=tau)).item()
    assert ess == pytest.approx(1.5, rel=0.02)  # half-way between one candidate and both


def test_groups_without_enough_candidates_are_counted_beside_the_suggestion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(tmp_path, {"rewards": [1, 0]}, {"rewards": [1, 0, 0, 0]}))
    assert main([file, "--ess", "2"]) == 0
    printed = capsys.readouterr().out
    assert "of the 1 groups where τ decides it" in printed
    assert "; 1 have no more candidates than that and come nearest at τ = inf" in printed
    assert main([file, "--ess", "4"]) == 0
    assert "by a finite τ > 0; 2 have no more candidates than that" in capsys.readouterr().out


def test_an_infinite_temperature_can_be_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write(tmp_path, {"rewards": [1, 0, 0, 0]})), "--tau", "inf"]) == 0
    assert "τ = inf   ESS 4.00  <- now" in capsys.readouterr().out


def test_without_any_difference_in_reward_it_says_that_there_is_nothing_to_learn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(tmp_path, {"rewards": [1, 1]}, {"rewards": [0]}))]) == 0
    assert "nothing to learn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("texts", "kappa"), [(["a", "a", "b"], 1.0), (["a", "b", "c"], 0.0)], ids=["duplicates", "all different"]
)
def test_the_discount_is_suggested_where_there_are_duplicates(tmp_path: Path, texts: list[str], kappa: float) -> None:
    rollouts = read_rollouts(write(tmp_path, {"rewards": [1, 1, 0], "texts": texts}))
    assert suggest_dedup(rollouts)[0] == kappa


def test_without_texts_no_discount_is_suggested(tmp_path: Path) -> None:
    assert suggest_dedup(read_rollouts(write(tmp_path, {"rewards": [1, 0]})))[0] is None


def test_a_reference_moves_the_target_and_a_picture_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = {"rewards": [1, 0], "texts": ["a", "a"], "ref_logps": [-9.0, -1.0], "lengths": [3, 1]}
    assert main([str(write(tmp_path, group)), "--beta", "1", "--plot", str(tmp_path / "p.png")]) == 0
    # per token the reference gives -3 and -1: π* ∝ q^{1/1.2}·ρ^{1/1.2} with log q_1 - log q_2 = 1
    share = 1 / (1 + math.exp(-(1 - 2) / 1.2))
    assert list_shown(capsys.readouterr().out, 2) == [f"{share:.3f}", f"{1 - share:.3f}"]
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_there_is_no_picture_of_groups_that_tell_nothing_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(tmp_path, {"rewards": [1, 1]})), "--plot", str(tmp_path / "p.png")]) == 2
    assert "Expected a group whose rewards differ, for --plot to draw, got none." in capsys.readouterr().err
    assert not (tmp_path / "p.png").exists()


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["{"], "rollouts.jsonl:1"),
        ([{"rewards": []}], "non-empty list 'rewards'"),
        ([{"rewards": [1]}, {"reward": [1]}], "rollouts.jsonl:2"),
        ([{"rewards": ["1"]}], "Expected 'rewards' of type float"),
        ([{"rewards": [1, 0], "texts": ["a"]}], "Expected 2 'texts'"),
        ([{"rewards": [1], "texts": ["a"]}, {"rewards": [1]}], "'texts' in every group"),
        ([{"rewards": [1]}, '{"rewards": [Infinity]}'], "Expected 'rewards' to be finite at FILE:2, got inf."),
        (['{"rewards": [1, -Infinity]}'], "Expected 'rewards' to be finite at FILE:1, got -inf."),
        ([f'{{"rewards": [1, {"9" * 400}]}}'], f"Expected 'rewards' to be finite at FILE:1, got {'9' * 60}…."),
        ([f'{{"rewards": [1, {"9" * 5000}]}}'], "Expected a JSON object at FILE:1"),
        (["[" * 100_000], "Expected a JSON object at FILE:1"),
        (['{"rewards": [1], "ref_logps": [NaN]}'], "Expected 'ref_logps' to be finite at FILE:1, got nan."),
        (['{"rewards": [1], "ref_logps": [-Infinity]}'], "Expected 'ref_logps' to be finite at FILE:1, got -inf."),
        ([{"rewards": [1], "ref_logps": [None]}], "Expected 'ref_logps' of type float at FILE:1, got None."),
        ([{"rewards": [1], "lengths": [0]}], "Expected 'lengths' to be at least 1 at FILE:1, got 0."),
        ([{"rewards": [1, 0], "lengths": [4, -3]}], "Expected 'lengths' to be at least 1 at FILE:1, got -3."),
        ([f'{{"rewards": [1], "lengths": [{"9" * 400}]}}'], "Expected 'lengths' to be finite at FILE:1"),
        ([], "at least one group"),
    ],
)
def test_a_bad_file_is_refused_with_its_line_or_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[object], complaint: str
) -> None:
    file = str(write(tmp_path, *lines))
    assert main([file]) == 2
    assert complaint.replace("FILE", file) in capsys.readouterr().err


def test_a_missing_file_a_bad_setting_and_a_missing_reference_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(tmp_path, {"rewards": [1, 0]}))
    for arguments, complaint in (
        (["nowhere.jsonl"], "nowhere.jsonl"),
        ([file, "--tau", "-1"], "Expected tau >= 0, got tau=-1.0"),
        ([file, "--beta", "1"], "ref_logps"),
    ):
        assert main(arguments) == 2
        assert complaint in capsys.readouterr().err


def test_duplicates_are_discounted_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, {"rewards": [1, 1, 1, 0], "texts": ["a", "a", "b", "c"]})
    assert main([str(file), "--tau", "0", "--dedup", "1"]) == 0
    assert list_shown(capsys.readouterr().out, 2) == ["0.250", "0.250", "0.500", "0.000"]
    assert main([str(write(tmp_path, {"rewards": [1, 0]})), "--dedup", "1"]) == 2
    assert "Expected keys or counts with dedup=1.0" in capsys.readouterr().err


VERL = [
    {"input": "a", "output": "6*7", "score": 1, "step": 1},
    {"input": "b", "output": "x", "score": 0, "step": 1},
    {"input": "a", "output": "6*7\u2028", "score": None, "step": 1},
    {"input": "a", "output": "6+7", "score": 0.5, "step": 2},
]


def test_one_completion_per_line_is_grouped_by_its_prompt_and_step(tmp_path: Path) -> None:
    file = tmp_path / "1.jsonl"
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in VERL)
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    rollouts = read_rollouts(file)
    assert rollouts.scored.tolist() == [[True, False], [True, False], [True, False]]
    assert rollouts.rewards[rollouts.scored].tolist() == [1.0, 0.0, 0.5]
    packed = tmp_path / "1.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert torch.equal(read_rollouts(packed).scored, rollouts.scored)


def test_the_columns_of_completions_may_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "a", "accuracy": each, "completion": [{"content": str(each)}]} for each in (1, 0, 1, 1)]
    file = tmp_path / "completions_00001.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file)
    assert main([str(file)]) == 2
    assert "(--reward, --group)" in capsys.readouterr().err
    assert main([str(file), "--reward", "accuracy"]) == 0
    assert "1 groups of 4 to 4 scored candidates, mean reward 0.750" in capsys.readouterr().out
    assert main([str(write(tmp_path, *VERL)), "--group", "step", "--text", "output"]) == 0
    assert "2 groups of 1 to 2 scored candidates" in capsys.readouterr().out


def test_a_long_file_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text('{"uid": %d, "reward": 1}\n' * 20_000 % tuple(range(20_000)))
    assert read_rollouts(file).scored.shape == (20_000, 1)


@pytest.mark.parametrize("content", [b'{"rewards": [1], "texts": ["caf\xe9"]}\n', b"\xff\xfe{\x00"])
def test_another_encoding_is_named(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rollouts.jsonl").write_bytes(content)
    assert main([str(tmp_path / "rollouts.jsonl")]) == 2
    assert "Expected UTF-8 at" in capsys.readouterr().err


def test_candidates_are_shown_with_their_texts_and_those_without_a_verdict_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["a way\nthat is longer than the line that is shown, so that only its end is", "no", "?"]
    assert main([str(write(tmp_path, {"rewards": [1, 0, None], "texts": texts}))]) == 0
    printed = capsys.readouterr().out
    assert "  1.000  0.731  0.993  0.993  …longer than the line that is shown, so that only its end is\n" in printed
    assert "      –      –      –      –  ?\n" in printed
    assert main([str(write(tmp_path, {"rewards": [1] + [0] * 19}))]) == 0
    assert "… and 4 more" in capsys.readouterr().out


def test_a_preset_shows_the_coefficients_that_it_trains_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(tmp_path, {"rewards": [1, 1, 1, 0], "texts": ["a", "a", "b", "c"]}))
    assert main([file, "--preset", "diverse", "--tau", "0"]) == 0
    printed = capsys.readouterr().out
    assert list_shown(printed, 2) == ["0.250", "0.250", "0.500", "0.000"]
    assert list_shown(printed, 3) == ["0.000", "0.000", "0.250", "-0.250"]


def test_a_folder_of_trls_completions_needs_no_name_of_a_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"completion": ["x", "y"], "advantage": [1.0, -1.0], "target_weight": [1.0, 0.0], "prompt": ["p", "p"]}
    for step in (1, 2):
        table = pa.table(common | {"step": [step] * 2, "my_reward": [1.0, 0.0], "coefficient": [1.0, 0.0]})
        parquet.write_table(table, tmp_path / f"completions_{step}.parquet")
    assert main([str(tmp_path)]) == 0
    assert "2 groups of 2 to 2 scored candidates, mean reward 0.500" in capsys.readouterr().out
    parquet.write_table(table.append_column("length_reward", [[0.0, 0.0]]), tmp_path / "completions_3.parquet")
    assert main([str(tmp_path)]) == 2
    assert "(--reward, --group)" in capsys.readouterr().err
    assert main([str(tmp_path), "--reward", "my_reward"]) == 0
