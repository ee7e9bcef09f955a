"""`RunOptions` says how a model is run: checked when made, comparable, picklable, and the same for every way in."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, fields
from typing import Any, get_type_hints

import numpy as np
import pytest

import halfbyte
from halfbyte.errors import UsageError
from halfbyte.options import LoadOptions, RunOptions, devices


def test_keyword_arguments_of_load_are_the_fields() -> None:
    hints = get_type_hints(LoadOptions)
    assert {field.name: get_type_hints(RunOptions)[field.name] for field in fields(RunOptions)} == hints


def test_equal_options_are_one_key_and_survive_pickling() -> None:
    made = RunOptions("cpu", threads=2, context=512)
    assert {made: 1}[pickle.loads(pickle.dumps(made))] == 1
    assert made != RunOptions("cpu", threads=1, context=512)
    with pytest.raises(FrozenInstanceError):
        made.threads = 3  # type: ignore[misc]


def test_integers_of_numpy_are_integers() -> None:
    assert RunOptions(threads=np.int32(2)) == RunOptions(threads=2)
    assert type(RunOptions(context=np.int64(64)).context) is int


def test_devices_are_the_packages_with_a_factory() -> None:
    assert devices() == ("cpu", "gpu", "reference")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sequences": 2000}, "sequences must be between 1 and 1024 (got 2000)."),
        ({"sequences": 0}, "sequences must be between 1 and 1024 (got 0)."),
        ({"threads": "2"}, "threads must be a whole number between 1 and 1024 (got '2')."),
        ({"threads": 2.0}, "threads must be a whole number between 1 and 1024 (got 2.0)."),
        ({"context": True}, "context must be a whole number between"),
        ({"context": 0}, "context must be between"),
        ({"gpu": -1}, "gpu must be between 0 and"),
        ({"cache_tokens": -5}, "cache_tokens must be between"),
        ({"batch_tokens": 0}, "batch_tokens must be between"),
        ({"logit_rows": None}, "logit_rows must be a whole number"),
        ({"weights": 4}, "weights must be a text (got 4)."),
        ({"kv_dtype": "q5"}, "kv_dtype 'q5' is unknown. It must be one of f16, f32, q8, q4."),
        ({"kv_dtype": None}, "kv_dtype must be a text"),
        ({"activations": "f16"}, "activations 'f16' is unknown. It must be one of int8, f32."),
        ({"device": "tpu"}, "device 'tpu' is unknown. It must be one of auto, cpu, gpu, reference."),
        ({"device": None}, "device None is unknown."),
        ({"device": "gpu", "threads": 2}, "threads=2 cannot be combined with device='gpu'."),
        ({"device": "cpu", "gpu": 0}, "gpu=0 cannot be combined with device='cpu'."),
        ({"gpu": 0, "threads": 2}, "gpu and threads cannot be combined."),
        ({"context": 512, "cache_tokens": 511}, "cache_tokens (511) must not be less than context (512)."),
        ({"ctx": 512}, "there is no option 'ctx'. Did you mean context?"),
        ({"n_ctx": 512}, "there is no option 'n_ctx'. Did you mean context?"),
        ({"zzz": 1}, "there is no option 'zzz'. Known are device, gpu, threads"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_value_and_a_remedy(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        halfbyte.load(**options)
    assert words in str(raised.value)
    assert raised.value.hint


def test_load_takes_options_a_device_or_fields_in_place_of_others() -> None:
    options = RunOptions("cpu", threads=1, context=64)
    assert halfbyte.load(None, options).options == options
    assert halfbyte.load(options=options, context=96).options == RunOptions("cpu", threads=1, context=96)
    assert halfbyte.load(None, "cpu", threads=1, context=64).options == options
    with pytest.raises(UsageError, match="device is given twice"):
        halfbyte.load(None, "cpu", device="cpu")


def test_the_options_of_a_model_say_which_device_was_chosen() -> None:
    assert halfbyte.load(threads=1).options == RunOptions("cpu", threads=1)


def test_a_batch_and_the_cache_are_as_large_as_was_asked_for() -> None:
    plan = halfbyte.load(threads=1, context=64, sequences=4, batch_tokens=16, cache_tokens=128).plan
    assert (plan.tokens, plan.context, plan.sequences) == (16, 64, 4)
    assert {tensor.shape[0] * plan.block_size for tensor in plan.of_kind("cache")} == {128}
    assert halfbyte.load(threads=1, sequences=4, cache_tokens=96).plan.context == 96


def test_conversations_wait_for_each_other_when_the_cache_is_full() -> None:
    small = halfbyte.load(threads=1, context=64, sequences=4, cache_tokens=64)
    large = halfbyte.load(threads=1, context=64, sequences=4)
    prompts = [small.encode(f"What does {name} do?") for name in ("ls", "grep", "tar", "sed")]
    texts = []
    for model in (small, large):
        texts.append([answer.text for answer in model.generate_many(prompts, max_tokens=30, ignore_eos=True)])
    assert texts[0] == texts[1]


def test_more_threads_than_processors_are_as_many_as_there_are(caplog: pytest.LogCaptureFixture) -> None:
    from halfbyte.cpu.machine import processors

    model = halfbyte.load(threads=1000, context=64)
    assert model.executor.threads == processors()
    assert "threads=1000 is more than the processors" in caplog.text


def test_weights_are_told_of_as_they_are_packed_for_a_processor() -> None:
    told: list[tuple[str, int, int]] = []
    halfbyte.load(threads=1, context=64, progress=lambda *now: told.append(now))
    assert told[-1][1] == told[-1][2] > 1 << 20
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert {what for what, _, _ in told} == {"weights"}
