"""Pages and pictures from the templates beside this file. A page loads nothing from elsewhere: its style stands in it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jobs.reports.number_formats import FILTERS
from manifests.printable import printable


def page(template: str, **values: object) -> str:
    """Returns a whole page of a template, with what the template names among `values`.

    Text is escaped, wherever it comes from, and characters that cannot be printed are shown as their escapes. Raises
    jinja2.UndefinedError for a value that the template names and misses.
    """
    style = Markup((files("jobs.reports") / "report.css").read_text(encoding="utf-8"))
    return _environment().get_template(template).render(values, style=style) + "\n"


def draw(template: str, **values: object) -> Markup:
    """Returns a picture of a template, ready to stand in a page. Text is escaped as in `page`."""
    return Markup(_environment().get_template(template).render(values))


def _shown(value: object) -> object:
    # A page holds no control character, which XML forbids, and no mark that turns the direction of what stands after it.
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _environment() -> Environment:
    # Escaping is on for every template: for pictures too, whose names do not end in .html.
    environment = Environment(
        loader=PackageLoader("jobs.reports"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment
