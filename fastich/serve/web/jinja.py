"""The pages' templates: jinja2 with autoescape, and the few words that every page needs."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from fastich import __version__
from fastich.artifact import INTENDED_USE
from fastich.labels import LABELS
from fastich.serve.web import names
from fastich.serve.web.parts import parts_of

HERE = Path(__file__).parent
SHORT = dict(zip(LABELS, ("EDH", "IPH", "IVH", "SAH", "SDH", "any"), strict=True))


def make_environment() -> Environment:
    """Templates that escape whatever they are given and refuse what they were not given."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"age": names.age, "moment": names.moment, "percent": percent, "digits": digits}
    made.globals |= {"version": __version__, "intended_use": INTENDED_USE, "short": SHORT, "labels": LABELS}
    return made


def percent(value: float | None) -> str:
    """``14.3 %``, or a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"


def digits(value: float) -> str:
    """A probability in two digits: ``.07``, ``.98``; what is next to 0 or 1 says so."""
    if value >= 0.995:
        return ">.99"
    if value < 0.005:
        return "<.01"
    return f"{value:.2f}"[1:]


ENVIRONMENT = make_environment()


def render(template: str, **values: Any) -> Markup:
    """A template as HTML, which other templates take as it is."""
    return Markup(ENVIRONMENT.get_template(template).render(**values))


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """A template as an answer, with the caller and the time of the server."""
    state = request.scope.get("state", {})
    common = {
        "user": state.get("user", ""),
        "role": state.get("role", ""),
        "now": parts_of(request).clock(),
        "can_log_out": parts_of(request).config.http.auth == "token",
    }
    return HTMLResponse(render(template, **(common | values)), status_code=status)
