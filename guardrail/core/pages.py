"""What the project's HTML pages share: one look (templates/report.css), no request to any network, escaped text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("templates") / "report.css"
# every page carries it; pages without a script leave scripts out
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def style() -> str:
    """The style sheet of reports."""
    return STYLE.read_text(encoding="utf-8")


def render(template: Path, **values: Any) -> str:
    """The page of a Jinja ``template``: everything is escaped, a name that is not given is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template.name).render(style=style(), content_policy=POLICY, **values)
