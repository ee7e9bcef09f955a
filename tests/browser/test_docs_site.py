"""The documentation's site on a telephone: no page is wider than the screen, as what is wide scrolls within itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.browser.devtools import running_browser
from tests.conftest import ROOT

WIDTH = 390


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    subprocess.run(build, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=True)
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_no_page_scrolls_sideways_on_a_telephone(site: Path, address: str) -> None:
    pages = sorted(file.relative_to(site).as_posix().removesuffix("index.html") for file in site.rglob("index.html"))
    assert {"", "changelog/", "tutorial/", "reference/python/", "reference/commands/run/"} <= set(pages)
    with running_browser() as browser, browser.tab() as tab:
        tab.size(WIDTH, 844)
        for page in pages:
            tab.open(f"{address}/{page}")
            tab.wait(f"document.documentElement.scrollWidth <= {WIDTH}", seconds=10)
        assert tab.errors == []
        tab.run("document.body.insertAdjacentHTML('beforeend', '<p style=\"width: 1000px\">wide</p>')")
        assert tab.run("document.documentElement.scrollWidth") > WIDTH
