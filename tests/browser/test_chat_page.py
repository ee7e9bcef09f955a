"""The chat page in a real browser, against a server that says what each test has written for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from tests.browser.chat_server import GOOD, MODELS, ChatServer, Reply, chat_server, delta, end, spoken
from tests.browser.devtools import Browser, Tab, running_browser

SETTINGS = "[aria-label='Conversation settings']"
DONE = "document.querySelector('.answer:last-of-type')?.getAttribute('aria-busy') === 'false'"
RICH = """Intro with **bold**, `code` and a [link][ref].

Setext title
===

1. one

   more of one
2. two
   - nested
   - list

para that grows
***bold at the start*** of a line
- a list that interrupts

```python
def f(x: int) -> str:
    return "a `b`"  # note
```

| a | b |
|:--|--:|
| 1 | 2 |

> quoted
lazily

~~~
no language
~~~

[ref]: https://example.org/ref
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def tab(browser: Browser, server: ChatServer) -> Iterator[Tab]:
    """The page, open; at the end nothing may stand in the console, nor anything have been asked of others."""
    with browser.tab() as tab:
        tab.open(server.url)
        tab.wait("document.querySelector('#message')")
        yield tab
        tab.run("0")
        assert tab.errors == []
        assert [url for url in tab.requests if not url.startswith((server.url, "blob:"))] == []


def say(tab: Tab, text: str) -> None:
    """Send a message, and wait until its answer has ended."""
    before = tab.count(".answer")
    begin(tab, text)
    tab.wait(f"document.querySelectorAll('.answer').length === {before + 1} && {DONE}")


def begin(tab: Tab, text: str) -> None:
    tab.click("#message")
    tab.write(text)
    tab.press("Enter")


def answered(tab: Tab, count: int = 1) -> None:
    tab.wait(f"document.querySelectorAll('.answer').length === {count} && {DONE}")


def sent(server: ChatServer) -> list[tuple[str, str]]:
    """Role and content of the messages of the last request."""
    return [(message["role"], message["content"]) for message in server.bodies[-1]["messages"]]


def failed(tab: Tab, status: int) -> None:
    """The browser itself notes in the console that a request failed; nothing else may stand there."""
    tab.run("0")
    assert tab.errors
    assert [error for error in tab.errors if f"status of {status} " not in error] == []
    tab.errors.clear()


def test_an_answer_streams_and_says_what_it_took(tab: Tab, server: ChatServer) -> None:
    gate = Event()
    server.replies = [
        Reply([*spoken("Half of "), gate, *spoken("the answer."), *end(tokens=231, prompt=1024, cached=512)])
    ]
    begin(tab, "How?")
    tab.wait("document.querySelector('.answer .prose')?.innerText.trim() === 'Half of'")
    assert tab.count("[aria-label=Stop]") == 1
    time.sleep(0.2)
    gate.set()
    answered(tab)
    assert tab.text(".answer .prose") == "Half of the answer."
    facts = tab.run("[...document.querySelectorAll('.stats span')].map(e => e.innerText)")
    assert facts[:3] == ["Qwen3-4B-q4", "4.51 bits", "KL 0.021"]
    rate, first, tokens, prompt = facts[3:]
    assert rate.endswith(" tokens/s")
    assert 0 < float(rate.split()[0].replace(",", "")) < 230 / 0.2
    assert first.startswith("first token ")
    assert (tokens, prompt) == ("231 tokens", "prompt 1,024, 512 cached")
    assert tab.text(".hint") == "1,255 of 8,192 tokens used"
    assert tab.run("document.title") == "How? – Halfbyte"
    assert server.bodies == [
        {
            "model": "Qwen3-4B-q4",
            "messages": [{"role": "user", "content": "How?"}],
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
    ]


def test_a_message_sent_before_the_models_are_known_waits_for_them(browser: Browser, server: ChatServer) -> None:
    server.ready.clear()
    server.replies = [Reply([*spoken("ok"), *end()])]
    with browser.tab() as tab:
        tab.open(server.url)
        tab.wait("document.querySelector('#message')")
        begin(tab, "Hi")
        tab.wait("document.querySelector('.answer')")
        assert server.bodies == []
        server.ready.set()
        answered(tab)
        assert server.bodies[0]["model"] == "Qwen3-4B-q4"
        assert tab.errors == []


@pytest.mark.parametrize("size", [1, 3, 7])
def test_markdown_that_grew_is_the_markdown_made_at_once(tab: Tab, server: ChatServer, size: int) -> None:
    """A page that is opened again makes each answer from its whole text."""
    server.replies = [Reply([*spoken(RICH, size), *end()])]
    say(tab, "Show all")
    grown = tab.run("document.querySelector('.answer .prose').innerHTML")
    tab.call("Page.reload")
    tab.wait("document.querySelector('.answer .prose h1')")
    assert tab.run("document.querySelector('.answer .prose').innerHTML") == grown
    for selector in (
        "h1",
        "ol ol, ol ul",
        "strong",
        ".hljs-keyword",
        "td.right",
        "blockquote",
        "a[href='https://example.org/ref']",
    ):
        assert tab.count(f".prose {selector}"), selector


def test_blocks_that_are_complete_are_not_made_again(tab: Tab, server: ChatServer) -> None:
    gates = [Event(), Event()]
    server.replies = [Reply([delta(content="First.\n\nSecond"), gates[0], delta(content=" part."), gates[1], *end()])]
    begin(tab, "Go")
    tab.wait("document.querySelectorAll('.prose p').length === 2")
    tab.run("document.querySelector('.prose p').dataset.mine = '1'")
    gates[0].set()
    tab.wait("document.querySelectorAll('.prose p')[1].innerText === 'Second part.'")
    assert tab.count(".prose p[data-mine]") == 1
    gates[1].set()
    answered(tab)


def test_code_is_coloured_and_copied(tab: Tab, server: ChatServer) -> None:
    code = 'def f():\n    return "<b>"\n'
    server.replies = [Reply([*spoken(f"```python\n{code}```\n"), *end()])]
    say(tab, "Code")
    assert tab.text(".code .hljs-keyword") == "def"
    assert tab.text(".code-head span") == "python"
    for clipboard in ("", "Object.defineProperty(navigator, 'clipboard', {value: undefined})"):
        tab.run(f"window.copied = ''; {clipboard}")
        tab.run(
            "if (navigator.clipboard) navigator.clipboard.writeText = async text => { window.copied = text };"
            "else document.addEventListener("
            "    'copy', () => { window.copied = document.activeElement.value }, {once: true})"
        )
        tab.click(".code button.copy")
        tab.wait("document.querySelector('.notice').innerText === 'Copied.'")
        assert tab.run("window.copied") == code


def test_very_long_code_is_shown_without_colours(tab: Tab, server: ChatServer) -> None:
    line = "x = 1\n"
    server.replies = [Reply([*spoken(f"```python\n{line * count}```\n", 4000), *end()]) for count in (5_000, 10_000)]
    say(tab, "Long")
    assert tab.count(".hljs-number") == 5_000
    say(tab, "Longer")
    assert tab.count(".hljs-number") == 5_000
    assert tab.run("[...document.querySelectorAll('pre')].at(-1).textContent.length") == 10_000 * len(line)


HOSTILE = """<script>window.hit = 1</script><img src=x onerror="window.hit = 2"><svg onload="window.hit = 3">

[script](javascript:window.hit=4) [data](data:text/html,<script>opener.hit=5</script>) [odd](JaVaScRiPt:window.hit=6)
[file](file:///etc/passwd) [relative](v1/models) [good](https://example.org/?a=1&b="2") <javascript:window.hit=7>

![remote](https://evil.example/pixel.png "onload=alert(1)") ![x](data:image/svg+xml;base64,PHN2Zy8+)

```html"><img/onerror=window.hit=8/src=x>
<script>window.hit = 9</script></code></pre><img src=x onerror="window.hit = 10">
```

<a href="javascript:window.hit=11" onclick="window.hit=12">raw</a> <iframe src="https://evil.example"></iframe>
<style>body { display: none }</style> <form action="https://evil.example"><input name=x></form>

[ref]: javascript:window.hit=13
[ref] https://example.com/plain
"""


def test_hostile_markdown_does_nothing(tab: Tab, server: ChatServer) -> None:
    call = delta(
        tool_calls=[{"index": 0, "id": "1", "function": {"name": "<img src=x onerror=hit=14>", "arguments": HOSTILE}}]
    )
    server.replies = [Reply([delta(reasoning_content=HOSTILE), *spoken(HOSTILE, 5), call, *end()])]
    say(tab, HOSTILE.replace("\n", " "))
    for summary in (".reasoning summary", ".call summary"):
        tab.click(summary)
    tab.wait("document.querySelector('.reasoning .prose').innerText.includes('raw')")
    forbidden = "script, img, svg, iframe, form, style, input, [onerror], [onclick], [onload]"
    assert [tab.count(f"{part} :is({forbidden})") for part in (".bubble", ".prose")] == [0, 0]
    links = tab.run("[...document.querySelectorAll('.prose a')].map(a => [a.getAttribute('href'), a.target, a.rel])")
    assert {href for href, _, _ in links} == {
        "https://example.org/?a=1&b=%222%22",
        "https://evil.example/pixel.png",
        "https://evil.example",
        "https://example.com/plain",
    }
    assert {(target, rel) for _, target, rel in links} == {("_blank", "noopener noreferrer nofollow")}
    time.sleep(0.2)
    assert tab.run("window.hit") is None
    assert tab.count("header.top") == 1


def test_reasoning_is_folded(tab: Tab, server: ChatServer) -> None:
    gate = Event()
    server.replies = [Reply([delta(reasoning_content="I *think*."), gate, *spoken("So."), *end()])]
    begin(tab, "Why?")
    tab.wait("document.querySelector('.reasoning summary')?.innerText === 'Thinking'")
    assert "I think." not in tab.text(".answer")
    gate.set()
    answered(tab)
    assert tab.text(".reasoning summary").startswith("Thought for ")
    tab.run("document.querySelector('.reasoning summary').focus()")
    tab.press("Enter")
    tab.wait("document.querySelector('.reasoning .prose em')?.innerText === 'think'")
    server.replies = [Reply([*spoken("Yes."), *end()])]
    say(tab, "Sure?")
    assert sent(server) == [("user", "Why?"), ("assistant", "So."), ("user", "Sure?")]


def test_tool_calls_are_folded_and_get_results(tab: Tab, server: ChatServer) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    tab.click(SETTINGS)
    tab.click("textarea.mono")
    tab.write("{")
    tab.wait("document.querySelector('#tools-hint').innerText.startsWith('This is not JSON')")
    tab.run("document.activeElement.select()")
    tab.write(json.dumps(tools))
    tab.press("Escape")
    calls = [
        delta(
            tool_calls=[{"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}}]
        ),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"city":'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": ' "Zürich"}'}}]),
        delta(
            tool_calls=[{"index": 1, "id": "b", "type": "function", "function": {"name": "time", "arguments": "{}"}}]
        ),
    ]
    server.replies = [Reply([*calls, *end("tool_calls")]), Reply([*spoken("Sunny."), *end()])]
    say(tab, "Weather?")
    assert server.bodies[0]["tools"] == tools
    assert tab.run("[...document.querySelectorAll('.call summary')].map(e => e.innerText)") == [
        "Call of weather",
        "Call of time",
    ]
    assert "Zürich" not in tab.text(".answer")
    tab.click(".call summary")
    assert json.loads(tab.text(".call pre")) == {"city": "Zürich"}
    tab.click(".results textarea")
    tab.write("sun")
    tab.press("Tab")
    tab.write("noon")
    tab.click(".results button")
    answered(tab, 2)
    roles = [message["role"] for message in server.bodies[1]["messages"]]
    assert roles == ["user", "assistant", "tool", "tool"]
    _, asked, *results = server.bodies[1]["messages"]
    assert asked["content"] is None
    assert [call["id"] for call in asked["tool_calls"]] == ["a", "b"]
    assert asked["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Zürich"}'}
    assert [(r["tool_call_id"], r["content"]) for r in results] == [("a", "sun"), ("b", "noon")]
    assert tab.count(".results") == 0


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Browser, server: ChatServer) -> None:
    server.key = "right"
    server.replies = [Reply([*spoken("Hello."), *end()])]
    with browser.tab() as tab:
        tab.open(server.url)
        tab.wait("document.querySelector('dialog[open] input[type=password]')")
        assert tab.run("document.activeElement.type") == "password"
        tab.write("wrong")
        tab.press("Enter")
        tab.wait("document.querySelector('dialog[open] input')?.value === ''")
        tab.write("right")
        tab.press("Enter")
        tab.wait("document.querySelector('select.model')")
        assert tab.count("dialog") == 0
        failed(tab, 401)
        say(tab, "Hi")
        assert tab.text(".answer .prose") == "Hello."
        assert tab.run("Object.values({...sessionStorage})") == ["right"]
        assert "right" not in tab.run("JSON.stringify({...localStorage})")
        tab.call("Page.reload")
        tab.wait("document.querySelector('select.model')")
        server.key = "changed"
        begin(tab, "Still?")
        tab.wait("document.querySelector('dialog[open] input')")
        tab.press("Escape")
        tab.wait("document.querySelector('.error')?.innerText.includes('This server asks for an API key.')")
        failed(tab, 401)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (
            Reply(status=429, error="The queue is full.", headers={"Retry-After": "3"}),
            "The queue is full. Try again in 3 s.",
        ),
        (Reply(status=500, error="The device is lost."), "The device is lost."),
        (Reply(status=503), "The server answered with status 503."),
    ],
)
def test_a_refusal_is_shown_and_can_be_tried_again(tab: Tab, server: ChatServer, reply: Reply, text: str) -> None:
    server.replies = [reply, Reply([*spoken("Now."), *end()])]
    begin(tab, "Hi")
    tab.wait("document.querySelector('.answer .error')")
    assert tab.text(".error p") == text
    failed(tab, reply.status)
    tab.click(".error button")
    tab.wait("document.querySelector('.answer .prose')?.innerText === 'Now.'")
    assert tab.count(".error") == 0
    assert sent(server) == [("user", "Hi")]
    assert tab.text(".versions").strip() == "2/2"


def test_an_error_in_the_stream_keeps_what_came_before(tab: Tab, server: ChatServer) -> None:
    server.replies = [Reply([*spoken("So far"), {"error": {"message": "The model ran out of memory."}}])]
    begin(tab, "Hi")
    tab.wait("document.querySelector('.answer .error p')?.innerText === 'The model ran out of memory.'")
    assert tab.text(".answer .prose") == "So far"


@pytest.mark.parametrize("how", ["dropped", "ended early", "network cut"])
def test_a_connection_that_breaks_leaves_the_answer_so_far(tab: Tab, server: ChatServer, how: str) -> None:
    gate = Event()
    server.replies = [Reply([*spoken("So far"), gate], cut=how != "ended early", hushed=how == "ended early")]
    begin(tab, "Hi")
    tab.wait("document.querySelector('.answer .prose')?.innerText === 'So far'")
    tab.offline(cut=how == "network cut")
    gate.set()
    tab.wait("document.querySelector('.answer .error')")
    assert tab.text(".error p") == "The connection was lost before the answer was complete."
    assert tab.text(".answer .prose") == "So far"
    tab.run("0")
    tab.errors.clear()  # The browser notes that the connection broke.

    if how == "network cut":
        tab.click(".error button")
        tab.wait("document.querySelector('.error p')?.innerText.startsWith('The server cannot be reached.')")
        tab.click(".new")
        tab.wait("document.querySelector('.welcome')")
        tab.click(".conversations .title")
        tab.wait("document.querySelector('.answer')")
        tab.click("[aria-label='Earlier version']")
        tab.wait("document.querySelector('.answer .prose')?.innerText === 'So far'")
        tab.offline(cut=False)
        tab.run("0")
        assert all("ERR_INTERNET_DISCONNECTED" in error for error in tab.errors)
        tab.errors.clear()
    tab.call("Page.reload")
    tab.wait("document.querySelector('.answer .prose')?.innerText === 'So far'")


def test_a_server_that_is_not_there_is_said(browser: Browser) -> None:
    with chat_server() as server, browser.tab() as tab:
        tab.call("Network.setBlockedURLs", urls=["*/v1/*"])
        tab.open(server.url)
        tab.wait("document.querySelector('.error p')?.innerText.startsWith('The server cannot be reached.')")
        tab.call("Network.setBlockedURLs", urls=[])
        tab.click(".error button")
        tab.wait("document.querySelector('select.model')")
        assert tab.count(".error") == 0


def test_escape_and_the_button_stop(tab: Tab, server: ChatServer) -> None:
    for stop in (lambda: tab.press("Escape"), lambda: tab.click("[aria-label=Stop]")):
        server.left.clear()
        server.replies = [Reply([*spoken("Begun"), Event(), *end()])]
        answers = tab.count(".answer")
        begin(tab, "Go")
        tab.wait(f"document.querySelectorAll('.answer')[{answers}]?.innerText.includes('Begun')")
        stop()
        answered(tab, answers + 1)
        assert server.left.wait(10)
        assert tab.run("document.querySelector('.answer:last-of-type .prose').innerText") == "Begun"
        assert tab.run("document.querySelector('.answer:last-of-type .faint').innerText") == "Stopped."
        assert "≈" in tab.run("document.querySelector('.answer:last-of-type .stats').innerText")
        assert tab.focused() == "Message"


def test_enter_sends_and_shift_enter_breaks_the_line(tab: Tab, server: ChatServer) -> None:
    server.replies = [Reply([*spoken("ok"), *end()])]
    tab.click("#message")
    tab.write("one")
    tab.press("Enter", shift=True)
    tab.write("two")
    tab.press("Enter")
    answered(tab)
    assert sent(server) == [("user", "one\ntwo")]
    assert tab.run("document.querySelector('#message').value") == ""
    tab.press("Enter")
    tab.run("0")
    assert len(server.bodies) == 1


def test_answers_are_made_again_and_questions_edited(tab: Tab, server: ChatServer) -> None:
    server.replies = [Reply([*spoken(text), *end()]) for text in ("first", "second", "third", "fourth")]
    say(tab, "one")
    tab.click("[aria-label='Answer again']")
    tab.wait(f"document.querySelector('.answer .prose').innerText === 'second' && {DONE}")
    assert sent(server) == [("user", "one")]
    say(tab, "two")
    assert sent(server) == [("user", "one"), ("assistant", "second"), ("user", "two")]
    tab.click(".question .edit")
    tab.wait("document.activeElement.getAttribute('aria-label') === 'Edit the message'")
    tab.press("Escape")
    tab.wait("document.activeElement.matches('.question .edit')")
    tab.press("Enter")
    tab.wait("document.activeElement.matches('.editing textarea')")
    tab.write(" again")
    tab.press("Enter")
    tab.wait(f"document.querySelector('.answer .prose').innerText === 'fourth' && {DONE}")
    assert sent(server) == [("user", "one again")]
    assert tab.count(".answer") == 1
    tab.click(".question [aria-label='Earlier version']")
    tab.wait("document.querySelectorAll('.answer').length === 2")
    assert tab.run("[...document.querySelectorAll('.answer .prose')].map(e => e.innerText)") == ["second", "third"]
    tab.click(".answer [aria-label='Earlier version']")
    tab.wait("document.querySelector('.answer .prose').innerText === 'first'")
    tab.call("Page.reload")
    tab.wait("document.querySelector('.answer .prose')?.innerText === 'first'")


def test_conversations_are_kept_renamed_and_deleted(tab: Tab, server: ChatServer) -> None:
    server.replies = [Reply([*spoken(f"answer {i}"), *end()]) for i in range(2)]
    titles = "[...document.querySelectorAll('.conversations .title')].map(e => e.innerText)"
    say(tab, "About <b>cats</b>")
    tab.click(".new")
    assert tab.focused() == "Message"
    say(tab, "About dogs")
    tab.wait(f"{titles}.join() === 'About dogs,About <b>cats</b>'")
    tab.click("[aria-label='Rename “About dogs”']")
    tab.wait("document.activeElement.getAttribute('aria-label') === 'Title'")
    tab.write("Hounds")
    tab.press("Enter")
    tab.wait(f"{titles}[0] === 'Hounds'")
    tab.wait("document.activeElement.innerText === 'Hounds'")
    tab.call("Page.reload")
    tab.wait(f"{titles}.join() === 'Hounds,About <b>cats</b>'")
    tab.wait("document.querySelector('.answer .prose')?.innerText === 'answer 1'")
    tab.click("[aria-label='Delete “Hounds”']")
    tab.press("Escape")
    tab.wait("!document.querySelector('dialog')")
    assert tab.focused() == "Delete “Hounds”"
    tab.press("Enter")
    tab.click("dialog .danger")
    tab.wait(f"{titles}.join() === 'About <b>cats</b>' && document.querySelector('.welcome')")
    tab.call("Page.reload")
    tab.wait(f"{titles}.join() === 'About <b>cats</b>'")
    tab.click(".conversations .title")
    tab.wait("document.querySelector('.answer .prose')?.innerText === 'answer 0'")


def test_an_answer_goes_on_while_another_conversation_is_shown(tab: Tab, server: ChatServer) -> None:
    gate = Event()
    server.replies = [Reply([*spoken("slow"), gate, *spoken(" answer"), *end()]), Reply([*spoken("quick"), *end()])]
    begin(tab, "Slow")
    tab.wait("document.querySelector('.answer .prose')?.innerText === 'slow'")
    tab.click(".new")
    say(tab, "Quick")
    gate.set()
    tab.run("[...document.querySelectorAll('.conversations .title')].find(e => e.innerText === 'Slow').click()")
    tab.wait(f"document.querySelector('.answer .prose')?.innerText === 'slow answer' && {DONE}")


def test_conversations_travel_as_json(browser: Browser, tab: Tab, server: ChatServer, tmp_path: Path) -> None:
    server.replies = [
        Reply([delta(reasoning_content="hm"), *spoken("**yes**"), *end()]),
        Reply([*spoken("no"), *end()]),
    ]
    say(tab, "Question")
    tab.click("[aria-label='Answer again']")
    tab.wait(f"document.querySelector('.answer .prose').innerText === 'no' && {DONE}")
    tab.run(
        "window.saved = '';"
        "URL.createObjectURL = blob => { blob.text().then(text => { window.saved = text }); return '#' };"
        "HTMLAnchorElement.prototype.click = function () { window.savedName = this.download }"
    )
    tab.click("[aria-label='Export “Question”']")
    tab.wait("window.saved")
    assert tab.run("window.savedName") == "Question.json"
    file = tmp_path / "saved.json"
    file.write_text(tab.run("window.saved"), encoding="utf-8")
    (kept,) = json.loads(file.read_text())["conversations"]
    assert [turn["role"] for turn in kept["turns"]] == ["user", "assistant", "assistant"]

    with browser.tab() as other:
        other.open(server.url)
        other.wait("document.querySelector('#import')")
        other.choose_files("#import", file)
        other.wait("document.querySelector('.notice').innerText === '1 conversation imported.'")
        other.click(".conversations .title")
        other.wait("document.querySelector('.answer .prose')?.innerText === 'no'")
        other.click("[aria-label='Earlier version']")
        other.wait("document.querySelector('.answer .prose strong')?.innerText === 'yes'")
        other.choose_files("#import", file)
        other.wait("document.querySelector('.notice').innerText === '0 conversations imported, 1 already here.'")
        assert other.count(".conversations li") == 1
        kept["turns"].reverse()
        for text, reason in {
            "no": "The file is not JSON.",
            "[]": "The file is no object.",
            "{}": "The file holds no conversations of Halfbyte.",
            json.dumps(
                {"format": "halfbyte conversations", "version": 9}
            ): "The file has version 9; this page reads 1.",
            json.dumps(
                {"format": "halfbyte conversations", "version": 1, "conversations": [kept]}
            ): "A message comes before",
        }.items():
            file.write_text(text)
            other.choose_files("#import", file)
            other.wait(f"document.querySelector('.notice').innerText.startsWith('Nothing was imported. {reason}')")
        assert other.errors == []


def test_settings_belong_to_a_conversation(tab: Tab, server: ChatServer) -> None:
    server.replies = [Reply([*spoken("ok"), *end()]) for _ in range(3)]
    values = {
        "Temperature": 0.7, "Top p": 0.9, "Top k": 40, "Min p": 0.05, "Repetition penalty": 1.1, "Max tokens": 64,
        "Seed": 7,
    }  # fmt: skip
    tab.click(SETTINGS)
    tab.wait("document.querySelector('dialog textarea')")
    tab.click("dialog textarea")
    tab.write("Be brief.")
    for value in values.values():
        tab.press("Tab")
        tab.write(str(value))
    tab.press("Escape")
    tab.wait("!document.querySelector('dialog')")
    assert tab.focused() == "Conversation settings"
    say(tab, "Hi")
    body = server.bodies[-1]
    names = [name.lower().replace(" ", "_") for name in values]
    assert {name: body[name] for name in names} == dict(zip(names, values.values(), strict=True))
    assert sent(server) == [("system", "Be brief."), ("user", "Hi")]
    tab.click(".new")
    say(tab, "Hi")
    assert server.bodies[-1].keys() == {"model", "messages", "stream", "stream_options"}
    tab.run("[...document.querySelectorAll('.conversations .title')].at(-1).click()")
    tab.wait("document.querySelectorAll('.conversations .current + li').length === 0")
    say(tab, "More")
    assert server.bodies[-1]["seed"] == 7


def test_what_is_typed_outlives_a_page_that_is_drawn_again(tab: Tab, server: ChatServer) -> None:
    gate = Event()
    server.replies = [Reply([*spoken("One"), gate, *spoken(" two"), *end()]), Reply([*spoken("ok"), *end()])]
    begin(tab, "Go")
    tab.wait("document.querySelector('.answer .prose')?.innerText === 'One'")
    tab.click(SETTINGS)
    tab.click("[aria-describedby='hint-temperature']")
    tab.write("0.")
    gate.set()
    answered(tab)
    tab.write("5")
    tab.press("Escape")
    tab.wait("!document.querySelector('dialog')")
    say(tab, "More")
    assert server.bodies[-1]["temperature"] == 0.5


def test_a_number_out_of_range_is_not_taken(tab: Tab, server: ChatServer) -> None:
    server.replies = [Reply([*spoken("ok"), *end()])]
    tab.click(SETTINGS)
    tab.click("[aria-describedby='hint-top_p']")
    tab.write("2")
    tab.press("Tab")
    assert tab.run("document.querySelector('dialog input:invalid').max") == "1"
    tab.press("Escape")
    tab.press("Escape")
    tab.wait("!document.querySelector('dialog')")
    say(tab, "Hi")
    assert "top_p" not in server.bodies[-1]


def test_text_files_go_with_a_message(tab: Tab, server: ChatServer, tmp_path: Path) -> None:
    server.replies = [Reply([*spoken("ok"), *end()])]
    (tmp_path / "notes.md").write_text("Größe\n```\ncode\n```", encoding="utf-8")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0")
    (tmp_path / "large.txt").write_bytes(b"x" * ((1 << 20) + 1))
    for name, reason in {"photo.png": "is not a text file in UTF-8.", "large.txt": "is larger than 1 MiB."}.items():
        tab.choose_files("#attach", tmp_path / name)
        tab.wait(f"document.querySelector('.notice').innerText === '“{name}” {reason}'")
    assert tab.count(".composer .files li") == 0
    tab.choose_files("#attach", tmp_path / "notes.md")
    tab.wait("document.querySelector('.composer .files li')")
    say(tab, "Read this")
    assert sent(server) == [("user", "notes.md:\n````\nGröße\n```\ncode\n```\n````\n\nRead this")]
    assert tab.count(".composer .files li") == 0
    assert tab.text(".question summary").strip() == "notes.md"
    assert tab.text(".bubble") == "Read this"


def test_a_model_is_chosen_and_its_quality_shown(tab: Tab, server: ChatServer) -> None:
    server.replies = [Reply([*spoken("ok"), *end()])]
    tab.wait("document.querySelector('.chip')")
    assert tab.run("[...document.querySelectorAll('select.model option')].map(e => e.value)") == [
        m["id"] for m in MODELS
    ]
    assert tab.text(".welcome .faint") == "Qwen3-4B-q4 · 4.51 bits · KL 0.021 · NVIDIA H200"
    tab.click(".chip")
    tab.wait("document.querySelector('dialog dl')")
    values = dict(
        tab.run(
            "[...document.querySelectorAll('dialog dl > div')]"
            ".map(e => [...e.children].slice(0, 2).map(f => f.innerText))"
        )
    )
    assert values == {
        "Bits per weight": "4.51", "KL divergence": "0.021 nats", "Perplexity": "× 1.012", "Device": GOOD["device"],
        "Context": "8,192 tokens",
    }  # fmt: skip
    tab.press("Escape")
    tab.run("document.querySelector('select.model').focus()")
    tab.press("ArrowDown")
    tab.wait("document.querySelector('.welcome .faint').innerText === 'Llama-3.2-1B · cpu'")
    assert tab.count(".chip") == 0
    say(tab, "Hi")
    assert server.bodies[-1]["model"] == "Llama-3.2-1B"
    assert tab.text(".stats").startswith("Llama-3.2-1B")


def test_it_comes_in_light_and_dark(tab: Tab) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    tab.media(prefers_color_scheme="light")
    light = tab.run(background)
    tab.media(prefers_color_scheme="dark")
    dark = tab.run(background)
    assert sum(map(int, light[4:-1].split(","))) > 700
    assert sum(map(int, dark[4:-1].split(","))) < 100
    for colour in (light, dark, dark):  # light, dark, as the system
        tab.click(".side-foot .round")
        tab.wait(f"{background} === '{colour}'")
    tab.click(".side-foot .round")
    tab.wait(f"{background} === '{light}'")
    tab.call("Page.reload")
    tab.wait("document.querySelector('#message')")
    assert tab.run(background) == light


def test_nothing_moves_for_those_who_ask_for_that(tab: Tab, server: ChatServer) -> None:
    gate = Event()
    server.replies = [Reply([gate, *end()])]
    begin(tab, "Hi")
    tab.wait("document.querySelector('.waiting')")
    animations = "document.getAnimations().length"
    tab.wait(animations)
    tab.media(prefers_reduced_motion="reduce")
    tab.wait(f"{animations} === 0")
    gate.set()
    answered(tab)


def test_on_a_phone_nothing_is_cut_off_and_the_list_opens(tab: Tab, server: ChatServer) -> None:
    tab.size(390, 844)
    tab.wait("!document.querySelector('nav.side').checkVisibility({visibilityProperty: true})")
    server.replies = [Reply([*spoken(RICH + "\n" + "x" * 300 + "\n\n```\n" + "y" * 300 + "\n```\n"), *end()])]
    say(tab, "z" * 300)
    assert tab.run("document.documentElement.scrollWidth") == 390
    assert tab.run("document.querySelector('.scroller').scrollWidth <= document.querySelector('.scroller').clientWidth")
    assert not tab.run("document.querySelector('nav.side').checkVisibility({visibilityProperty: true})")
    tab.click("header [aria-label=Conversations]")
    tab.wait("document.querySelector('nav.side').contains(document.activeElement)")
    assert tab.run("document.querySelector('main').inert")
    tab.press("Escape")
    tab.wait("!document.querySelector('nav.side').checkVisibility({visibilityProperty: true})")
    assert tab.focused() == "Conversations"
    tab.click("header [aria-label=Conversations]")
    tab.wait("document.querySelector('nav.side.open')")
    time.sleep(0.3)
    tab.click(".new")
    tab.wait("document.querySelector('.welcome') && !document.querySelector('nav.side.open')")
    assert not tab.run("document.querySelector('main').inert")


NAMED = {
    "article", "button", "combobox", "dialog", "form", "link", "navigation", "region", "spinbutton", "textbox",
}  # fmt: skip


def roles(tab: Tab) -> list[tuple[str, str]]:
    """Role and name of all that a screen reader finds."""
    nodes = [node for node in tab.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes]


def test_every_control_and_every_place_has_a_name(tab: Tab, server: ChatServer) -> None:
    server.replies = [Reply([delta(reasoning_content="hm"), *spoken(RICH), *end()])]
    say(tab, "Hi")
    found = roles(tab)
    assert [role for role, name in found if role in NAMED and not name] == []
    assert {"main", "navigation", "region", "form", "log", "status", "article", "heading"} <= {
        role for role, _ in found
    }
    assert [name for role, name in found if role == "article"] == ["You", "Answer"]
    tab.click(SETTINGS)
    tab.wait("document.querySelector('dialog')")
    found = roles(tab)
    assert [role for role, name in found if role in NAMED and not name] == []
    assert ("dialog", "Conversation settings") in found
    assert ("spinbutton", "Temperature") in [(role, name.split("0")[0].strip()) for role, name in found]


def test_tab_goes_from_the_list_to_the_message(tab: Tab, server: ChatServer) -> None:
    server.replies = [Reply([*spoken("ok"), *end()])]
    say(tab, "Hi")
    tab.run("document.activeElement.blur(); document.querySelector('.skip').focus()")
    seen = [tab.focused()]
    while seen[-1] != "Message" and len(seen) < 40:
        tab.press("Tab")
        seen.append(tab.focused())
    assert seen == [
        "Skip to the message", "New conversation", "Hi", "Rename “Hi”", "Export “Hi”", "Delete “Hi”", "Export all",
        "Import", "Colours: as the system. Change to light", "Model", "Measured quality: 4.51 bits, KL 0.021",
        "Conversation settings", "Messages", "Copy", "Edit", "Copy", "Answer again", "Message",
    ]  # fmt: skip
    tab.run("document.querySelector('.skip').focus()")
    tab.press("Enter")
    assert tab.focused() == "Message"


def test_a_screen_reader_hears_blocks_not_tokens(tab: Tab, server: ChatServer) -> None:
    text = "A first paragraph.\n\n```python\na = 1\nb = 2\n```\n\nThe last one."
    server.replies = [Reply([*spoken(text, 1), *end()])]
    tab.run(
        "window.heard = []; const log = document.querySelector('[role=log]');"
        "new MutationObserver(() => log.textContent && heard.push(log.textContent))"
        ".observe(log, {childList: true, subtree: true})"
    )
    say(tab, "Hi")
    tab.wait("window.heard.length")
    assert tab.run("window.heard") == ["A first paragraph. python code, 2 lines. The last one. Answer complete."]
    assert tab.count(".scroller [aria-live], .scroller [role=log]") == 0


def test_the_end_stays_in_view_unless_one_reads_further_up(tab: Tab, server: ChatServer) -> None:
    gates = [Event(), Event()]
    lines = "line\n\n" * 60
    server.replies = [Reply([*spoken(lines, 60), gates[0], *spoken(lines, 60), gates[1], *spoken(lines, 60), *end()])]
    begin(tab, "Long")
    paragraphs = "document.querySelectorAll('.prose p').length"
    below = "(s => s.scrollHeight - s.scrollTop - s.clientHeight)(document.querySelector('.scroller'))"
    tab.wait(f"{paragraphs} >= 60 && {below} < 2")
    tab.run("document.querySelector('.scroller').scrollTo(0, 100)")
    tab.wait("document.querySelector('.end')")
    gates[0].set()
    tab.wait(f"{paragraphs} >= 120")
    assert tab.run("document.querySelector('.scroller').scrollTop") == 100
    tab.click(".end")
    tab.wait(f"{below} < 2")
    gates[1].set()
    tab.wait(f"{paragraphs} >= 180 && {below} < 2")
    answered(tab)


def test_without_a_database_it_works_and_says_so(browser: Browser, server: ChatServer) -> None:
    server.replies = [Reply([*spoken("ok"), *end()])]
    with browser.tab() as tab:
        tab.call(
            "Page.addScriptToEvaluateOnNewDocument",
            source="for (const name of ['indexedDB', 'localStorage', 'sessionStorage'])"
            " Object.defineProperty(window, name, {get() { throw new DOMException('no', 'SecurityError') }})",
        )
        tab.open(server.url)
        tab.wait("document.querySelector('.notice').innerText.startsWith('This browser keeps no data')")
        say(tab, "Hi")
        tab.click(".new")
        tab.click(".conversations .title")
        tab.wait("document.querySelector('.answer .prose')?.innerText === 'ok'")
        assert tab.errors == []
