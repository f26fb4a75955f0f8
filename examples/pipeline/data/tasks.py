"""The tasks of `tasks/` as datasets that need no network: `task:NAME` where a recipe names a dataset."""

from datasets import Dataset

from maxent_grpo.pipeline.tasks.catalog import find_task, split_problems


def build_task_dataset(name: str, part: str, *, boxed: bool) -> Dataset:
    r"""Return a task's problems as rows: the prompt and what its reward reads.

    Args:
        name: of the task.
        part: "train", or "test" for the problems that are held out.
        boxed: ask in plain language for an answer in \boxed{...}, instead of by the compact prompt.

    Raises:
        ValueError: if there is no such task or part.
    """
    task = find_task(name)
    if part not in ("train", "test"):
        raise ValueError(f"Expected the split train or test of {name}, got {part!r}.")
    sides = split_problems(name)
    problems = sides.train if part == "train" else sides.held_out
    rows = [{"prompt": task.module.prompt(problem, boxed=boxed), **task.columns(problem)} for problem in problems]
    return Dataset.from_list(rows)
