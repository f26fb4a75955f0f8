"""The search for duplicates finds a copy whose names were changed, and nothing else."""

from pathlib import Path

import pytest

from docs.tools.find_duplicates import find_duplicates

ORIGINAL = '''
def average_rows(rows, weights):
    """Average the columns that every row has."""
    if len(rows) != len(weights):
        raise ValueError(f"Expected a weight for each of {len(rows)} rows, got {len(weights)}.")
    names = sorted(set.intersection(*(set(row) for row in rows)))
    total = sum(weights)
    averages = {}
    for name in names:
        values = [row[name] * weight for row, weight in zip(rows, weights)]
        averages[name] = sum(values) / total if total else None
    return averages
'''
COPY = ORIGINAL.replace("average_rows", "mix").replace("averages", "means").replace("names", "keys")
OTHER = """
def split_problems(problems, held_out, seed):
    generator = random.Random(seed)
    groups = defaultdict(list)
    for problem in problems:
        groups[len(problem.solutions)].append(problem)
    for group in groups.values():
        generator.shuffle(group)
    return [group[held_out:] for group in groups.values()], [group[:held_out] for group in groups.values()]
"""


@pytest.mark.parametrize(("second", "count"), [(ORIGINAL, 1), (COPY, 1), (OTHER, 0)])
def test_a_copy_is_found_and_other_code_is_not(second: str, count: int, tmp_path: Path) -> None:
    files = tmp_path / "first.py", tmp_path / "second.py"
    for file, source in zip(files, (ORIGINAL, second), strict=True):
        file.write_text(source)
    found = find_duplicates(files)
    assert len(found) == count
    assert all("first.py" in block and "second.py" in block for block in found)
