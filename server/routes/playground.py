"""GET /, the playground, and the files under /static/ that it is made of.

They hold nothing secret and need no API key: the page is where one can be entered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

PAGE = "index.html"
CONTENT_TYPES: Mapping[str, str] = MappingProxyType(
    {
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".mjs": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
    }
)
"""What is served, by the end of its name; the system's own table may lack .mjs."""

HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; object-src 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
)
"""Nothing from elsewhere, nothing inline; kept by browsers, but asked about each time."""

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class PageFile:
    """One of the page's files."""

    body: bytes
    content_type: str
    etag: str


@cache
def page_files() -> Mapping[str, PageFile]:
    """All of the page's files by name, read once."""
    files: dict[str, PageFile] = {}
    for path in (resources.files("clients") / "playground").iterdir():
        content_type = CONTENT_TYPES.get("." + path.name.rpartition(".")[2])
        if content_type is not None:
            body = path.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            files[path.name] = PageFile(body, content_type, etag)
    return MappingProxyType(files)


@router.api_route("/", methods=["GET", "HEAD"])
async def page(http: Request) -> Response:
    """The playground."""
    return _answer(http, PAGE)


@router.api_route("/static/{name}", methods=["GET", "HEAD"])
async def page_file(http: Request, name: str) -> Response:
    """One of the page's files."""
    if name == PAGE or name not in page_files():
        raise HTTPException(404)
    return _answer(http, name)


def _answer(http: Request, name: str) -> Response:
    file = page_files()[name]
    headers = {**HEADERS, "etag": file.etag}
    if file.etag in http.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers={**headers, "content-type": file.content_type})
