"""The page: the template with its style sheet and script inlined, and a policy that forbids everything else."""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vog_hf.report.section import Section
from vog_hf.scores.formatting import number, printable, signed
from vog_hf.scores.pictures.words import WORDS_STYLE

GENERATOR = "vog_hf report"  # how a file of ours is recognized


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    environment = Environment(
        loader=PackageLoader("vog_hf.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed}
    style, script = (_verbatim(environment, name) for name in ("report.css", "report.js"))
    style += Markup(f"{WORDS_STYLE}\n")  # noqa: S704 (a constant)
    template = environment.get_template("report.html.j2")
    return template.render(
        title=title, sections=sections, style=style, script=script, policy=_policy(script), generator=GENERATOR
    )


def _verbatim(environment: Environment, name: str) -> Markup:
    """A file of this package, to be inlined into the page unchanged."""
    if environment.loader is None:
        raise TypeError("the environment of the report has no loader")
    return Markup(environment.loader.get_source(environment, name)[0])  # noqa: S704 (a file of this package)


def _policy(script: str) -> str:
    """The content security policy: only the inlined script (by its hash), styles, images and sounds."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _printable(value: object) -> Any:
    """Remove characters that no page can hold from values of the template; HTML stays as it is."""
    return printable(value) if type(value) is str else value
