"""Under load and in failure the server answers whom it can, tells the others why, and keeps nothing of who left."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import openai
import pytest

from halfbyte.errors import DeviceError, HalfbyteError, InvalidModelError
from halfbyte.model import POCKET, Model
from halfbyte.server import registry as registry_module
from halfbyte.server.errors import UnavailableError
from halfbyte.server.limits import Gate
from halfbyte.server.registry import Registry, Source

from .running import Running, eventually, pocket, running, source

CHAT = "/v1/chat/completions"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
LONG: dict[str, Any] = {"messages": HELLO, "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
SHORT: dict[str, Any] = {"messages": HELLO, "max_tokens": 1}


def idle(server: Running) -> bool:
    """Whether no model answers anything, or holds a place for somebody who has gone."""
    loaded = [entry.loaded for entry in server.registry.entries if entry.loaded is not None]
    return all(each.model.engine.idle and not each.users for each in loaded)


def slow(step_s: float) -> Source:
    return source(make=partial(pocket, 2, step_s=step_s))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server whose model takes its time."""
    with running([slow(0.02)], heartbeat_s=0.2) as found:
        yield found


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_not_answered_any_more(server: Running, stream: bool) -> None:
    body = json.dumps({**LONG, "stream": stream}).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nx-request-id: left{stream}\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        eventually(lambda: not idle(server))
        if stream:
            assert connection.recv(10)
    eventually(lambda: idle(server), 10)
    line = server.request_line(f"left{stream}")
    assert line["error"] == "client_left"
    assert float(str(line["total_ms"])) < 10_000


def test_a_client_library_that_stops_reading_ends_the_answer(server: Running) -> None:
    with server.client() as client:
        stream = client.chat.completions.create(
            model="pocket", messages=[{"role": "user", "content": "Hi"}], stream=True, max_tokens=1500,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        next(iter(stream))
        stream.close()
    eventually(lambda: idle(server), 10)


def test_comments_come_while_a_prompt_is_read() -> None:
    with running([slow(1.0)], heartbeat_s=0.2) as server, server.http() as client:
        with client.stream("POST", CHAT, json={**SHORT, "stream": True}) as response:
            lines = list(response.iter_lines())
        assert lines[0].startswith(": ")
        assert sum(line.startswith(": ") for line in lines) >= 2
        assert lines[-2] == "data: [DONE]"
        with server.client() as library:
            chunks = list(
                library.chat.completions.create(
                    model="pocket", messages=[{"role": "user", "content": "Hi"}], stream=True, max_tokens=1
                )
            )
        assert chunks[-1].choices[0].finish_reason == "length"


def test_a_full_queue_is_refused_with_a_time_to_come_back() -> None:
    with running([slow(0.05)], max_concurrent=1, max_queue=1) as server, ThreadPoolExecutor(2) as pool:
        body = {**LONG, "max_tokens": 150}
        first = pool.submit(server.post, CHAT, body)
        eventually(lambda: "halfbyte_requests_running 1.0" in server.get("/metrics").text)
        second = pool.submit(server.post, CHAT, {**SHORT, "stream": True})
        eventually(lambda: "halfbyte_requests_waiting 1.0" in server.get("/metrics").text)
        refused = server.post(CHAT, SHORT)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        with server.client() as client, pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="pocket", messages=[{"role": "user", "content": "Hi"}])
        with server.http() as http:
            assert http.get("/health").status_code == 200
            assert http.get("/v1/models").status_code == 200
        assert first.result().status_code == 200
        assert second.result().status_code == 200
        assert server.post(CHAT, SHORT).status_code == 200


def test_who_waits_and_leaves_makes_room() -> None:
    async def scenario() -> None:
        gate = Gate(1, 1)
        inside = asyncio.Event()

        async def enter(until: asyncio.Event | None = None) -> None:
            async with gate.turn():
                inside.set()
                if until is not None:
                    await until.wait()

        leave = asyncio.Event()
        first = asyncio.create_task(enter(leave))
        await inside.wait()
        second = asyncio.create_task(enter())
        await asyncio.sleep(0)
        assert (gate.running, gate.waiting) == (1, 1)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert (gate.running, gate.waiting) == (1, 0)
        third = asyncio.create_task(enter())
        await asyncio.sleep(0)
        leave.set()
        third.cancel()  # in the same moment as its turn comes
        await asyncio.gather(first, third, return_exceptions=True)
        assert (gate.running, gate.waiting) == (0, 0)

    asyncio.run(scenario())


def test_a_slow_reader_holds_up_nobody(server: Running) -> None:
    """It is answered as far as buffers reach, others go on, and its own answer ends when its time is up."""
    body = json.dumps({**LONG, "stream": True, "n": 1, "logprobs": True, "top_logprobs": 20}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", server.port))
        reader.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        eventually(lambda: not idle(server))
        began = time.monotonic()
        for _ in range(3):
            assert server.post(CHAT, SHORT).status_code == 200
        assert time.monotonic() - began < 10
    eventually(lambda: idle(server), 10)


def test_time_that_is_up_ends_an_answer_where_it_is() -> None:
    with running([slow(0.02)], timeout_s=1.0, max_concurrent=4) as server:
        began = time.monotonic()
        answer = server.post(CHAT, LONG)
        assert time.monotonic() - began < 5
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert 1 <= answer.json()["usage"]["completion_tokens"] < 1500
        with server.http() as client, client.stream("POST", CHAT, json={**LONG, "stream": True}) as response:
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        eventually(lambda: idle(server))


def test_time_that_is_up_before_the_first_token_is_an_error() -> None:
    def load() -> Model:
        return pocket(2, step_s=0.5, batch_tokens=64)

    with running([source(make=load)], timeout_s=0.8) as server:
        response = server.post(CHAT, {"messages": [{"role": "user", "content": "ls " * 500}], "max_tokens": 1})
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "timeout"
        assert response.headers["retry-after"]


def test_a_lost_device_is_an_error_and_the_model_is_loaded_anew() -> None:
    made: list[Model] = []

    def load() -> Model:
        made.append(pocket())
        return made[-1]

    def lost(*_: object, **__: object) -> None:
        raise DeviceError("The GPU was lost.", "It is gone.")

    with running([source(make=load)]) as server:
        before = server.post(CHAT, {**SHORT, "max_tokens": 5, "temperature": 0}).json()["choices"]
        made[0].executor.submit = lost  # type: ignore[assignment, method-assign]
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(lambda _: server.post(CHAT, SHORT), range(3)))
        assert {response.status_code for response in together} <= {200, 503}
        failed = [response for response in together if response.status_code == 503]
        assert failed
        assert failed[0].json()["error"]["code"] == "device_error"
        again = server.post(CHAT, {**SHORT, "max_tokens": 5, "temperature": 0})
        assert again.json()["choices"] == before
        assert len(made) == 2
        assert made[0].engine.closed


def test_a_device_lost_in_a_stream_ends_it_with_an_error() -> None:
    made: list[Model] = []

    def load() -> Model:
        made.append(pocket())
        return made[-1]

    def lost(*_: object, **__: object) -> None:
        raise DeviceError("The GPU was lost.", "It is gone.")

    with running([source(make=load)]) as server, server.client() as client:
        stream = client.chat.completions.create(
            model="pocket", messages=[{"role": "user", "content": "Hi"}], stream=True, max_tokens=1500,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        next(stream)
        made[0].executor.submit = lost  # type: ignore[assignment, method-assign]
        with pytest.raises(openai.APIError, match="The GPU was lost"):
            list(stream)
        assert server.post(CHAT, SHORT).status_code == 200
        assert len(made) == 2


def test_a_model_without_valid_logits_is_not_loaded_again_and_again() -> None:
    made: list[Model] = []

    def load() -> Model:
        made.append(pocket())
        return made[-1]

    with running([source(make=load)]) as server:
        model = made[0]
        wrong = InvalidLogits(model)
        assert server.post(CHAT, SHORT).status_code == 503
        wrong.undo()
        assert server.post(CHAT, SHORT).status_code == 200
        assert len(made) == 1


class InvalidLogits:
    """Makes every draw of a model fail."""

    def __init__(self, model: Model) -> None:
        from halfbyte.plan.drawing import Finished
        from halfbyte.sampling.sampler import invalid_logits

        self._model, self._submit = model, model.executor.submit

        def submit(batch: object, draws: list[object], *, steps: int = 1) -> Finished:
            return Finished([[invalid_logits(float("nan"), 0) for _ in draws]])

        model.executor.submit = submit  # type: ignore[assignment, method-assign]

    def undo(self) -> None:
        self._model.executor.submit = self._submit  # type: ignore[method-assign]


def test_models_come_when_they_are_asked_for_and_go_when_nobody_does() -> None:
    with running([source("one"), source("two")], idle_timeout_s=4.0) as server:
        one, two = server.registry.entries
        assert one.loaded is not None
        assert two.loaded is None
        for name in ("one", "two"):
            assert server.post(CHAT, {**SHORT, "model": name}).json()["model"] == name
        with server.http() as client:
            shown = {each["id"]: each["loaded"] is not None for each in client.get("/v1/models").json()["data"]}
        assert shown == {"one": True, "two": True}
        models = [one.loaded.model, two.loaded.model if two.loaded else None]
        eventually(lambda: one.loaded is None and two.loaded is None, 20)
        eventually(lambda: all(model is not None and model.engine.closed for model in models), 20)
        assert server.post(CHAT, {**SHORT, "model": "two"}).status_code == 200
        assert two.loads == 2


def test_a_model_that_is_in_use_is_not_dropped() -> None:
    with running([slow(0.02)], idle_timeout_s=0.3) as server:
        answer = server.post(CHAT, {**LONG, "max_tokens": 60})
        assert answer.json()["usage"]["completion_tokens"] == 60


def test_unused_models_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with running([source("one"), source("two")]) as server:
        one, two = server.registry.entries
        monkeypatch.setattr(registry_module, "available_memory", lambda: 0)
        assert server.post(CHAT, {**SHORT, "model": "two"}).status_code == 200
        assert one.loaded is None
        assert two.loaded is not None


def loader(*results: Model | BaseException) -> Callable[[], Model]:
    left = list(results)

    def load() -> Model:
        found = left.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    return load


@pytest.mark.parametrize("error", [MemoryError(), DeviceError("There is no room.", "Use less.")])
def test_what_finds_no_room_is_tried_again_without_the_others(error: Exception) -> None:
    with running([source("one"), source("two", loader(error, pocket()))]) as server:
        assert server.post(CHAT, {**SHORT, "model": "two"}).status_code == 200
        assert server.registry.entries[0].loaded is None


def test_what_finds_no_room_beside_a_busy_model_is_told_to_wait() -> None:
    sources = [source("busy", partial(pocket, 2, step_s=0.02)), source("two", loader(MemoryError(), pocket()))]
    with running(sources) as server, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(server.post, CHAT, {**LONG, "model": "busy", "max_tokens": 100})
        eventually(lambda: not idle(server))
        refused = server.post(CHAT, {**SHORT, "model": "two"})
        assert refused.status_code == 503
        assert "busy is not in use" in refused.json()["error"]["message"]
        assert busy.result().status_code == 200
        assert server.post(CHAT, {**SHORT, "model": "two"}).status_code == 200


def test_a_damaged_model_is_an_error_of_its_own_requests_only() -> None:
    damaged = loader(*[InvalidModelError("two is damaged.", "Download it again.")] * 2)
    with running([source("one"), source("two", damaged)]) as server:
        for _ in range(2):
            response = server.post(CHAT, {**SHORT, "model": "two"})
            assert response.status_code == 503
            assert "two is damaged" in response.json()["error"]["message"]
        assert server.post(CHAT, {**SHORT, "model": "one"}).status_code == 200


def test_many_requests_for_a_model_load_it_once() -> None:
    with running([source("one"), source("two")]) as server, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: server.post(CHAT, {**SHORT, "model": "two"}), range(6)))
        assert {answer.status_code for answer in answers} == {200}
        assert server.registry.entries[1].loads == 1


def test_loading_holds_up_nobody_else() -> None:
    going, begun = threading.Event(), threading.Event()

    def load() -> Model:
        begun.set()
        assert going.wait(30)
        return pocket()

    with running([source("one"), source("two", load)]) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.post, CHAT, {**SHORT, "model": "two"})
        assert begun.wait(30)
        assert server.post(CHAT, {**SHORT, "model": "one"}).status_code == 200
        going.set()
        assert waiting.result().status_code == 200


def test_a_request_that_leaves_while_a_model_loads_leaves_the_model_there() -> None:
    going = threading.Event()

    async def scenario() -> None:
        def load() -> Model:
            assert going.wait(30)
            return pocket()

        registry = Registry([Source("one", POCKET, load)])

        async def use() -> None:
            async with registry.use("one"):
                pass

        task = asyncio.create_task(use())
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        going.set()
        async with registry.use("one") as model:
            assert not model.engine.closed
        assert registry.entries[0].loads == 1
        await registry.close()

    asyncio.run(scenario())


def test_slots_tell_who_is_answered(server: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.post, CHAT, {**LONG, "max_tokens": 50}, headers={"x-request-id": "slot"})
        eventually(lambda: any(slot["request"] == "slot" for slot in slots(server)))
        answer.result()
    assert len(slots(server)) == 2
    assert not any(slot["is_processing"] for slot in slots(server))


def slots(server: Running) -> list[dict[str, Any]]:
    with server.http() as client:
        return list(client.get("/slots").json())


def test_a_bug_is_a_500_that_says_nothing_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, object]] = []
    with running() as server:
        entry = server.registry.entries[0]
        assert entry.loaded is not None

        def broken(*_: object, **__: object) -> list[object]:
            raise RuntimeError("the secret Xylophone")

        monkeypatch.setattr(entry.loaded.model, "astreams", broken)
        response = server.post(CHAT, SHORT)
        assert response.status_code == 500
        assert "Xylophone" not in response.text
        assert "bug" in response.json()["error"]["message"]
        lines += server.lines("bug")
        server.log[:] = [line for line in server.log if line["event"] != "bug"]
    assert "RuntimeError" in str(lines)
    assert "Xylophone" not in str(lines)


def test_what_was_asked_is_logged_if_that_is_wanted() -> None:
    with running(log_prompts=True) as server:
        body = {"messages": [{"role": "user", "content": "Xylophone"}], "max_tokens": 1}
        found = server.post(CHAT, body).headers["x-request-id"]
        assert "Xylophone" in str(server.request_line(found))


def test_an_error_without_a_status_of_its_own_is_the_models() -> None:
    from halfbyte.server.errors import api_error

    assert isinstance(api_error(HalfbyteError("It is odd.")), UnavailableError)


def test_connections_without_end_are_refused() -> None:
    with running(max_concurrent=1, max_queue=0) as server:
        held = []
        try:
            for _ in range(80):
                held.append(socket.create_connection(("127.0.0.1", server.port)))
            with pytest.raises((httpx.HTTPError, AssertionError)):
                server.get("/health").raise_for_status()
        finally:
            for each in held:
                each.close()
        eventually(lambda: server.get("/health").status_code == 200)
