"""The chat page's routes: its files, with an ETag so that a browser asks only whether they are still the same."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from halfbyte.server.page import PAGE_HEADERS, PageFile, page_files


def routes() -> list[Route]:
    """A route for each file of the page; the page itself is at `/`."""
    return [_route(file) for file in page_files()]


def _route(file: PageFile) -> Route:
    headers = {**PAGE_HEADERS, "etag": file.etag}

    async def answer(request: Request) -> Response:
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.body, media_type=file.content_type, headers=headers)

    return Route(file.path, answer, methods=["GET"])
