"""What `test_cluster` looks at, done in a process of its own: Ray's threads and warnings stay out of pytest.

    python -m tests.cluster.on_ray FOLDER PORT

The last line of standard output is the findings as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve

import halfbyte
from halfbyte.cluster import Arguments, Generator, Subject, app, evaluate, generate
from halfbyte.cluster.lent import as_lent
from halfbyte.errors import UsageError
from halfbyte.evaluation.answers import Question
from halfbyte.options import RunOptions

PATIENCE_S = 60.0
RUN = RunOptions(device="cpu", threads=1, context=256, sequences=4)
NAMES = ("ls", "cp", "mv", "tar", "grep", "awk", "sed", "find")
NAME = f"halfbyte-{os.getpid()}"
"""Of the application, so that its processes can be told from others' by their titles."""


def main(folder: str, port: int) -> None:
    found: dict[str, Any] = {"arguments": arguments()}
    ray.init(
        num_cpus=4, include_dashboard=False, object_store_memory=80 << 20, _temp_dir=folder, log_to_driver=False,
        logging_level="WARNING",
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    lent = ray.get(ray.remote(num_cpus=2)(as_lent).remote(RunOptions()))
    found |= {"lent": [lent.device, lent.threads], **data()}
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    given = {"replicas": "2", "context": "512", "sequences": "2", "api_key": "sesame"}
    serve.run(app(Arguments.model_validate(given)), name=NAME)
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, headers={"authorization": "Bearer sesame"}
    ) as client:
        found |= answers(client) | deaths(client)
    ray.shutdown()
    print(json.dumps(found))


def arguments() -> dict[str, Any]:
    """What the arguments of `serve run` mean, and what is said of wrong ones."""
    on_gpu = Arguments.model_validate({"gpus": "1", "kv_dtype": "q8"}).run()
    on_cpu = Arguments.model_validate({"cpus": "3", "sequences": "16"}).run()
    said = []
    for wrong in ({"replica": "2"}, {"gpus": "1", "device": "cpu"}, {"sequences": "0"}):
        try:
            Arguments.model_validate(wrong).run()
        except UsageError as error:
            said.append(str(error))
    return {
        "gpu": [on_gpu.device, on_gpu.kv_dtype],
        "cpu": [on_cpu.device, on_cpu.sequences],
        "said": said,
    }


def data() -> dict[str, Any]:
    """Answers of a Ray Data stage and of the model itself; right answers of two ways to run it."""
    prompts = [f"What does {name} do?" for name in NAMES]
    talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
    with halfbyte.load(None, RUN) as model:
        direct = [answer.text for answer in model.generate_many(prompts, max_tokens=8)]
    rows = ray.data.from_items([{"prompt": prompt, "talk": talk} for prompt, talk in zip(prompts, talks, strict=True)])
    texts = generate(rows, Subject(run=RUN), actors=2, max_tokens=8).take_all()
    spoken = ray.get(ray.remote(said).remote(rows.take_batch(batch_format="numpy")))
    questions = [Question(prompt, answer) for prompt, answer in zip(prompts[:6], direct[:6], strict=True)]
    questions += [Question(prompt, "No.") for prompt in prompts[6:]]
    with halfbyte.load(None, RUN) as model:
        right = halfbyte.evaluation.answers.right_answers(model, questions)
    counts = evaluate([Subject(run=RUN), Subject(run=RunOptions.of(RUN, kv_dtype="q4"))], questions, base=0)
    return {
        "direct": dict(zip(prompts, direct, strict=True)),
        "texts": {row["prompt"]: row["answer"] for row in texts},
        "talks": dict(zip(spoken["prompt"].tolist(), spoken["said"].tolist(), strict=True)),
        "right": right,
        "counts": [vars(each) for each in counts],
    }


def said(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of conversations with the answers."""
    return Generator(Subject(run=RUN), "talk", "said", {"max_tokens": 8})(batch)


def answers(client: httpx.Client) -> dict[str, Any]:
    """Conversations twice each, a stream, one that is left, refusals, and what is told of all replicas."""
    twice = [ask(client, f"{number} " * 40) for number in range(8) for _ in range(2)]
    with client.stream("POST", "/v1/chat/completions", json=body("x", 400, stream=True)) as stream:
        status, pieces = stream.status_code, list(stream.iter_raw())
    with client.stream("POST", "/v1/chat/completions", json=body("x", 400, stream=True, n=8)) as stream:
        left = stream.iter_raw()
        next(left)
        busy = sum(slot["is_processing"] for slot in client.get("/slots").json())
    eventually(lambda: not any(slot["is_processing"] for slot in client.get("/slots").json()))
    refused = httpx.get(f"{client.base_url}/v1/models")
    counts = [line for line in client.get("/metrics").text.splitlines() if line.startswith("halfbyte_requests_total")]
    return {
        "used": [answer.json()["usage"] for answer in twice],
        "ids": twice[0].headers.get_list("x-request-id"),
        "stream": status,
        "pieces": len(pieces),
        "end": pieces[-1].decode(),
        "busy": busy,
        "health": client.get("/health").json(),
        "models": client.get("/v1/models").json()["data"],
        "refused": [refused.status_code, refused.json()["error"]["code"]],
        "unknown": client.post("/v1/chat/completions", json={**body("x", 1), "model": "y"}).json()["error"]["message"],
        "by_replica": {
            line.partition('replica="')[2].partition('"')[0]: float(line.rpartition(" ")[2])
            for line in counts
            if 'chat/completions",status="200"' in line
        },
    }


def deaths(client: httpx.Client) -> dict[str, Any]:
    """Statuses of requests under load while one replica is killed and comes back."""
    statuses: list[int] = []
    done = threading.Event()

    def load(number: int) -> None:
        while not done.is_set():
            statuses.append(ask(client, f"{number}", 16).status_code)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    before = processes()
    eventually(lambda: len(statuses) > 8)
    os.kill(before[0], signal.SIGKILL)
    since = len(statuses)
    eventually(lambda: len(statuses) > since + 12)
    eventually(lambda: len(set(processes()) - set(before)) == 1)
    eventually(lambda: client.get("/health").json()["replicas"]["ready"] == 2)
    done.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    return {"statuses": statuses, "replicas": [len(before), len(processes())]}


def processes() -> list[int]:
    """The processes of the replicas, by the title that Ray gives them."""
    title = f"ray::ServeReplica:{NAME}:Replica".encode()
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if line.read_bytes().startswith(title):
                found.append(int(line.parent.name))
        except OSError:
            continue
    return sorted(found)


def ask(client: httpx.Client, text: str, tokens: int = 4) -> httpx.Response:
    return client.post("/v1/chat/completions", json=body(text, tokens))


def body(text: str, tokens: int, **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **options}


def eventually(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("it never came true")
        time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
