"""Measure cases one after another, each repeated after a warm-up, with the machine's read bandwidth around each.

Every repetition has other random prompts, so that no cache is reused but that of the depth asked for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from halfbyte.errors import ContextFullError, UsageError
from halfbyte.executors import ExecutorFactory, Progress, factory
from halfbyte.plan import Batch, Draw, Executor, Pending, Plan
from halfbyte.plan.ops import Embed
from halfbyte.report import host
from halfbyte.report.check import Agreement, check
from halfbyte.report.schema import Case, Record, Sample
from halfbyte.report.subject import Settings, Subject
from halfbyte.runtime import Engine, SamplingParams
from halfbyte.runtime.sequence import Sequence

Say = Callable[[str], None]
Loading = Callable[[], AbstractContextManager[Progress | None]]
"""A context manager around loading a model; it gives the progress callback, if any."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to be measured, and what is the same for all its cases."""

    subject: Subject
    settings: Settings
    executor: Executor
    load_s: float
    agreement: Agreement
    hashes: dict[str, str]
    peak_bytes: int | None

    @property
    def factory(self) -> ExecutorFactory[Any]:
        """What knows the device that the executor is on."""
        return factory(self.settings.run.device)

    def record(self) -> dict[str, Any]:
        """What a record says of the check, the machine, the model and the settings, by field."""
        return {
            "check": asdict(self.agreement), "machine": {**host.machine(), **self.factory.describe(self.executor)},
            "versions": host.versions(),
            "model": {
                **self.subject.about,
                "nbytes": self.subject.nbytes,
                "parameters": self.subject.spec.parameters,
                "hashes": self.hashes,
            },
            "settings": self.settings.record(threads=self.executor.threads),
        }  # fmt: skip


def bench(
    subject: Subject, settings: Settings, cases: list[Case], say: Say, loading: Loading = nullcontext
) -> Iterator[Record]:
    """Check, load, and measure every case; records come as they are finished.

    Args:
        say: Told what is being done.

    Raises:
        ContextFullError: A case needs more positions than the model has.
        DeviceError: The device computes something else than the reference.
        MemoryError: The model or its cache does not fit.
        UsageError: A setting that the device has not.
    """
    _check_hands_back(settings)
    for case in cases:
        check_fits(subject, case.label, case.context)
    context, sequences = max(case.context for case in cases), max(case.batch for case in cases)
    loaded = load(subject, settings, say, loading, context=context, sequences=sequences)
    try:
        for case in cases:
            say(f"{subject.name}: {case.label}")
            yield measure(loaded, case)
    finally:
        loaded.executor.close()


def _check_hands_back(settings: Settings) -> None:
    if settings.each_token and not factory(settings.run.device).chooses_tokens:
        raise UsageError(f"device {settings.run.device} hands back each token anyway.", "Leave out `each_token`.")


def check_fits(subject: Subject, what: str, context: int) -> None:
    """Raise ContextFullError if what is to be measured needs more positions than the model has."""
    if context > subject.spec.context:
        raise ContextFullError(
            f"{what} needs {context:,} positions; {subject.name} has {subject.spec.context:,}.",
            "Ask for shorter prompts, less depth or fewer new tokens.",
        )


def load(subject: Subject, settings: Settings, say: Say, loading: Loading, *, context: int, sequences: int) -> Loaded:
    """Check a model, then load it for so many positions and sequences. Raises what `bench` raises."""
    say(f"{subject.name}: checking against the reference")
    agreed = check(subject, settings)
    say(f"{subject.name}: loading")
    host.forget_peak()
    started = time.perf_counter()
    with loading() as progress:
        _, executor = subject.load(settings, context=context, sequences=sequences, progress=progress)
    load_s = subject.opened_s + time.perf_counter() - started
    return Loaded(subject, settings, executor, load_s, agreed, subject.hashes(), host.peak_resident_bytes())


def measure(loaded: Loaded, case: Case) -> Record:
    """One case: a warm-up, the repetitions, and the bandwidth before and after them.

    The peaks of memory are those of loading or of the repetitions; what measuring the bandwidth takes is left out.
    """
    settings = loaded.settings
    switch = loaded.subject.spec.rope_switch
    counted = _Counted(loaded.executor, case.batch)
    run = _Repetition(Engine(counted, rope_switch=switch, each_token=settings.each_token), counted, loaded, case)
    peaks = _Peaks(loaded)
    with peaks.ignored():
        bandwidth = [loaded.factory.read_bandwidth(loaded.executor)]
    for turn in range(settings.warm_up):
        run.once(-1 - turn)
    samples = tuple(run.once(turn) for turn in range(settings.repeat))
    gpu_s = run.device_seconds(settings.repeat)
    with peaks.ignored():
        bandwidth.append(loaded.factory.read_bandwidth(loaded.executor))
    return _record(loaded, case, samples, tuple(bandwidth), *peaks.found(), gpu_s)


class _Peaks:
    """The most memory, of the host and of a GPU, since the model began to load."""

    def __init__(self, loaded: Loaded) -> None:
        self._factory, self._executor = loaded.factory, loaded.executor
        self._host = loaded.peak_bytes
        self._device = self._factory.peak_nbytes(self._executor)

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """What happens inside does not count."""
        self._host, self._device = self.found()
        yield
        host.forget_peak()
        self._factory.forget_peak(self._executor)

    def found(self) -> tuple[int | None, int | None]:
        """Bytes of the host and of the GPU; None where it is not known."""
        device = self._device, self._factory.peak_nbytes(self._executor)
        both = (self._host, host.peak_resident_bytes()), device
        return tuple(max((n for n in pair if n is not None), default=None) for pair in both)  # type: ignore[return-value]


def _record(
    loaded: Loaded, case: Case, samples: tuple[Sample, ...], bandwidth: tuple[float, ...], host_bytes: int | None,
    device_bytes: int | None, gpu_s: float | None,
) -> Record:  # fmt: skip
    return Record(
        time=datetime.now(UTC).isoformat(timespec="seconds"), case=case, samples=samples, load_s=loaded.load_s,
        bytes_per_token=decode_bytes(loaded.executor.plan, case), read_bandwidth=bandwidth, peak_bytes=host_bytes,
        device_bytes=device_bytes, gpu_s=gpu_s, **loaded.record(),
    )  # fmt: skip


def decode_bytes(plan: Plan, case: Case) -> float:
    """Bytes of weights and cache that decoding reads a token, on average over the case.

    Weights are read once a step for all sequences of the batch, a cache by its own sequence only.
    """
    weights = sum(
        plan.tensors[name].nbytes
        for step in plan.steps
        if not isinstance(step, Embed)
        for name in step.inputs
        if plan.tensors[name].kind == "weight"
    )
    mean_context = case.depth + case.prompt_tokens + case.new_tokens / 2
    cached = sum(
        plan.tensors[name].nbytes / (plan.tensors[name].shape[0] * plan.block_size)
        * min(group.window or mean_context, mean_context)
        for group in plan.groups
        for pair in group.caches
        for name in pair
    )  # fmt: skip
    state = plan.states_nbytes / plan.num_states if plan.states else 0
    return weights / case.batch + cached + state


class _Counted:
    """An executor that notes its counters before it decodes all sequences for the first time.

    A device may begin with that before the last prompt's token has been read.
    """

    def __init__(self, executor: Executor, sequences: int) -> None:
        self.before: dict[str, float] | None = None
        self.plan, self.ahead, self.most_steps = executor.plan, executor.ahead, executor.most_steps
        self.draws, self.run = executor.draws, executor.run
        self._executor, self._sequences = executor, sequences

    def submit(self, batch: Batch, draws: Many[Draw], *, steps: int = 1) -> Pending:
        if self.before is None and batch.num_decodes == len(batch.token_ids) == self._sequences:
            self.before = self._executor.counters()
        return self._executor.submit(batch, draws, steps=steps)


class _Repetition:
    """Runs a case on an engine, once at a time."""

    def __init__(self, engine: Engine, counted: _Counted, loaded: Loaded, case: Case) -> None:
        self._engine, self._counted = engine, counted
        self._factory, self._executor = loaded.factory, loaded.executor
        self._case = case
        self._vocabulary = loaded.subject.spec.vocab_size

    def once(self, turn: int) -> Sample:
        """One repetition with the prompts of `turn`; the depth's tokens are put into the cache before the clock."""
        prompts = [self._prompt(turn, index) for index in range(self._case.batch)]
        if self._case.depth:
            self._answer([prompts[0][: self._case.depth]], 1)
        return self._answer(prompts, self._case.new_tokens)

    def device_seconds(self, turn: int) -> float | None:
        """A GPU's seconds per decoding step, in a repetition whose passes are timed; None if it has no clock."""
        timed = self._factory.timed(self._executor)
        if timed is None:
            return None
        with timed:
            sample = self.once(turn)
        return sample.counters["gpu_s"] / len(sample.step_s) if sample.step_s else None

    def _prompt(self, turn: int, index: int) -> list[int]:
        """The depth's tokens, then others: the first after the depth is another one at every turn."""
        case = self._case
        depth = np.random.default_rng([index, case.depth]).integers(0, self._vocabulary, case.depth)
        random = np.random.default_rng([index, case.prompt_tokens, turn & 0xFFFF])
        prompt = random.integers(0, self._vocabulary, case.prompt_tokens)
        prompt[0] = (index * 1009 + turn) % self._vocabulary
        ids: list[int] = np.concatenate([depth, prompt]).tolist()
        return ids

    def _answer(self, prompts: list[list[int]], new_tokens: int) -> Sample:
        """Answer prompts together, every step timed: reading lasts until all sequences have their first token."""
        started = time.perf_counter()
        ends: list[float] = []
        device_s: list[float | None] = []
        reading, waited = 0, 0.0
        self._counted.before = None
        for sequences in self._advance(prompts, new_tokens):
            ends.append(time.perf_counter())
            device_s.append(self._executor.busy_s())
            reading += any(not sequence.generated_ids for sequence in sequences)
            if len(ends) == reading + 1:
                waited = self._executor.counters().get("wait_s", 0.0)
        after = self._executor.counters()
        before = (self._counted.before or after) | ({"wait_s": waited} if "wait_s" in after else {})
        counted = {name: value - before[name] for name, value in after.items()}
        steps = np.diff(ends[reading:])
        known = [busy for busy in device_s[reading + 1 :] if busy is not None]
        busy = counted.pop("wait_s", sum(known) if len(known) == len(steps) else None)
        clean = all(sequence.num_cached_tokens == self._case.depth for sequence in sequences)
        return Sample(
            prefill_s=ends[reading] - started if clean else None,
            first_token_s=min(sequence.prefill_s for sequence in sequences),
            step_s=evened(steps.tolist()), total_s=ends[-1] - started,
            host_s=None if busy is None or not len(steps) else float(steps.sum()) - busy, counters=counted,
        )  # fmt: skip

    def _advance(self, prompts: list[list[int]], new_tokens: int) -> Iterator[list[Sequence]]:
        """The sequences after each step; a device may hand back several steps together."""
        engine = self._engine
        sequences = [engine.submit(ids, SamplingParams(), max_tokens=new_tokens) for ids in prompts]
        while not engine.idle:
            tokens = Counter(output.sequence for output in engine.step())
            for _ in range(max(tokens.values(), default=1)):
                yield sequences


def evened(steps: list[float]) -> tuple[float, ...]:
    """Times of steps where tokens that a device handed back together, within a tenth of the mean, share their time."""
    groups: list[list[float]] = []
    for step in steps:
        if groups and step < sum(steps) / len(steps) / 10:
            groups[-1].append(step)
        else:
            groups.append([step])
    return tuple(sum(group) / len(group) for group in groups for _ in group)
