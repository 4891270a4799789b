"""How Sphinx builds these pages and the reference: `python -m sphinx docs build/site`."""

import re

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
suppress_warnings = ["ref.python", "myst.header"]

_ARGUMENT = re.compile(r"([a-z]\w*(?:, [a-z]\w*)*): ")


def as_restructured_text(app, what, name, thing, options, lines):
    """Our docstrings are plain text: arguments as `name: meaning`, formulas indented, |x| a norm.
    What is inherited from other packages is shown by its first line."""
    if not str(getattr(thing, "__module__", None) or name).startswith("ldm"):
        lines[1:] = []
        return
    made, field, before = [], False, 0
    for line in lines:
        depth = len(line) - len(line.lstrip())
        begins = depth == 0 and _ARGUMENT.match(line) is not None
        apart = begins != field if depth == 0 else depth > before and not field
        if line and made and made[-1] and (apart or (depth < before and not field)):
            made.append("")
        field = begins or (field and (depth > 0 or not line))
        if field and depth > 0:
            line = f"  {line.strip()}"  # goes on with the list's item
        parts = (_ARGUMENT.sub(r"- ``\1``: ", line, count=1) if begins else line).split("`")
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]  # outside of quoted names
        made.append("`".join(parts))
        before = depth if line else 0
    lines[:] = made


def setup(app):
    """Sphinx calls it."""
    app.connect("autodoc-process-docstring", as_restructured_text)
