"""Many threads on one engine, and one model: each gets what it would get alone, whatever the others do."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import halfbyte
from halfbyte.errors import DeviceError, UsageError
from halfbyte.plan.drawing import Token
from halfbyte.runtime import Engine, EngineLoop, SamplingParams
from halfbyte.runtime.outbox import FULL
from tests.unit.engine_fakes import (
    EXECUTORS,
    GREEDY,
    PROMPT,
    FakeExecutor,
    answer,
    blocks_unaccounted_for,
    generated,
    loop_of,
    plan_of,
)

THREADS = 8
COMMANDS = [
    "ls",
    "grep",
    "tar",
    "sed",
    "awk",
    "cut",
    "sort",
    "uniq",
    "ps",
    "top",
    "kill",
    "df",
    "du",
    "find",
    "head",
    "tail",
]


def in_threads(work: Callable[[int], None], count: int = THREADS) -> None:
    """Run `work(i)` in threads; an error in any is raised, and none may take longer than two minutes."""
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work, i) for i in range(count)]:
            done.result(timeout=120)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("sequences", [1, 4])
def test_each_thread_gets_its_own_answers(sequences: int, executor: type[FakeExecutor]) -> None:
    plan = plan_of(sequences=sequences)
    engine, _ = loop_of(plan, executor)

    def ask(i: int) -> None:
        for j in range(6):
            prompt = [i, j, *PROMPT[: i + 1]]
            assert generated(engine, prompt, max_tokens=8) == answer(prompt, plan, max_tokens=8)

    in_threads(ask)
    assert engine.idle
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_streams_that_are_closed_dropped_or_interleaved_harm_no_other(executor: type[FakeExecutor]) -> None:
    plan = plan_of()
    engine, _ = loop_of(plan, executor)

    def ask(i: int) -> None:
        chance = random.Random(i)
        for _ in range(8):
            prompts = [[i, chance.randrange(20), *PROMPT[: chance.randrange(1, 10)]] for _ in range(2)]
            streams = [engine.stream(prompt, GREEDY, max_tokens=10) for prompt in prompts]
            got: list[list[int]] = [[], []]
            for _ in range(chance.randrange(1, 12)):
                for stream, ids in zip(streams, got, strict=True):
                    ids.extend(output.token_id for output in [next(stream, None)] if output)
            for prompt, ids in zip(prompts, got, strict=True):
                assert ids == answer(prompt, plan, max_tokens=10)[: len(ids)]
            if chance.random() < 0.5:
                streams[0].close()
            del streams, stream

    in_threads(ask)
    assert engine.idle
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}


def test_sequences_of_several_threads_are_computed_together() -> None:
    plan = plan_of(context=400)
    engine, executor = loop_of(plan)
    together = threading.Barrier(4)

    def ask(_: int) -> None:
        stream = engine.stream([1], GREEDY, max_tokens=300)
        next(stream)
        together.wait(60)
        list(stream)

    in_threads(ask, 4)
    assert max(executor.computed) == 4


def test_one_that_does_not_take_its_tokens_loses_none_and_holds_up_nobody() -> None:
    plan = plan_of()
    engine, _ = loop_of(plan)
    slow = engine.stream(PROMPT, GREEDY, max_tokens=20)
    first = next(slow).token_id
    in_threads(lambda i: [generated(engine, [i, 3], max_tokens=25) for _ in range(2)] and None)
    assert [first, *(output.token_id for output in slow)] == answer(PROMPT, plan, max_tokens=20)


def test_tokens_of_submitted_sequences_made_meanwhile_are_returned_by_step() -> None:
    plan = plan_of()
    engine = Engine(FakeExecutor(plan))
    submitted = [engine.submit(prompt, GREEDY, max_tokens=12) for prompt in (PROMPT, PROMPT[:3])]
    outputs = []
    while not engine.idle:
        outputs += engine.step()
    for sequence in submitted:
        mine = [output.token_id for output in outputs if output.sequence is sequence]
        assert mine == answer(list(sequence.prompt_ids), plan, max_tokens=12) == sequence.generated_ids


def test_a_sequence_that_fails_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(context=400)
    engine, _ = loop_of(plan)
    bad, good = engine.stream(PROMPT, GREEDY, max_tokens=200), engine.stream(PROMPT[:4], GREEDY, max_tokens=200)
    got = [next(good).token_id]
    next(bad)

    def fail(*_: object) -> None:
        raise DeviceError("The model gave no valid logits")

    monkeypatch.setattr(bad.sequence.sampler, "sample", fail)
    got += [output.token_id for output in good]
    assert got == answer(PROMPT[:4], plan, max_tokens=200)
    with pytest.raises(DeviceError, match="no valid logits"):
        list(bad)
    assert engine.idle
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}


def test_a_seed_draws_the_same_beside_others_and_after_a_break() -> None:
    plan = plan_of()
    sampling = SamplingParams(temperature=1.0, seed=3)
    alone = [output.token_id for output in loop_of(plan)[0].stream(PROMPT, sampling, max_tokens=12)]
    engine, _ = loop_of(plan)

    def ask(i: int) -> None:
        for _ in range(4):
            ids = [output.token_id for output in engine.stream(PROMPT, sampling, max_tokens=12)]
            assert ids == alone

    in_threads(ask)
    resumed = [output.token_id for output in engine.stream([*PROMPT, *alone[:5]], sampling, max_tokens=7)]
    assert resumed == alone[5:], "a seed, a position and a token decide, not where the answer began"


def test_cancelling_from_another_thread_ends_a_stream_that_waits() -> None:
    engine, executor = loop_of(plan_of(context=40))
    blocked, go_on = threading.Event(), threading.Event()
    run = executor.run

    def slow(batch: object) -> object:
        blocked.set()
        assert go_on.wait(60)
        return run(batch)  # type: ignore[arg-type]

    executor.run = slow  # type: ignore[method-assign,assignment]
    stream = engine.stream(PROMPT, GREEDY, max_tokens=20)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(lambda: [output.token_id for output in stream])
        assert blocked.wait(60)
        started = time.perf_counter()
        engine.cancel(stream.sequence)
        assert time.perf_counter() - started < 5, "cancelling waits for nothing"
        go_on.set()
        assert taken.result(60) == answer(PROMPT, plan_of(), max_tokens=20)[: len(taken.result())]
    assert stream.sequence.finish_reason == "cancelled"


def test_a_reader_that_is_far_behind_pauses_its_own_answer_only() -> None:
    plan = plan_of(context=400)
    engine, _ = loop_of(plan)
    slow = engine.stream(PROMPT, GREEDY, max_tokens=300)
    first = next(slow).token_id
    assert len(generated(engine, [5], max_tokens=380)) == 380
    assert len(slow.sequence.generated_ids) <= 1 + FULL, "it waits for its reader"
    assert [first, *(output.token_id for output in slow)] == answer(PROMPT, plan, max_tokens=300)
    assert engine.idle


def test_an_unbounded_answer_is_not_paused() -> None:
    engine, _ = loop_of(plan_of(context=400))
    stream = engine.stream(PROMPT, GREEDY, max_tokens=300, bounded=False)
    stream.start()
    generated(engine, [5], max_tokens=380)
    assert stream.sequence.finish_reason == "length"
    assert len(list(stream)) == 300


def test_scores_are_made_between_the_batches_of_others() -> None:
    engine, _ = loop_of(plan_of(context=400))
    assert len(np.concatenate([chunk.copy() for chunk in engine.score(PROMPT)])) == len(PROMPT)
    stream = engine.stream(PROMPT, GREEDY, max_tokens=300)
    next(stream)
    with pytest.raises(UsageError, match="still being answered"):
        next(engine.score(PROMPT))
    assert len(list(stream)) == 299
    assert len(list(engine.score(PROMPT))) == 4


def test_the_thread_ends_when_nothing_is_asked_for_and_begins_again() -> None:
    plan = plan_of()
    engine, _ = loop_of(plan)
    for _ in range(2):
        assert generated(engine, PROMPT, max_tokens=4) == answer(PROMPT, plan, max_tokens=4)
        deadline = time.monotonic() + 30
        while any(thread.name == "halfbyte engine" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.05)


class LostPending:
    """Tokens of a batch that a lost device had been given."""

    def choose(self) -> None:
        pass

    def tokens(self) -> list[list[Token]]:
        raise DeviceError("the device is lost")


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("noticed", ["as a batch is submitted", "as its tokens are read"])
def test_a_lost_device_ends_every_answer_with_the_same_error(noticed: str, executor: type[FakeExecutor]) -> None:
    """Those that run and those that wait."""
    plan = plan_of(context=400)
    engine, device = loop_of(plan, executor)
    submit = device.submit
    streams = [engine.stream([i, 3], GREEDY, max_tokens=300) for i in range(6)]
    for stream in streams:
        stream.start()
    next(streams[0])
    if noticed == "as a batch is submitted":
        device.fail_after, device.failure = 0, DeviceError("the device is lost")
    else:
        device.submit = lambda *_, **__: LostPending()  # type: ignore[method-assign]
    for stream in streams:
        with pytest.raises(DeviceError, match="the device is lost"):
            list(stream)
    device.fail_after, device.submit = None, submit  # type: ignore[method-assign]
    assert engine.idle
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}
    assert generated(engine, PROMPT, max_tokens=4) == answer(PROMPT, plan, max_tokens=4)


def test_ctrl_c_in_one_thread_leaves_the_others_their_answers() -> None:
    plan = plan_of()
    engine, executor = loop_of(plan)
    executor.fail_after, executor.failure = 2, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        generated(engine, PROMPT, max_tokens=9)
    executor.fail_after = None
    in_threads(lambda i: generated(engine, [i], max_tokens=5) and None)
    assert engine.idle


@pytest.fixture(scope="module")
def alone() -> Iterator[list[str]]:
    with halfbyte.load(threads=1, context=256) as model:
        yield [model.generate(f"What does {name} do?", max_tokens=24).text for name in COMMANDS]


@pytest.mark.parametrize("sequences", [1, 4])
def test_threads_share_a_model(alone: list[str], sequences: int) -> None:
    with halfbyte.load(threads=1, context=256, sequences=sequences) as model:

        def ask(i: int) -> None:
            for j in range(len(COMMANDS)):
                k = (i + j) % len(COMMANDS)
                assert model.generate(f"What does {COMMANDS[k]} do?", max_tokens=24).text == alone[k]

        in_threads(ask)
        assert model.engine.idle


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked process, which has a minute."""
    child = os.fork()
    if not child:
        try:
            signal.alarm(60)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_forked_process_answers_too_and_what_was_begun_before_it_says_so() -> None:
    plan = plan_of()
    engine, executor = loop_of(plan)
    begun = engine.stream(PROMPT, GREEDY, max_tokens=20)
    blocked, go_on = threading.Event(), threading.Event()
    run = executor.run

    def slow(batch: object) -> object:
        if len(executor.computed) > 3:
            blocked.set()
            assert go_on.wait(60)
        return run(batch)  # type: ignore[arg-type]

    executor.run = slow  # type: ignore[method-assign,assignment]
    ids = [next(begun).token_id]

    def child() -> None:
        executor.run = run  # type: ignore[method-assign]
        with pytest.raises(UsageError, match="begun before this process was forked"):
            next(begun)
        assert generated(engine, PROMPT[:5], max_tokens=8) == answer(PROMPT[:5], plan, max_tokens=8)

    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(lambda: [output.token_id for output in begun])
        assert blocked.wait(60)
        in_child(child)
        go_on.set()
        assert ids + rest.result(60) == answer(PROMPT, plan, max_tokens=20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_device_that_no_fork_survives_is_refused_in_the_child() -> None:
    executor = FakeExecutor(plan_of())
    engine = EngineLoop(Engine(executor), survives_fork=False)
    generated(engine, PROMPT, max_tokens=2)

    def child() -> None:
        with pytest.raises(UsageError, match=r"loaded before this process was forked.* Load it in this process"):
            generated(engine, PROMPT, max_tokens=2)

    in_child(child)
    assert generated(engine, PROMPT, max_tokens=2) == answer(PROMPT, plan_of(), max_tokens=2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_model_answers_in_a_forked_process(alone: list[str]) -> None:
    with halfbyte.load(threads=2, context=256) as model:
        model.generate("What does grep do?", max_tokens=4)

        def child() -> None:
            assert model.generate(f"What does {COMMANDS[0]} do?", max_tokens=24).text == alone[0]

        in_child(child)


def test_the_program_ends_while_a_daemon_thread_streams() -> None:
    code = """
import halfbyte, threading, time
model = halfbyte.load(context=2048)
begun = threading.Event()
def stream():
    while True:
        for _ in model.stream("What does ls do?", max_tokens=1900, ignore_eos=True):
            begun.set()
threading.Thread(target=stream, daemon=True).start()
assert begun.wait(60)
print("done")
"""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
