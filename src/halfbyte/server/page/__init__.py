"""The chat page: files that a browser fetches, built from `page/` in the repository and kept here, so that no machine
that runs Halfbyte needs Node. The page asks its own server for `v1/models` and `v1/chat/completions`, and nothing else
of anybody."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

_CONTENT_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "licences.txt": "text/plain; charset=utf-8",
}

PAGE_HEADERS: Mapping[str, str] = MappingProxyType({
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types dompurify"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
})  # fmt: skip
"""Headers that go with every file: only the page's own files run, nothing is sent elsewhere, nothing frames it, and a
browser asks by ETag whether a file is still the same."""


@dataclass(frozen=True)
class PageFile:
    """One file of the page.

    Attributes:
        path: Where it is served, `/` for the page itself.
        content_type: The header of this name.
        body: Its bytes.
        etag: A strong ETag, quotes included.
    """

    path: str
    content_type: str
    body: bytes
    etag: str


def page_files() -> tuple[PageFile, ...]:
    """The files of the page, to be served with `PAGE_HEADERS`."""
    return tuple(_read(name, content_type) for name, content_type in _CONTENT_TYPES.items())


def _read(name: str, content_type: str) -> PageFile:
    body = Path(__file__).with_name(name).read_bytes()
    path = "/" if name == "index.html" else f"/{name}"
    return PageFile(path, content_type, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
