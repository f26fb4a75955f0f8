"""What the documentation's build does beside Sphinx: docstrings, links of included pages, undocumented names."""

from pathlib import Path
from typing import Any

from docstrings import convert_docstring
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from links import rewrite_links
from public_names import PIPELINE, find_undocumented, list_public_modules, list_public_names
from sphinx.util import logging

logger = logging.getLogger(__name__)
DOCS = Path(__file__).resolve().parent


def connect(app: Any) -> None:
    """Connect the functions below to the build."""
    links = list_links()

    def convert(_: Any, what: str, name: str, __: Any, ___: Any, lines: list[str]) -> None:
        lines[:] = convert_docstring(lines, links, is_module=what == "module")

    app.connect("autodoc-process-docstring", convert, priority=400)  # before napoleon, which knows no backticks
    app.connect("include-read", rewrite_included)
    app.connect("source-read", rewrite_page)
    app.connect("env-check-consistency", report_undocumented)
    app.add_html_math_renderer("mathml", (write_inline_math, None), (write_block_math, None))


def list_links() -> dict[str, str]:
    """Return the full names that backticks in a docstring lead to, by the short ones.

    Those of the pipeline are left out: `prompt` and `problems` mostly mean something else.
    """
    linked = [
        module
        for module in list_public_modules()
        if module not in ("maxent_grpo", "maxent_grpo.reference", *PIPELINE)
    ]
    return {name: f"{module}.{name}" for module in linked for name in list_public_names(module)}


def rewrite_included(app: Any, path: Path, _: str, content: list[str]) -> None:
    """Let the links of an included file lead from the page that includes it."""
    page = app.env.docname  # what MyST hands over is its name without its folder
    content[0] = rewrite_links(content[0], (DOCS / path).resolve().parent, (DOCS / page).parent)


def rewrite_page(_: Any, page: str, content: list[str]) -> None:
    """Let the links of a page to files that other pages include lead to those pages."""
    folder = (DOCS / page).parent
    content[0] = rewrite_links(content[0], folder, folder)


def report_undocumented(_: Any, environment: Any) -> None:
    """Warn of every public name without an entry on a page: the build takes warnings for errors."""
    for name in find_undocumented(set(environment.get_domain("py").objects)):
        logger.warning("%s is public and no page documents it", name)


def write_inline_math(writer: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def write_block_math(writer: Any, node: nodes.math_block) -> None:
    """Write a formula of its own, which scrolls where a screen is too narrow for it."""
    writer.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode
