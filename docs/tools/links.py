"""Links between the files of the repository, as they lead from a page of the site."""

import os
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "cluster.md",
    "examples/TROUBLESHOOTING.md": "cluster_troubles.md",
    "examples/rehearsal/README.md": "rehearsal.md",
    "examples/openrlhf/README.md": "adapters/openrlhf.md",
    "examples/verl/README.md": "adapters/verl.md",
    "tests/README.md": "tests.md",
    "tests/golden/agreement.md": "adapters/agreement.md",
    "benchmarks/NOTES.md": "kernel_notes.md",
    "benchmarks/pretrained/NOTES.md": "pretrained_notes.md",
    "benchmarks/pretrained/RESULTS.md": "pretrained.md",
    "benchmarks/study/NOTES.md": "study_notes.md",
    "benchmarks/study/RESULTS.md": "results.md",
}
"""Files of the repository that pages of the site include."""
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def rewrite_links(text: str, written_in: Path, read_in: Path) -> str:
    """Return Markdown with its relative links as seen from another folder.

    A link to what the site has as a page leads there, one to another file downloads it, and one to a folder, which
    a site cannot show, is left as its text.

    >>> rewrite_links("[a](README.md#flags) [b](recipes)", DOCS.parent / "examples", DOCS)
    '[a](cluster.md#flags) b'
    """

    def replace(match: re.Match[str]) -> str:
        target, anchor = (written_in / match[2]).resolve(), match[3] or ""
        page = PAGES.get(os.path.relpath(target, DOCS.parent))
        if target.is_dir():
            return match[1]
        is_download = page is None and target.suffix == ".md" and DOCS not in target.parents
        shown = os.path.relpath(DOCS / page if page else target, read_in)
        return f"[{match[1]}]({'path:' * is_download}{shown}{anchor})"

    return re.sub(rf"\[((?:[^\[\]]|\[[^\]]*\])*){_LINK.pattern}", replace, text)
