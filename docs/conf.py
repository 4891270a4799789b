"""How Sphinx builds these pages and the reference: `python -m sphinx docs build/site`."""

project = "ldm"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.apidoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"page_width": "70rem", "sidebar_width": "15rem"}
apidoc_modules = [
    {"path": "../ldm", "destination": "api", "max_depth": 2, "separate_modules": True}
]
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_mock_imports = ["pyarrow"]
# Docstrings quote names in single backticks: shown as code, not looked up.
default_role = "code"
myst_heading_anchors = 3
suppress_warnings = ["docutils", "ref.python", "myst.header"]
