"""`halfbyte serve --replicas`: one server outside, several processes inside, and what happens when one ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from .running import PATIENCE_S, eventually
from .test_serve_command import QUESTION, Served, ask, listens, serve

KEY = "sesame"
LONG = "Say again what follows. " + "The quick brown fox jumps over the lazy dog. " * 8


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    limits = ("--max-concurrent", "3", "--max-queue", "2")
    with serve("--replicas", "2", *limits, environment={"HALFBYTE_API_KEY": KEY}) as served:
        yield served


def http(served: Served, key: str = KEY) -> httpx.Client:
    url = f"http://127.0.0.1:{served.port}"
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S)


def chat(client: httpx.Client, text: str, **options: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0, **options}
    return client.post("/v1/chat/completions", json=body)


def endless(client: openai.OpenAI, text: str = "How do I list files?", **options: Any) -> openai.Stream[Any]:
    """A stream that is not at its end for a long time, and has begun."""
    stream = client.chat.completions.create(
        model="pocket", messages=[{"role": "user", "content": text}], stream=True, n=8, max_tokens=1900,
        extra_body={"ignore_eos": True}, **options,
    )  # fmt: skip
    next(stream)
    return stream


def busy(client: httpx.Client) -> int:
    """Requests that have places."""
    return sum(slot["is_processing"] for slot in client.get("/slots").json())


def log(served: Served) -> list[dict[str, Any]]:
    return [json.loads(line) for line in served.lines if line.startswith("{")]


def line_of(served: Served, answer: httpx.Response) -> dict[str, Any]:
    """The log's line of a request; there is only one."""
    name = answer.headers["x-request-id"]
    eventually(lambda: any(line.get("id") == name for line in log(served)))
    found = [line for line in log(served) if line.get("id") == name]
    assert len(found) == 1
    return found[0]


def children(served: Served) -> list[int]:
    """The processes that a server has started and that still run."""
    numbers = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return sorted(number for number in numbers if state(number)[1:] == [str(served.process.pid)] and alive(number))


def alive(process: int) -> bool:
    return state(process)[:1] not in ([], ["Z"])


def state(process: int) -> list[str]:
    """A process's state and its parent's number; nothing if there is no such process."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return []


def test_each_says_what_runs_where(server: Served) -> None:
    for name in "01":
        assert f"replica {name}: running on cpu: you asked for it" in server.said
    assert server.said.count("listening on") == 1


def test_each_says_the_warnings_of_the_library() -> None:
    with serve("--replicas", "2", "--threads", "1000") as served:
        for name in "01":
            assert f"replica {name}: threads=1000 is more than the processors" in served.said


def test_a_conversation_stays_with_the_replica_that_has_it_in_its_cache(server: Served) -> None:
    with http(server) as client:
        answers = [chat(client, f"{LONG} Number {number}.") for number in range(8) for _ in range(2)]
        where = [line_of(server, answer)["replica"] for answer in answers]
        assert where[::2] == where[1::2]
        assert set(where) == {"0", "1"}
        for again in answers[1::2]:
            used = again.json()["usage"]
            assert used["prompt_tokens_details"]["cached_tokens"] > 0.5 * used["prompt_tokens"]


def test_answers_are_those_of_a_server_without_replicas(server: Served) -> None:
    with serve(environment={"HALFBYTE_API_KEY": KEY}) as alone:
        assert ask(alone, KEY) == ask(server, KEY)


def test_every_protocol_is_passed_on(server: Served) -> None:
    with http(server) as client:
        ids = client.post("/tokenize", json={"content": "ls -l"}).json()["tokens"]
        assert client.post("/detokenize", json={"tokens": ids}).json()["content"] == "ls -l"
        message = {"max_tokens": 4, "messages": QUESTION}
        assert client.post("/v1/messages", json=message).json()["type"] == "message"
        assert client.post("/v1/messages/count_tokens", json={"messages": QUESTION}).json() == {"input_tokens": 12}
        assert client.post("/v1/responses", json={"input": "Hello"}).json()["object"] == "response"
        assert client.post("/v1/completions", json={"prompt": "ls", "max_tokens": 1}).json()["choices"]
        assert "<html" in client.get("/").text


def test_a_stream_comes_piece_by_piece(server: Served) -> None:
    with server.client(KEY) as client:
        stream = client.chat.completions.create(
            model="pocket", messages=QUESTION, stream=True, max_tokens=60, extra_body={"ignore_eos": True}
        )  # type: ignore[arg-type]  # fmt: skip
        assert len(list(stream)) > 2


def test_refusals_are_those_of_a_server_without_replicas(server: Served) -> None:
    with http(server, "wrong") as client:
        refused = chat(client, "Hello")
        assert refused.status_code == 401
        assert "replica" not in line_of(server, refused)
    with http(server) as client:
        unknown = chat(client, "Hello", model="other")
        assert unknown.status_code == 404
        assert unknown.json()["error"]["message"] == "There is no model 'other'. There are pocket."
        assert client.get("/v1/models/other").json() == unknown.json()
        assert chat(client, "Hello", temprature=1).status_code == 400
        broken = client.post("/v1/chat/completions", content=b"[", headers={"content-type": "application/json"})
        assert broken.json()["error"]["message"].startswith("The body is not JSON")
        assert client.post("/v1/chat/completions", content=b"{}").status_code == 415
        large = client.post("/v1/completions", json={"prompt": "x" * (17 << 20)})
        assert large.status_code == 413
        named = client.post("/v1/messages", json={"model": "other"}, headers={"x-request-id": "mine"})
        assert named.headers["x-request-id"] == named.json()["request_id"] == "mine"


def test_when_the_queue_is_full_requests_are_told_when_to_come_again(server: Served) -> None:
    body = json.dumps({"messages": QUESTION, "n": 8, "max_tokens": 1900, "ignore_eos": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {KEY}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with ExitStack() as held, http(server) as client:
        for _ in range(5):
            held.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(head.encode() + body)
        eventually(lambda: 'halfbyte_requests_waiting{replica="front"} 2.0' in client.get("/metrics").text)
        refused = chat(client, "Hello")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
    with http(server) as client:
        eventually(lambda: busy(client) == 0)
        assert chat(client, "Hello").status_code == 200


def test_who_leaves_is_not_answered_any_more(server: Served) -> None:
    with server.client(KEY) as client, http(server) as asking:
        stream = endless(client, extra_headers={"x-request-id": "left"})
        assert busy(asking) == 1
        stream.close()
        eventually(lambda: busy(asking) == 0)
        eventually(lambda: any(line.get("id") == "left" for line in log(server)))
        [line] = [line for line in log(server) if line.get("id") == "left"]
        assert (line["status"], line["error"], line["replica"] in "01") == (499, "client_left", True)


def test_what_is_told_is_of_all_replicas_together(server: Served) -> None:
    with http(server) as client:
        assert client.get("/health").json() == {"status": "ok", "replicas": {"ready": 2, "total": 2}}
        [model] = client.get("/v1/models").json()["data"]
        assert model == client.get("/v1/models/pocket").json()
        assert (model["loaded"]["replicas"], model["loaded"]["sequences"]) == (2, 4)
        assert Counter(slot["replica"] for slot in client.get("/slots").json()) == {"0": 2, "1": 2}
        before = counted(client)
        chat(client, "Hello")
        assert counted(client) == before + 1


def counted(client: httpx.Client) -> float:
    """Answered conversations by the counts of all replicas."""
    wanted, text = 'route="/v1/chat/completions",status="200"', client.get("/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("halfbyte_requests_total") and wanted in line]
    assert all("replica=" in line for line in lines)
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_nothing_that_was_asked_is_in_the_log(server: Served) -> None:
    with http(server) as client:
        line_of(server, chat(client, "A word: xylophone."))
    assert "xylophone" not in server.said
    assert KEY not in server.said


def test_when_a_replica_is_killed_the_others_go_on_and_it_comes_back() -> None:
    with serve("--replicas", "2", "--context", "512") as served, http(served) as client:
        statuses: list[int] = []
        done = threading.Event()

        def load(number: int) -> None:
            with http(served) as mine:
                while not done.is_set():
                    try:
                        statuses.append(chat(mine, f"{number}", max_tokens=30, ignore_eos=True).status_code)
                    except httpx.RemoteProtocolError:
                        statuses.append(0)

        threads = [threading.Thread(target=load, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: len(statuses) > 6)
            victim = children(served)[0]
            os.kill(victim, signal.SIGKILL)
            eventually(lambda: client.get("/health").json()["replicas"]["ready"] == 1)
            since = len(statuses)
            eventually(lambda: len(statuses) > since + 10)
            eventually(lambda: client.get("/health").json()["replicas"]["ready"] == 2)
        finally:
            done.set()
            for thread in threads:
                thread.join(PATIENCE_S)
        assert set(statuses) <= {200, 503}
        assert statuses.count(503) <= 6
        assert statuses[-1] == 200
        states = [(line["state"], line["replica"]) for line in log(served) if line["event"] == "replica"]
        assert [state for state, _ in states] == ["ended", "ready"]
        assert len({name for _, name in states}) == 1
        assert "Traceback" not in served.said
        assert len(children(served)) == 2


def test_a_stream_whose_replica_dies_is_cut_and_never_taken_for_the_whole() -> None:
    with serve("--replicas", "2") as served, served.client() as client:
        stream = endless(client)
        for child in children(served):
            os.kill(child, signal.SIGKILL)
        with pytest.raises((httpx.HTTPError, openai.APIError)):
            list(stream)
        with http(served) as asking:
            refused = chat(asking, "Hello")
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            eventually(lambda: any(line.get("error") == "replica_lost" for line in log(served)))
            eventually(lambda: asking.get("/health").status_code == 200)
            assert chat(asking, "Hello").status_code == 200


def test_when_the_front_is_killed_nothing_is_left() -> None:
    with serve("--replicas", "2") as served:
        workers = children(served)
        assert len(workers) == 2
        with served.client() as client:
            stream = endless(client)
            served.process.kill()
            with pytest.raises((httpx.HTTPError, openai.APIError)):
                list(stream)
        eventually(lambda: not any(map(alive, workers)), 10)


def test_after_sigterm_answers_are_finished_and_all_processes_end() -> None:
    with serve("--replicas", "2", "--grace", "60") as served:
        port, workers = served.port, children(served)
        with served.client() as client:
            stream = client.chat.completions.create(
                model="pocket", messages=QUESTION, stream=True, max_tokens=300, temperature=0,
                extra_body={"ignore_eos": True},
            )  # type: ignore[arg-type]  # fmt: skip
            chunks = [next(stream)]
            for process in (served.process.pid, *workers):  # as a service manager does
                os.kill(process, signal.SIGTERM)
            eventually(lambda: not listens(port))
            chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert served.wait() == 0
        assert not any(map(alive, workers))
        assert "Traceback" not in served.said


def test_what_outlasts_the_grace_is_cut_off_in_the_replica_too() -> None:
    with serve("--replicas", "2", "--grace", "1") as served:
        workers = children(served)
        with served.client() as client:
            stream = endless(client)
            began = time.monotonic()
            served.process.send_signal(signal.SIGTERM)
            with pytest.raises((httpx.HTTPError, openai.APIError)):
                list(stream)
        served.wait()
        assert time.monotonic() - began < 15
        assert not any(map(alive, workers))


def test_why_a_replica_does_not_start_is_said_once() -> None:
    with serve("--replicas", "2", "--context", "9999999") as served:
        assert served.wait() == 1
    assert served.said.count("error: ") == served.said.count("error: replica 0: ") == 1
    assert "context 9999999 is out of range" in served.said
    assert "Traceback" not in served.said
