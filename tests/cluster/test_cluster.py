"""A Ray cluster of one machine: replicas that share load and survive each other, and prompts answered in bulk."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What `on_ray` found."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="hb") as folder:  # pytest's own is too long for the names of sockets
        environment = os.environ | {
            "HOME": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.cluster.on_ray", folder, str(port)], env=environment, cwd=ROOT,
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_stage_gives_the_texts_of_the_model_itself(found: dict[str, Any]) -> None:
    assert found["texts"] == found["talks"] == found["direct"]
    assert len(set(found["direct"].values())) > 4


def test_a_sweep_counts_what_each_subject_answers_right(found: dict[str, Any]) -> None:
    base, other = found["counts"]
    assert base == {"right": sum(found["right"]), "total": 8, "kept": base["right"], "base_right": base["right"]}
    assert 0 < base["right"] < 8
    assert other["total"] == 8
    assert other["kept"] <= min(other["right"], base["right"])


def test_a_conversation_stays_with_the_replica_that_has_it_in_its_cache(found: dict[str, Any]) -> None:
    for first, again in zip(found["used"][::2], found["used"][1::2], strict=True):
        assert first["prompt_tokens_details"]["cached_tokens"] < 0.1 * first["prompt_tokens"]
        assert again["prompt_tokens_details"]["cached_tokens"] > 0.5 * again["prompt_tokens"]


def test_the_replicas_share_load(found: dict[str, Any]) -> None:
    answered = [count for name, count in found["by_replica"].items() if name != "front"]
    assert len(answered) == 2
    assert min(answered) >= 2
    assert sum(answered) == 17  # eight conversations twice, and a stream; the one that was left has status 499


def test_streams_come_in_pieces_and_end_where_they_are_left(found: dict[str, Any]) -> None:
    assert found["stream"] == 200, found["end"]
    assert found["pieces"] > 5, found["end"]
    assert found["end"].endswith("data: [DONE]\n\n")
    assert found["busy"] == 1


def test_the_server_is_that_of_one_machine(found: dict[str, Any]) -> None:
    assert found["health"] == {"status": "ok", "replicas": {"ready": 2, "total": 2}}
    [model] = found["models"]
    assert (model["id"], model["loaded"]["replicas"], model["loaded"]["sequences"]) == ("pocket", 2, 4)
    assert found["refused"] == [401, "invalid_api_key"]
    assert found["unknown"] == "There is no model 'y'. There are pocket."
    assert len(found["ids"]) == 1


def test_when_a_replica_dies_the_other_goes_on_and_it_comes_back(found: dict[str, Any]) -> None:
    assert set(found["statuses"]) <= {200, 503}
    assert found["statuses"].count(503) <= 4
    assert found["statuses"][-4:] == [200] * 4
    assert found["replicas"] == [2, 2]


def test_arguments_say_where_replicas_run(found: dict[str, Any]) -> None:
    assert found["arguments"]["gpu"] == ["gpu", "q8"]
    assert found["arguments"]["cpu"] == ["cpu", 16]
    replica, both, sequences = found["arguments"]["said"]
    assert replica == "there is no argument 'replica'. Did you mean replicas?"
    assert "gpus=1 cannot be combined with device='cpu'" in both
    assert "sequences" in sequences


def test_a_process_runs_on_what_ray_lends_it(found: dict[str, Any]) -> None:
    assert found["lent"] == ["cpu", 2]
