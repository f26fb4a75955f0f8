"""The settings of the documentation site: `make docs`, or `sphinx-build -W -b html docs _build/html`."""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in (".", "tools")]

import sphinx_hooks  # noqa: E402  (beside this file)

import maxent_grpo  # noqa: E402

project = "maxent_grpo"
author = "The maxent_grpo authors"
release = version = maxent_grpo.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx"]
exclude_patterns = ["assets", "tools"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_use_ivar = True  # else each attribute of a dataclass would be an entry of its own, and autodoc's again

# Every reference to a name of ours must lead somewhere; names of other projects need their inventories.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!maxent_grpo\.).*"),
    ("py:.*", r".*\._.*"),  # private modules, whose names a public one hands on
    ("py:.*", r"maxent_grpo\.pipeline\.(answers\..*|tasks\.splits\.P)"),
]
# Inventories are fetched where there is a network, which a build elsewhere does not wait for.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
    if os.environ.get("READTHEDOCS")
    else {}
)

html_math_renderer = "mathml"  # which browsers show without a script from elsewhere
html_theme = "furo"
html_title = f"maxent_grpo {release}"
html_static_path = ["assets/site"]
html_css_files = ["site.css"]
html_show_copyright = False


def setup(app: object) -> None:
    """Connect what the pages of this project need beside Sphinx."""
    sphinx_hooks.connect(app)
