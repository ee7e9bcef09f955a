"""The chat page as the server gives it, and what it asks the server for."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from halfbyte.server.page import PAGE_HEADERS, PageFile, page_files
from tests.server.running import running

KEY = "a key"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with running(api_key=KEY) as server, httpx.Client(base_url=server.url) as client:
        yield client


@pytest.mark.parametrize("file", page_files(), ids=lambda file: file.path)
def test_files_of_the_page_need_no_key_and_come_once(client: httpx.Client, file: PageFile) -> None:
    answer = client.get(file.path)
    assert (answer.status_code, answer.content) == (200, file.body)
    assert answer.headers["content-type"] == file.content_type
    assert {name: answer.headers[name] for name in PAGE_HEADERS} == dict(PAGE_HEADERS)
    again = client.get(file.path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_list_of_models_tells_their_measured_quality(client: httpx.Client) -> None:
    assert client.get("/v1/models").status_code == 401
    (model,) = client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()["data"]
    quality = model["halfbyte"]
    assert 4 < quality["bits_per_weight"] < 5
    assert 0 < quality["kl_divergence"] < 0.1
    assert 0.95 < quality["perplexity_ratio"] < 1.1
    assert quality["context"] == model["max_model_len"]
    assert quality["device"] == "cpu"
