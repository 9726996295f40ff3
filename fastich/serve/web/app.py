"""The web side put together: one Starlette application over the parts of the server.

From outside in: the guard (host, path, size, headers, errors), who asks, the routes. Work with store, pixels and model
runs in threads, so that the event loop only moves bytes.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from fastich.serve.web import api, events, health, images, kserve, metrics, page
from fastich.serve.web.auth import Auth, Doorman, login, logout
from fastich.serve.web.guards import Guard, error_answer
from fastich.serve.web.jinja import HERE
from fastich.serve.web.limits import FailedLogins
from fastich.serve.web.listing import Listing
from fastich.serve.web.parts import Parts


class Static(StaticFiles):
    """Scripts and style; asked for again each time, for they change with an upgrade, and answered 304 mostly."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        """A file with ``no-cache``."""
        answer: Response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        answer.headers["Cache-Control"] = "no-cache"
        return answer


def build_app(parts: Parts) -> Starlette:
    """The application; it is ready to serve when this returns.

    Raises:
        ArtifactError: the model fails on the golden slice.
    """
    doorman = Doorman(
        config=parts.config.http, tokens=parts.tokens, failures=FailedLogins(parts.clock), clock=parts.clock
    )
    answers, golden, hub = metrics.Answers(), health.Golden(parts.session), events.Hub(parts)
    darkroom, registry = images.Darkroom(), CollectorRegistry()
    registry.register(metrics.StoreCollector(parts, golden, hub, answers))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        parts.stopping.set()
        darkroom.close()

    routes = [
        *parts.extra_routes,
        *page.ROUTES,
        *api.ROUTES,
        *images.ROUTES,
        *events.ROUTES,
        *kserve.ROUTES,
        *health.ROUTES,
        *metrics.ROUTES,
        Route("/login", login, methods=["GET", "POST"]),
        Route("/logout", logout, methods=["POST"]),
        Mount("/static", Static(directory=HERE / "static")),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Guard, config=parts.config.http, answered=answers.note),
            Middleware(Auth, doorman=doorman),
        ],
        exception_handlers={HTTPException: _http_error, api.Refusal: api.refused},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.parts, app.state.doorman, app.state.golden, app.state.hub = parts, doorman, golden, hub
    app.state.listing = Listing(parts)
    app.state.darkroom, app.state.registry, app.state.turns = darkroom, registry, kserve.Turns()
    return app


def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself, as one line of JSON."""
    del request
    assert isinstance(error, HTTPException)
    text = {404: "no such page", 405: "this address takes another method"}.get(error.status_code, error.detail)
    headers = {name.replace("-", "_"): value for name, value in (error.headers or {}).items()}
    return error_answer(error.status_code, text, **headers)
