r"""Tasks whose prompts have several right answers, with exact generators, verifiers and mode keys.

A *mode* is one right answer up to what does not matter (the order of a sum's terms, say). `countdown`,
`graph_coloring` and `geography` offer the same names:

- `problems(...)`: a list of frozen `Problem`s with `id`, `modes` (the keys of all right answers) and the data;
  `list_name_one()` and `list_capitals()` of `geography`
- `prompt(problem, boxed=False)`: text to complete; with `boxed`, a request as a chat has it, whose answer goes
  into the last `\boxed{...}`, where the task has boxes
- `verify(problem, text, boxed=False)`: a `Verdict(correct, mode)`; never raises, whatever the text
- `reward(problem, text, boxed=False)`: 1.0 or 0.0; modes never enter it
- `solutions(problem)`: for every mode the texts that express it, for supervised warm-up
- `random_answer(problem, rng)`: a uniform draw from the well-formed answers, the baseline of every table
- `ALPHABET`: the characters of all compact prompts and answers, where there are few

`splits.split` separates training from evaluation by problem identity; `metrics` measures sampled answers.
"""
