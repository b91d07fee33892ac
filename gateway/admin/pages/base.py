"""What all pages share: rendering, headers, the login check, forms and error pages.

Tested in tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

import asyncio
import functools
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import aiohttp_jinja2
import jinja2
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.admin.auth import LIVE, current_login, is_public, passes_csrf_check
from gateway.admin.context import CALLER, LOGIN, admin_context
from gateway.admin.pages import static
from gateway.core.problems import problem
from gateway.core.times import to_text
from gateway.web.forms import TooManyFields, parse_form
from gateway.web.http_headers import media_type
from gateway.web.responses import MAX_BODY, RequestRefused, problem_of, read_body

_HEADERS: Final = {
    # No inline script or style, nothing from another site, and no other site may frame the page.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        " connect-src 'self'; worker-src 'self'; form-action 'self'; base-uri 'self'; frame-ancestors 'none'"
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
"""Maximum fields of a form that does not list ICEs."""
_MAX_INLINE: Final = 32 * 1024
"""Bytes of a form that are decoded in the loop, within 10 ms; a thread decodes larger ones, in up to 0.5 s."""
_DECODER: web.AppKey[asyncio.Semaphore] = web.AppKey("decoder", asyncio.Semaphore)


def configure(app: web.Application) -> None:
    """Set up the application's templates and response headers."""
    app[aiohttp_jinja2.APP_KEY] = _environment()
    app.on_response_prepare.append(_set_headers)
    app[_DECODER] = asyncio.Semaphore(1)


@functools.cache
def _environment() -> jinja2.Environment:
    """The templates, which are compiled once for all applications of this process."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gateway.admin", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["static"] = static.folder()
    environment.filters |= {"rfc3339": to_text, "utc": _utc, "grouped": "{:,}".format}
    return environment


def _utc(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


async def _set_headers(_request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


async def redirect_to_root(request: web.Request) -> web.StreamResponse:
    """Redirect `/admin` to `/admin/`, relative since a proxy may have removed a prefix."""
    raise web.HTTPFound(f"{request.path.rsplit('/', 1)[-1]}/")


@web.middleware
async def require_login(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Middleware: require a login, and the form token for changes."""
    await _check_login(request)
    return await handler(request)


async def _check_login(request: web.Request) -> None:
    if is_public(request):
        return
    login = await current_login(request)
    if login is None:
        if is_fragment(request) or request.method != "GET":
            raise RequestRefused(
                problem("unauthenticated", "Your login has ended. Nothing was changed.")
            )
        wanted = _below_root(request)
        to = f"?{urlencode({'to': wanted})}" if wanted else ""
        raise web.HTTPFound(f"{root(request)}login{to}")
    request[LOGIN], request[CALLER] = login, login.caller
    if not passes_csrf_check(request, login):
        raise RequestRefused(
            problem(
                "forbidden",
                "This page was opened in another login, so nothing was changed. Try again.",
            )
        )


@web.middleware
async def handle_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Middleware: answer an error with a page, or with a dialog if htmx asked for a fragment."""
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - the client gets an answer whatever failed
        refused = problem_of(request, error)
    template = "problem.html" if is_fragment(request) else "problem_page.html"
    return render(request, template, {"problem": refused}, status=refused.status)


def is_fragment(request: web.Request) -> bool:
    """Whether htmx asks for a fragment of a page."""
    return request.headers.get("HX-Request") == "true"


def is_table(request: web.Request) -> bool:
    """Whether htmx asks for the table of a page alone."""
    return is_fragment(request) and request.headers.get("HX-Target") == "table"


def render_table(request: web.Request, name: str, context: dict[str, Any]) -> web.StreamResponse:
    """The page `name`, or only its table if htmx asks for that."""
    return render(request, f"{name}_table.html" if is_table(request) else f"{name}.html", context)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a table; `number` counts from 1."""

    number: int

    @classmethod
    def of(cls, number: int) -> Page:
        """The page with this number, or the nearest possible one."""
        return cls(max(1, min(number, _MAX_PAGE)))

    @property
    def offset(self) -> int:
        """The number of rows before this page."""
        return (self.number - 1) * PAGE

    def context(self, total: int) -> dict[str, int]:
        """The variables of the templates for a table of `total` rows."""
        return {"total": total, "number": self.number, "pages": pages_of(total)}


def pages_of(total: int) -> int:
    """How many pages a table of `total` rows has."""
    return max(1, -(-total // PAGE))


def root(request: web.Request) -> str:
    """The relative URL of `/admin/` from this page; relative since a proxy may have removed a prefix."""
    return "../" * _below_root(request).partition("?")[0].count("/") or "./"


def _below_root(request: web.Request) -> str:
    """The address of this page below `/admin/`, with its query."""
    # The raw path, as the browser sees it, after the longest matching prefix.
    path = request.rel_url.raw_path
    prefixes = {"", *(urlsplit(url).path for url in admin_context(request).public_urls)}
    starts = [f"{prefix}/admin/" for prefix in prefixes]
    start = max((start for start in starts if path.startswith(start)), key=len, default=path)
    query = request.rel_url.raw_query_string
    return path[len(start) :] + (f"?{query}" if query else "")


def gateway_url(request: web.Request) -> str:
    """The URL that ICEs are given; without `public_url` the one at which the browser found the gateway."""
    urls = admin_context(request).public_urls
    return urls[0] if urls else f"{request.scheme}://{request.host}"


def render(
    request: web.Request,
    template: str,
    context: dict[str, Any],
    *,
    status: int = 200,
    trigger: dict[str, Any] | None = None,
) -> web.StreamResponse:
    """A page or a fragment; `trigger` has events for the page's script (HX-Trigger)."""
    login = request.get(LOGIN)
    streams = admin_context(request).streams
    response = aiohttp_jinja2.render_template(
        template,
        request,
        {
            **context,
            "root": root(request),
            "held": admin_context(request).node.restore_hold.reason,
            "caller": None if login is None else login.caller,
            "form_token": "" if login is None else login.form_token.reveal(),
            "cluster": admin_context(request).engine.shared,
            "live": login is not None and login.caller.grants.reads_events,
            "poll": streams.limits.poll_every,
        },
        status=status,
    )
    if login is not None and LIVE in request.headers and not login.caller.grants.reads_events:
        pause = streams.next_poll(asyncio.get_running_loop().time())
        response.headers["X-Poll-After"] = f"{pause:.2f}"
    _trigger(request, response, trigger or {})
    return response


def _trigger(request: web.Request, response: web.StreamResponse, events: dict[str, Any]) -> None:
    """Add events for the page's script (HX-Trigger)."""
    login = request.get(LOGIN)
    if login is not None and is_fragment(request):
        # A page that was open before the user logged in again needs the new login's token.
        events = {**events, "form-token": login.form_token.reveal()}
    if events:
        # Headers are ASCII: JSON escapes the rest.
        response.headers["HX-Trigger"] = json.dumps(events, separators=(",", ":"))


def toast(request: web.Request, sentence: str, *, changed: str) -> web.StreamResponse:
    """Close the dialog, if one is open, and say in passing what was done; reload what it changed."""
    response = web.Response(status=204)
    _trigger(request, response, {changed: {}, "toast": {"sentence": sentence}})
    return response


def notice(
    request: web.Request, heading: str, sentence: str, *more: str, changed: str, status: int = 200
) -> web.StreamResponse:
    """A dialog that says what was done, and the event that reloads what it changed."""
    context = {"heading": heading, "sentences": [sentence, *more]}
    return render(request, "notice.html", context, status=status, trigger={changed: {}})


async def form(request: web.Request, max_size: int = MAX_BODY) -> dict[str, str]:
    """The fields of a posted form; of several with the same name, the last. Raises `RequestRefused`."""
    return dict(await form_fields(request, max_size))


async def form_fields(
    request: web.Request, max_size: int = MAX_BODY, max_fields: int = MAX_FIELDS
) -> list[tuple[str, str]]:
    """The fields of a posted form of at most `max_size` bytes, in order. Raises `RequestRefused`."""
    if media_type(request.headers.get("Content-Type", "")) != _FORM:
        raise RequestRefused(problem("bad-request", "This is not a form of these pages."))
    data = await read_body(request, max_size)
    try:
        if len(data) <= _MAX_INLINE:
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
    # The form may have arrived slowly, and the caller may have lost their right meanwhile.
    before = request.get(CALLER)
    await _check_login(request)
    if request.get(CALLER) != before:
        raise RequestRefused(
            problem("forbidden", "Your role has changed in the meantime. Nothing was changed.")
        )
    return fields
