"""The timeline in a real browser: it shows what the trace holds, zooms, moves and finds, without a console error."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from halfbyte.report.page import page
from halfbyte.report.trace import Event
from tests.browser.conftest import CHROMIUM

Opened = dict[str, str]
Open = Callable[..., Opened]

COUNT = 50_000
NAMES = ("qkv", "attention", "o", "gate_up", "down")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 50,000 events of 10 µs, a gap of 10 µs after each, and one with a name that is markup."""
    steps = [Event("gpu", NAMES[i % 5], "decode", 20.0 * i, 10.0, f"step {i}") for i in range(COUNT - 1)]
    odd = Event("tokens", "</script><b>&", "prefill", 0.0, 10.0)
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(page("A <title>", ["about"], [("table", [["part", "calls"], ["qkv", "10000"]])], [odd, *steps]))
    return file


@pytest.fixture(scope="module")
def opened(written: Path) -> Open:
    """Open the page, do something in it, and give what it says of itself then; fails on console messages."""

    def run(fragment: str = "", script: str = "") -> Opened:
        file = written
        if script:
            file = written.with_name("acted.html")
            file.write_text(written.read_text().replace("</body>", f"<script>{script};draw();</script></body>"))
        done = subprocess.run(
            [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
             "--window-size=1280,900", "--dump-dom", f"{file.as_uri()}#{fragment}"],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        assert "CONSOLE" not in done.stderr
        root = re.search(r"<html[^>]*>", done.stdout)
        assert root is not None
        return dict(re.findall(r'data-(\w+)="([^"]*)"', root[0])) | {"dom": done.stdout}

    return run


def view(found: Opened) -> tuple[float, float]:
    start, end = found["view"].split("-")
    return float(start), float(end)


def test_it_loads_fifty_thousand_events_and_asks_the_network_for_nothing(opened: Open, written: Path) -> None:
    found = opened()
    assert found["events"] == found["visible"] == str(COUNT)
    assert '<h1 id="title">A &lt;title&gt;</h1>' in found["dom"]
    assert "<td>10000</td>" in found["dom"]
    assert not re.search(r"https?://|<link|<img|@import|fetch\(", written.read_text())


def test_a_part_of_it_shows_the_events_of_that_part(opened: Open) -> None:
    found = opened("from=100000&to=101000")
    assert view(found) == (100000.0, 101000.0)
    assert 50 <= int(found["visible"]) <= 52


def test_the_wheel_zooms_and_dragging_moves(opened: Open) -> None:
    wheel = (
        "canvas.dispatchEvent(new WheelEvent('wheel', {deltaY: -1000, clientX: 600, clientY: 300, cancelable: true}))"
    )
    start, end = view(opened(script=wheel))
    assert end - start == pytest.approx(20 * COUNT * 2.718**-1.5, rel=0.01)
    drag = (
        wheel
        + """;
    for (const [kind, at] of [['pointerdown', 700], ['pointermove', 600], ['pointerup', 600]])
      canvas.dispatchEvent(new PointerEvent(kind, {pointerId: 1, clientX: at, clientY: 300, bubbles: true}))"""
    )
    moved = view(opened(script=drag))
    assert moved[0] > start
    assert moved[1] - moved[0] == pytest.approx(end - start, rel=1e-3)


def test_search_counts_and_buttons_and_keys_zoom(opened: Open) -> None:
    assert opened("search=attention")["found"] == str(COUNT // 5)
    assert opened("search=step+1234")["found"] == "11"
    start, end = view(opened(script="document.getElementById('in').click()"))
    assert end - start == pytest.approx(10 * COUNT, rel=0.01)
    key = "canvas.dispatchEvent(new KeyboardEvent('keydown', {key: '+'}))"
    assert view(opened(script=key))[1] < 20 * COUNT


def test_hovering_says_what_an_event_is(opened: Open) -> None:
    at = "{pointerId: 1, clientX: 700, clientY: canvas.getBoundingClientRect().top + 105}"
    move = f"canvas.dispatchEvent(new PointerEvent('pointermove', {at}))"
    found = opened("from=100000&to=100010", script=move)
    assert re.search(r'<div id="tip"[^>]*visible[^>]*>qkv · 10.0 µs · decode · step 5000', found["dom"])


def test_drawing_all_of_a_gpu_takes_a_stroke_a_pixel_not_an_event(opened: Open) -> None:
    script = (
        "let strokes = 0; const paint = pen.fillRect.bind(pen); "
        "pen.fillRect = (...at) => { strokes++; paint(...at); }; draw(); root.dataset.strokes = strokes"
    )
    assert 500 < int(opened(script=script)["strokes"]) < 2 * 1280


def test_it_comes_in_light_and_dark(opened: Open) -> None:
    assert opened("look=dark")["look"] == "dark"
    assert opened("look=dark", "document.getElementById('look').click()")["look"] == "light"
