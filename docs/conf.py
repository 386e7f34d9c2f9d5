"""Sphinx settings."""

from importlib.metadata import version as installed_version

project = "captum_causalseg"
author = "The captum_causalseg developers"
copyright = "2026, the captum_causalseg developers"
version = release = installed_version("captum-causalseg")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
html_theme = "furo"
html_title = f"captum_causalseg {version}"
html_static_path = ["_css"]
html_css_files = ["page.css"]
exclude_patterns = ["_build", "benchmarks/*.md", "examples/*.py"]
# Headings can be linked to.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]
# What is copied can be pasted and run: no prompts, and no output.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Attributes are documented in the class docstrings.
napoleon_use_ivar = True
nb_execution_mode = "off"
