"""`halfbyte serve` as a process: what it says, how it ends, and that it comes back."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from halfbyte.model import POCKET

from .running import PATIENCE_S, eventually

ARGUMENTS = ("--device", "cpu", "--threads", "1", "--sequences", "2")
QUESTION: list[dict[str, str]] = [{"role": "user", "content": "How do I list files?"}]


class Served:
    """A server's process, and what it has said."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "halfbyte", "serve", *ARGUMENTS, *arguments], stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL, text=True, env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as said:
            for line in said:
                self.lines.append(line.rstrip("\n"))

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    @property
    def port(self) -> int:
        found = re.search(r"^listening on http://\S+:(\d+)/v1$", self.said, re.MULTILINE)
        assert found, self.said
        return int(found[1])

    def wait(self) -> int:
        code = self.process.wait(PATIENCE_S)
        self._reader.join()
        return code

    def client(self, key: str = "none") -> openai.OpenAI:
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=PATIENCE_S)


@contextmanager
def serve(*arguments: str, port: int = 0, environment: dict[str, str] | None = None) -> Iterator[Served]:
    served = Served(*arguments, "--port", str(port), environment=environment)
    try:
        eventually(lambda: "listening on" in served.said or served.process.poll() is not None)
        yield served
    finally:
        served.process.kill()
        served.wait()


def ask(served: Served, key: str = "none") -> str | None:
    with served.client(key) as client:
        answer = client.chat.completions.create(model="pocket", messages=QUESTION, temperature=0, max_tokens=9)  # type: ignore[arg-type]
    return answer.choices[0].message.content


def test_it_says_where_it_listens_and_what_runs_where() -> None:
    with serve("--context", "512") as served:
        assert "pocket: 16.9 MB, loaded in" in served.said
        assert "running on cpu: you asked for it" in served.said
        assert "context of 512 tokens; 2 answers at once" in served.said
        assert ask(served)
        eventually(lambda: served.lines[-1].startswith("{"))
        assert json.loads(served.lines[-1])["status"] == 200


def test_after_a_kill_it_starts_again_on_its_port_and_answers_the_same() -> None:
    with serve() as served:
        port, before = served.port, ask(served)
        with served.client() as client:
            stream = client.chat.completions.create(
                model="pocket",
                messages=QUESTION,
                stream=True,
                max_tokens=1500,
                extra_body={"ignore_eos": True},  # type: ignore[arg-type]
            )
            next(iter(stream))
            served.process.send_signal(signal.SIGKILL)
            with pytest.raises((httpx.HTTPError, openai.APIError)):
                list(stream)
        served.wait()
        with serve(port=port) as again:
            assert ask(again) == before


def test_after_sigterm_answers_are_finished_and_nobody_new_is_let_in() -> None:
    with serve("--grace", "60") as served:
        port = served.port
        with served.client() as client:
            stream = client.chat.completions.create(
                model="pocket", messages=QUESTION, stream=True, max_tokens=300, temperature=0,
                extra_body={"ignore_eos": True},
            )  # type: ignore[arg-type]  # fmt: skip
            chunks = [next(stream)]
            served.process.send_signal(signal.SIGTERM)
            eventually(lambda: not listens(port))
            chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert served.wait() == 0
        assert "Traceback" not in served.said


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_what_outlasts_the_grace_is_cut_off() -> None:
    with serve("--grace", "1") as served:
        with served.client() as client:
            stream = client.chat.completions.create(
                model="pocket",
                messages=QUESTION,
                stream=True,
                max_tokens=1900,
                extra_body={"ignore_eos": True},  # type: ignore[arg-type]
            )
            next(stream)
            began = time.monotonic()
            served.process.send_signal(signal.SIGTERM)
            with pytest.raises((httpx.HTTPError, openai.APIError)):
                list(stream)
        served.wait()
        assert time.monotonic() - began < 15
        assert "Traceback" not in served.said


def test_ctrl_c_ends_it_without_a_traceback() -> None:
    with serve() as served:
        served.process.send_signal(signal.SIGINT)
        assert served.wait() == 130
        assert "Traceback" not in served.said


def test_the_key_comes_from_the_environment() -> None:
    with serve(environment={"HALFBYTE_API_KEY": "sesame"}) as served:
        assert ask(served, "sesame")
        with pytest.raises(openai.AuthenticationError):
            ask(served)
        assert "sesame" not in served.said


def test_several_models_are_served_under_their_names(tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(POCKET)
    with serve("mine=pocket", str(tmp_path / "other")) as served:
        with served.client() as client:
            assert [each.id for each in client.models.list()] == ["mine", "other"]
            answer = client.chat.completions.create(model="other", messages=QUESTION, max_tokens=1)  # type: ignore[arg-type]
            assert answer.model == "other"
        assert re.search(r"^other: [0-9.]+ MB, loaded when it is asked for$", served.said, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--host", "0.0.0.0"], "no API key", 2),
        (["--host", "no.such.host.invalid"], "no API key", 2),
        (["--host", "no.such.host.invalid", "--insecure"], "cannot listen on no.such.host.invalid", 2),
        (["/nowhere/model"], "/nowhere/model", 3),
        (["pocket", "pocket"], "two models are called pocket", 2),
        (["--api-key", ""], "API key is empty", 2),
        (["--api-key", "ü"], "API key", 2),
        (["--context", "0"], "--context", 2),
        (["--max-concurrent", "0"], "--max-concurrent", 2),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(arguments: list[str], words: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "halfbyte", "serve", *arguments], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == code
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "halfbyte", "serve", "--port", str(port), *ARGUMENTS], capture_output=True,
            text=True, timeout=PATIENCE_S,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in done.stderr
