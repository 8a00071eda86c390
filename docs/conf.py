"""The documentation site: the repository's Markdown files and the package's docstrings.

Sphinx builds the whole repository, so that links between files lead to the same places
as on a code host.
"""

from importlib.metadata import version as version_of

project = "flwr-splitfc"
author = "the authors of flwr-splitfc"
release = version = version_of(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/**.md",
    "examples/*/README.md",
    "strategies/README.md",
]
myst_heading_anchors = 3
suppress_warnings = [
    "toc.not_included"
]  # tables of results are linked from their pages

default_role = "py:obj"
smartquotes = False  # values in docstrings are as one types them
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"{project} {version}"
html_show_sourcelink = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_extra_path = ["site"]  # the top index.html, which leads to the root document
