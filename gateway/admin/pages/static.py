"""The pages' static files, held in memory so that they are served even without free file handles.

Their folder is named by a digest of all of them, so that a browser keeps them and asks for none again.

Tested in tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from gateway import __version__
from gateway.admin.access import route
from gateway.core.roles import Need
from gateway.web.http_headers import none_match

_FOLDER: Final = Path(__file__).parents[1] / "static"
_YEAR: Final = 31_536_000
"""Seconds for which a browser keeps what it need not ask for again."""
# Not from the machine's MIME table: with nosniff, a browser runs no script of a wrong type.
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    content_type: str
    etag: str


def routes() -> list[web.RouteDef]:
    """One route under the digest, which browsers keep, and one that they ask again with the entity tag."""
    folder()
    return [
        route("GET", f"/{path}/{{name}}", serve, need=Need.NOTHING)
        for path in ("static-{digest}", "static")
    ]


@functools.cache
def folder() -> str:
    """The folder that the pages name. Another version has another one: its headers may differ, too."""
    etags = "".join(file.etag for _, file in sorted(_files().items()))
    return f"static-{hashlib.sha256((__version__ + etags).encode()).hexdigest()[:16]}"


async def serve(request: web.Request) -> web.StreamResponse:
    """One file, or 304 if the client has its present version."""
    file = _files().get(request.match_info["name"])
    if file is None:
        raise web.HTTPNotFound
    if none_match(request.headers.getall("If-None-Match", ()), file.etag):
        response = web.Response(status=304)
    else:
        response = web.Response(body=file.body, content_type=file.content_type, charset="utf-8")
    response.etag = file.etag
    # The page of another node may have come from another version: then the browser asks again with the entity tag.
    kept = f"static-{request.match_info.get('digest')}" == folder()
    response.headers["Cache-Control"] = f"max-age={_YEAR}, immutable" if kept else "no-cache"
    return response


@functools.cache
def _files() -> dict[str, _File]:
    return {path.name: _read(path) for path in _FOLDER.iterdir() if path.is_file()}


def _read(path: Path) -> _File:
    body = path.read_bytes()
    return _File(body, _TYPES.get(path.suffix, "text/plain"), hashlib.sha256(body).hexdigest()[:32])
