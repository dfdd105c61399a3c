"""The first panel as one HTML page: no script, no request, readable at the width of a panel, in light and dark."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vog_hf.scores.formatting import printable
from vog_hf.tracking.about import About


def about_page(about: About) -> str:
    """The panel as a page; every name and text of the data is escaped."""
    loader = PackageLoader("vog_hf.tracking", "templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup(loader.get_source(environment, "about.css")[0])  # noqa: S704 (a file of this package)
    return environment.get_template("about.html.j2").render(about=about, style=style)


def _printable(value: object) -> Any:
    """Remove characters that no page can hold from values of the template; HTML stays as it is."""
    return printable(value) if type(value) is str else value
