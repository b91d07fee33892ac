"""What every page shares: the frame around it, the headers, the login it needs, how it fails."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp_jinja2
import jinja2
import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.admin.auth import is_meant, is_public, login_of
from gateway.admin.context import CALLER, LOGIN, PARTS, AdminContext
from gateway.core.problems import Problem, problem
from gateway.core.times import to_text
from gateway.store.engine import StoreUnavailable
from gateway.web.forms import TooManyFields, parse_form
from gateway.web.http_headers import media_type
from gateway.web.responses import MAX_BODY, RequestRefused, read_body, store_problem

_HEADERS: Final = {
    # No inline script or style, nothing from elsewhere, in nobody's frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        " connect-src 'self'; form-action 'self'; base-uri 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FORM: Final = "application/x-www-form-urlencoded"
PAGE: Final = 50
"""Rows of a table on one page."""
_MAX_PAGE: Final = 100_000
MAX_FIELDS: Final = 32
"""Fields of a form that names no ICEs."""
_DECODED_AT_ONCE: Final = 32 * 1024
"""Bytes of a form that are decoded within 10 ms. A larger one takes up to 0.5 s, in a thread."""
_DECODER: web.AppKey[asyncio.Semaphore] = web.AppKey("decoder", asyncio.Semaphore)
_BY_STATUS: Final = {
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
}
_log = structlog.get_logger()


def furnish(app: web.Application) -> None:
    """Give the app its templates and headers."""
    environment = aiohttp_jinja2.setup(
        app,
        loader=jinja2.PackageLoader("gateway.admin", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rfc3339"] = to_text
    environment.filters["utc"] = _utc
    app.on_response_prepare.append(_set_headers)
    app[_DECODER] = asyncio.Semaphore(1)


def _utc(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


async def _set_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
    if request.match_info.route.name == "static":
        # A name bears its version, or is asked for again by its entity tag.
        response.headers["Cache-Control"] = "no-cache"


async def to_the_page(request: web.Request) -> web.StreamResponse:
    """`/admin` is `/admin/`; relative, since a proxy may have taken a prefix away."""
    raise web.HTTPFound(f"{request.path.rsplit('/', 1)[-1]}/")


@web.middleware
async def logged_in(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let nobody in without a login; a change needs the page's own token, too."""
    await _let_in(request)
    return await handler(request)


async def _let_in(request: web.Request) -> None:
    if is_public(request):
        return
    login = await login_of(request)
    if login is None:
        if is_fragment(request) or request.method != "GET":
            raise RequestRefused(
                problem("unauthenticated", "Your login has ended. Nothing was changed.")
            )
        raise web.HTTPFound(f"{root(request)}login")
    request[LOGIN], request[CALLER] = login, login.caller
    if not is_meant(request, login):
        raise RequestRefused(
            problem(
                "forbidden",
                "This page was opened in another login, so nothing was changed. Do it once more.",
            )
        )


@web.middleware
async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell of what went wrong on a page, or in the place on it that was asked for."""
    try:
        return await handler(request)
    except RequestRefused as refusal:
        return _refused(request, refusal.problem)
    except web.HTTPException as error:
        if error.status < 400:  # noqa: PLR2004 - a redirect
            raise
        return _refused(request, problem(_BY_STATUS.get(error.status, "bad-request")))
    except StoreUnavailable as error:
        return _refused(request, store_problem(request, error))
    except ConnectionError:
        raise  # the client has gone
    except Exception:  # noqa: BLE001 - the last line before the client
        _log.exception("unexpected error", method=request.method, path=request.rel_url.raw_path)
        return _refused(request, problem("internal"))


def _refused(request: web.Request, refused: Problem) -> web.StreamResponse:
    if is_fragment(request):
        return render(request, "problem.html", {"problem": refused}, status=refused.status)
    return render(request, "problem_page.html", {"problem": refused}, status=refused.status)


def is_fragment(request: web.Request) -> bool:
    """Whether htmx asks for a part of a page."""
    return request.headers.get("HX-Request") == "true"


def render_table(request: web.Request, name: str, context: dict[str, Any]) -> web.StreamResponse:
    """The page `name`, or its table alone where htmx asks for that."""
    alone = is_fragment(request) and request.headers.get("HX-Target") == "table"
    return render(request, f"{name}_table.html" if alone else f"{name}.html", context)


@dataclass(frozen=True, slots=True)
class Page:
    """Which rows of a table are shown: `number` counts from 1."""

    number: int

    @classmethod
    def of(cls, number: int) -> Page:
        """The page of an address; what is out of bounds is the nearest that there could be."""
        return cls(max(1, min(number, _MAX_PAGE)))

    @property
    def offset(self) -> int:
        """Rows before it."""
        return (self.number - 1) * PAGE

    def context(self, total: int) -> dict[str, int]:
        """What the templates need of it, of `total` rows."""
        return {"total": total, "number": self.number, "pages": max(1, -(-total // PAGE))}


def root(request: web.Request) -> str:
    """The way from this page to `/admin/`, relative: a proxy may have taken a prefix away."""
    # As the browser sees it: not decoded, and behind the longest prefix that fits.
    path = request.rel_url.raw_path
    prefixes = {"", *(urlsplit(url).path for url in parts(request).public_urls)}
    starts = [f"{prefix}/admin/" for prefix in prefixes]
    start = max((start for start in starts if path.startswith(start)), key=len, default=path)
    return "../" * path[len(start) :].count("/") or "./"


def parts(request: web.Request) -> AdminContext:
    """The collaborators."""
    return request.config_dict[PARTS]


def render(
    request: web.Request,
    template: str,
    context: dict[str, Any],
    *,
    status: int = 200,
    tell: dict[str, Any] | None = None,
) -> web.StreamResponse:
    """A page or a fragment; `tell` are events for the page's script (HX-Trigger)."""
    login = request.get(LOGIN)
    response = aiohttp_jinja2.render_template(
        template,
        request,
        {
            **context,
            "root": root(request),
            "held": parts(request).node.restore_hold.reason,
            "caller": None if login is None else login.caller,
            "form_token": "" if login is None else login.form_token.reveal(),
            "cluster": parts(request).cluster,
            "live": login is not None and login.caller.grants.reads_events,
        },
        status=status,
    )
    events = dict(tell or {})
    if login is not None and is_fragment(request):
        # A page that was open before its user logged in again goes on with the new login.
        events["form-token"] = login.form_token.reveal()
    if events:
        response.headers["HX-Trigger"] = msgspec.json.encode(events).decode()
    return response


async def form(request: web.Request, at_most: int = MAX_BODY) -> dict[str, str]:
    """The fields of a posted form; of several with one name the last."""
    return dict(await posted(request, at_most))


async def posted(
    request: web.Request, at_most: int = MAX_BODY, max_fields: int = MAX_FIELDS
) -> list[tuple[str, str]]:
    """The fields of a posted form of so many bytes, in their order. Raises `RequestRefused`."""
    if media_type(request.headers.get("Content-Type", "")) != _FORM:
        raise RequestRefused(problem("bad-request", "This is not a form of these pages."))
    data = await read_body(request, at_most)
    try:
        if len(data) <= _DECODED_AT_ONCE:
            fields = parse_form(data, max_fields)
        else:
            async with request.config_dict[_DECODER]:
                fields = await asyncio.to_thread(parse_form, data, max_fields)
    except TooManyFields:
        raise RequestRefused(
            problem("too-large", f"Send {max_fields} fields at the most.")
        ) from None
    except ValueError:
        raise RequestRefused(problem("bad-request", "The form cannot be read.")) from None
    # The form may have taken its time: who has lost their right meanwhile has none any more.
    before = request.get(CALLER)
    await _let_in(request)
    if request.get(CALLER) != before:
        raise RequestRefused(
            problem("forbidden", "Your role has changed meanwhile. Nothing was changed.")
        )
    return fields
