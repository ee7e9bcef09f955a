"""Several answers of one model at once: many prompts, coroutines, readers that wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import halfbyte
from halfbyte import Model
from halfbyte.errors import ContextFullError, DeviceError, UsageError
from tests.unit.cli_fakes import halfbyte as halfbyte_command

NAMES = ("ls", "grep", "tar", "sed", "awk", "cut", "sort")
PROMPTS = [f"What does {name} do?" for name in NAMES]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with halfbyte.load(threads=1, context=256, sequences=4) as found:
        yield found


@pytest.fixture(scope="module")
def alone(model: Model) -> list[str]:
    return [model.generate(prompt, max_tokens=20).text for prompt in PROMPTS]


def test_many_prompts_are_answered_in_their_order(model: Model, alone: list[str]) -> None:
    assert [answer.text for answer in model.generate_many(PROMPTS, max_tokens=20)] == alone
    assert model.engine.idle


def test_prompts_may_come_from_an_iterator_without_an_end(model: Model, alone: list[str]) -> None:
    def endless() -> Iterator[str]:
        while True:
            yield from PROMPTS

    answers = model.generate_many(endless(), max_tokens=20)
    assert [next(answers).text for _ in range(10)] == (alone * 2)[:10]
    answers.close()
    assert model.engine.idle


def test_a_prompt_that_cannot_be_answered_ends_the_others(model: Model) -> None:
    with pytest.raises(ContextFullError):
        list(model.generate_many([PROMPTS[0], "ls " * 400], max_tokens=20))
    assert model.engine.idle
    assert list(model.generate_many([])) == []
    with pytest.raises(UsageError, match="there is no option 'max_tokns'"):
        list(model.generate_many(PROMPTS, max_tokns=3))


def test_an_answer_begun_early_waits_whole(model: Model, alone: list[str]) -> None:
    begun = [model.submit(prompt, max_tokens=20) for prompt in PROMPTS]
    assert [stream.whole().text for stream in reversed(begun)] == alone[::-1]


def test_coroutines_share_the_model(model: Model, alone: list[str]) -> None:
    async def streamed(prompt: str) -> str:
        return "".join([token.text async for token in model.astream(prompt, max_tokens=20)])

    async def everything() -> tuple[list[str], list[str]]:
        texts = await asyncio.gather(*map(streamed, PROMPTS))
        answers = await asyncio.gather(*(model.agenerate(prompt, max_tokens=20) for prompt in PROMPTS))
        return list(texts), [answer.text for answer in answers]

    assert asyncio.run(everything()) == (alone, alone)


def test_tokens_that_come_meanwhile_are_handed_out_together(model: Model, alone: list[str]) -> None:
    async def lists(pace_s: float) -> list[str]:
        stream = model.astream(PROMPTS[0], max_tokens=20)
        return ["".join(token.text for token in tokens) async for tokens in stream.lists(lambda: pace_s)]

    for pace_s in (0.0, 0.005, 60.0):
        assert "".join(asyncio.run(lists(pace_s))) == alone[0]


def test_only_what_is_in_between_waits_for_its_time(model: Model) -> None:
    async def lists() -> list[int]:
        stream = model.astream(PROMPTS[0], max_tokens=40, ignore_eos=True)
        return [len(tokens) async for tokens in stream.lists(lambda: 60.0)]

    first, last = asyncio.run(asyncio.wait_for(lists(), 30))
    assert first < 40
    assert first + last == 40


def test_a_failure_comes_after_the_tokens_before_it(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    submit = model.executor.submit

    def failing(*batch: Any, **how: Any) -> Any:
        if len(given) == 10:
            raise DeviceError("The device is gone.", "")
        given.append(1)
        return submit(*batch, **how)

    told: list[int] = []

    async def read() -> None:
        async for tokens in model.astream(PROMPTS[0], max_tokens=40, ignore_eos=True).lists(lambda: 0.01):
            told.append(len(tokens))

    monkeypatch.setattr(model.executor, "submit", failing)
    with pytest.raises(DeviceError, match="gone"):
        asyncio.run(read())
    assert 0 < sum(told) <= 10


def test_a_task_that_is_cancelled_cancels_its_answer(model: Model, alone: list[str]) -> None:
    async def cancelled() -> str:
        task = asyncio.create_task(model.agenerate(PROMPTS[0], max_tokens=200, ignore_eos=True))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return (await model.agenerate(PROMPTS[1], max_tokens=20)).text

    assert asyncio.run(cancelled()) == alone[1]
    assert model.engine.idle


def test_errors_reach_the_coroutine(model: Model) -> None:
    async def refused() -> None:
        await model.agenerate("ls " * 400)

    with pytest.raises(ContextFullError):
        asyncio.run(refused())


def test_an_event_loop_that_ends_early_harms_nobody(model: Model, alone: list[str]) -> None:
    async def first() -> str:
        async with model.astream(PROMPTS[0], max_tokens=200, ignore_eos=True) as stream:
            async for token in stream:
                return token.text
        return ""

    stream = model.astream(PROMPTS[0], max_tokens=60, ignore_eos=True)

    async def begun() -> None:
        await stream.__anext__()

    asyncio.run(begun())
    assert asyncio.run(first())
    assert model.generate(PROMPTS[1], max_tokens=20).text == alone[1]
    asyncio.run(stream.aclose())
    assert model.engine.idle


def test_prompts_of_a_file_are_answered_in_their_order(tmp_path: Path, alone: list[str]) -> None:
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    for sequences in ((), ("--sequences", "1"), ("--sequences", "3")):
        result = halfbyte_command("run", "--prompts", str(lines), "--json", "-n", "20", "--context", "256", *sequences)
        assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == alone


def test_sequences_are_for_a_file_of_prompts() -> None:
    result = halfbyte_command("run", "x", "--sequences", "2")
    assert result.exit_code == 2
    assert "--sequences has no effect without --prompts." in result.stderr
