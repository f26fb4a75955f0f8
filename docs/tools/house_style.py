"""Report where the Python files under git leave the house style (docs/house-style.md).

python docs/tools/house_style.py                  # what breaks a rule, and a summary
python docs/tools/house_style.py --json           # every figure, for notes
python docs/tools/house_style.py --root ../other  # another checkout

Fails when a file has more than 400 lines, when more than 20 functions outside the tests are named by a participle or
as `x_of`, or when `ACCEPTED` lists a name that no function has any longer.
"""

import argparse
import ast
import io
import json
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

AIM_LINES, MOST_LINES = 250, 400
FUNCTION_LINES = 40
ARGUMENTS = 8
BAD_NAMES = 20

Function = ast.FunctionDef | ast.AsyncFunctionDef
ACCEPTED = {
    "weighted_nll": "eq. (7)'s name: a pure function of the mathematics is named for its result",
    "clipped_surrogate": "PPO's name for eq. (7c)",
    "tempered_target": "the field's name for a distribution raised to a power",
    "tempered_log_target": "its logarithm",
    "regularized_potential": "the field's name: J with its regularizers",
}
"""Names that look like a participle and stay, each with its reason."""
# ruff: noqa: SIM905 - as lists the words would fill a page
IRREGULAR = frozenset(
    "begun bound bought broken brought built caught chosen done drawn found frozen given gone grown heard held kept"
    " known laid led left lent lost made meant met paid said seen sent shown sold sought spent taken taught thought"
    " told torn understood unpacked won worn written".split()
)
"""Past participles without -ed that are not also a verb's first form, as `read` and `split` are."""
NOUNS = frozenset(
    "bed ceiling coloring embed exceed feed learning need padding proceed seed setting speed string succeed timing"
    " training tuning warning".split()
)
"""Words of the code that end like a participle and are none."""
TAKES_A_PARTICIPLE = frozenset("describe expect find has is log may".split())
"""First words that a participle at the end completes: `log_measured` logs what was measured."""
PRAGMAS = ("# noqa", "# type:", "# fmt:", "# ruff:", "# mypy:", "# pragma", "#!")


@dataclass
class Folder:
    """What a folder holds."""

    files: int = 0
    lines: int = 0
    comments: int = 0
    comments_per_100_lines: float = 0.0


@dataclass
class Report:
    """Folders by name; what breaks a rule by place, with its number of lines or arguments or its name."""

    folders: dict[str, Folder] = field(default_factory=dict)
    long_files: dict[str, int] = field(default_factory=dict)
    long_functions: dict[str, int] = field(default_factory=dict)
    many_arguments: dict[str, int] = field(default_factory=dict)
    bad_names: dict[str, str] = field(default_factory=dict)
    stale_accepted: list[str] = field(default_factory=list)

    def find_failures(self) -> list[str]:
        """Say which bars the tree misses."""
        failures = [f"{path}: {lines} lines" for path, lines in self.long_files.items() if lines > MOST_LINES]
        if len(self.bad_names) > BAD_NAMES:
            failures.append(f"{len(self.bad_names)} functions named by a participle or as x_of")
        return failures + [f"accepted, but no function's name: {name}" for name in self.stale_accepted]


def is_bad_name(name: str) -> bool:
    """Tell whether a function is named by a participle or as `x_of` where a verb and a noun would do.

    >>> [is_bad_name(name) for name in ("selected", "gathered_groups", "rows_kept", "trainer_of", "told")]
    [True, True, True, True, True]
    >>> [is_bad_name(name) for name in ("select_rows", "log_measured", "build_training", "token_logps")]
    [False, False, False, False]
    """
    words = name.strip("_").split("_")
    first, last = words[0], words[-1]
    if "of" in words or _is_past_participle(first) or (first.endswith("ing") and first not in NOUNS):
        return True
    return _is_past_participle(last) and first not in TAKES_A_PARTICIPLE


def _is_past_participle(word: str) -> bool:
    return word in IRREGULAR or (word.endswith("ed") and word not in NOUNS)


def review_tree(root: Path) -> Report:
    """Read every Python file that git tracks under `root`."""
    report, names = Report(), set()
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=root, capture_output=True, text=True, check=True)
    for path in tracked.stdout.splitlines():
        source = (root / path).read_text()
        lines = source.count("\n")
        folder = report.folders.setdefault("/".join(path.split("/")[:-1][:2]), Folder())
        folder.files += 1
        folder.lines += lines
        folder.comments += count_comments(source)
        if lines > AIM_LINES:
            report.long_files[path] = lines
        for function in list_functions(ast.parse(source)):
            names.add(function.name)
            review_function(report, f"{path}:{function.lineno} {function.name}", function)
    for folder in report.folders.values():
        folder.comments_per_100_lines = round(100 * folder.comments / max(1, folder.lines), 1)
    report.stale_accepted = sorted(ACCEPTED.keys() - names)
    return report


def review_function(report: Report, place: str, function: Function) -> None:
    """Add to the report what is wrong with one function."""
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    if (lines := count_code_lines(function)) > FUNCTION_LINES:
        report.long_functions[place] = lines
    # A Triton kernel takes its pointers and strides one by one: there is no type that could gather them.
    if (arguments := count_arguments(function)) > ARGUMENTS and "triton.jit" not in decorators:
        report.many_arguments[place] = arguments
    # A test's name states a behavior, and a property is read as a field is.
    named_freely = place.startswith("tests/") or any("property" in decorator for decorator in decorators)
    if is_bad_name(function.name) and function.name not in ACCEPTED and not named_freely:
        report.bad_names[place] = function.name


def list_functions(tree: ast.Module) -> Iterator[Function]:
    """Yield functions, methods and functions inside functions."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def count_code_lines(function: Function) -> int:
    """Count the lines from `def` to the end, without the docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    return function.end_lineno - function.lineno + 1 - documented * (first.end_lineno - first.lineno + 1)


def count_arguments(function: Function) -> int:
    """Count the arguments that a caller writes: not `self`, `cls` or an autograd function's `ctx`."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls", "ctx")])


def count_comments(source: str) -> int:
    """Count the comments that speak to a reader, not to a tool."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.COMMENT and not token.string.startswith(PRAGMAS) for token in tokens)


def print_report(report: Report) -> None:
    """Print what breaks a rule, one line each, and the counts."""
    kinds = {
        f"files over {AIM_LINES} lines": report.long_files,
        f"functions over {FUNCTION_LINES} lines": report.long_functions,
        f"functions with more than {ARGUMENTS} arguments": report.many_arguments,
        "functions named by a participle or as x_of": report.bad_names,
    }
    for title, places in kinds.items():
        print(f"{title}: {len(places)}")
        largest_first = places.items() if places is report.bad_names else sorted(places.items(), key=lambda p: -p[1])
        for place, value in largest_first:
            print(f"  {place}" + (f" ({value})" if isinstance(value, int) else ""))
    lines, comments = (sum(getattr(each, name) for each in report.folders.values()) for name in ("lines", "comments"))
    print(f"{lines} lines of Python, {100 * comments / max(1, lines):.1f} comments per 100 lines")


def main() -> None:
    """Print the report; exit with 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="the checkout to read")
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")
    options = parser.parse_args()
    report = review_tree(options.root)
    if options.json:
        print(json.dumps(asdict(report), indent=1))
    else:
        print_report(report)
    if failures := report.find_failures():
        sys.exit("House style: " + "; ".join(failures))


if __name__ == "__main__":
    main()
