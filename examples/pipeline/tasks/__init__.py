r"""Tasks whose prompts have several right answers, with exact generators, verifiers and mode keys.

A *mode* is one right answer up to what does not matter (the order of a sum's terms, say). `countdown` and
`graph_coloring` offer the same names:

- `problems(...)`: a list of frozen `Problem`s with `id`, `modes` (the keys of all right answers) and the data
- `prompt(problem, boxed=False)`: compact text for a character-level model; with `boxed`, a plain-language
  request whose answer goes into the last `\boxed{...}`
- `verify(problem, text, boxed=False)`: a `Verdict(correct, mode)`; never raises, whatever the text
- `reward(problem, text, boxed=False)`: 1.0 or 0.0; modes never enter it
- `solutions(problem)`: for every mode the texts that express it, for supervised warm-up
- `random_answer(problem, rng)`: a uniform draw from the well-formed answers, the baseline of every table
- `ALPHABET`: the characters of all compact prompts and answers

`splits.split` separates training from evaluation by problem identity; `metrics` measures sampled answers.
"""
