"""Adapters as models of a server: by their names, as clients of vLLM ask for them, and by `model:adapter`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from halfbyte.model import Model, load
from tests.models.shell_adapters import make

from .running import Running, running, source

MESSAGES = [{"role": "user", "content": "How do I list the files of a directory?"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("adapters")
    return {name: make(base / name, seed=seed) for seed, name in enumerate(("one", "two"), 1)}


@pytest.fixture(scope="module")
def adapted(folders: dict[str, Path]) -> Iterator[Running]:
    def begin() -> Model:
        return load(device="cpu", threads=1, sequences=4, logit_rows=16, adapters=folders)

    with running([replace(source("pocket", begin), adapters=tuple(folders))]) as server:
        yield server


def test_each_adapter_is_a_model(adapted: Running, folders: dict[str, Path]) -> None:
    found = adapted.get("/v1/models").json()["data"]
    assert [(each["id"], each.get("parent")) for each in found] == [
        ("pocket", None), ("one", "pocket"), ("two", "pocket"),
    ]  # fmt: skip
    assert adapted.get("/v1/models/one").json()["parent"] == "pocket"
    said = {}
    with adapted.client() as client, load(device="cpu", threads=1, adapters=folders) as model:
        for name in ("pocket", "one", "two", "pocket:one", "one"):
            answer = client.chat.completions.create(model=name, messages=MESSAGES, temperature=0, max_tokens=16)
            said[name] = answer.choices[0].message.content
            adapter = name.removeprefix("pocket").removeprefix(":")
            expected = model.chat(MESSAGES, adapter=adapter, max_tokens=16)
            assert said[name] == expected.text
            assert answer.model == (adapter or "pocket")
    assert len({said[name] for name in ("pocket", "one", "two")}) == 3
    assert said["pocket:one"] == said["one"]


def test_completions_streams_and_embeddings_take_it_too(adapted: Running) -> None:
    with adapted.client() as client:
        plain, one = (
            client.completions.create(model=name, prompt="ls", temperature=0, max_tokens=8).choices[0].text
            for name in ("pocket", "one")
        )
        assert plain != one
        chunks = client.completions.create(model="one", prompt="ls", temperature=0, max_tokens=8, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == one
        vectors = [client.embeddings.create(model=name, input="ls").data[0].embedding for name in ("pocket", "one")]
        assert vectors[0] != vectors[1]


def test_an_unknown_adapter_is_not_found(adapted: Running) -> None:
    with adapted.client() as client, pytest.raises(openai.NotFoundError, match="There are pocket, one, two"):
        client.chat.completions.create(model="pocket:three", messages=MESSAGES)
