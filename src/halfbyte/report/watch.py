"""Watches an answer: what the host did and what the device ran, as both tell of themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from halfbyte.errors import UsageError
from halfbyte.formats import Format, get_format
from halfbyte.model import Model
from halfbyte.plan import Batch, Draw, Pending, Plan, Runner, make_plan
from halfbyte.plan.batch import Float32, Timing
from halfbyte.report.parts import parts
from halfbyte.report.timeline import HOST, TOKENS, Phase, Run, Span, Turn, Watched, filled
from halfbyte.runtime import Engine, SamplingParams

if TYPE_CHECKING:
    from halfbyte.gpu.checks.trace import Tracer
    from halfbyte.gpu.run.bound import BoundDispatch, Command


class Watcher:
    """Answers prompts on a model's device, watched or not, each on an engine of its own: nothing is reused.

    Raises:
        UsageError: The device does not tell the time of steps.
    """

    def __init__(self, model: Model, prompt_ids: Sequence[int], max_tokens: int) -> None:
        timing = model.executor.timing
        if timing is None:
            raise UsageError(f"device {model.device} does not time its steps.", "Profile with --device cpu or gpu.")
        self.timing: Timing = timing
        self._model = model
        self._prompt_ids = prompt_ids
        self._max_tokens = max_tokens
        self._costs = _Costs(model)

    def plain(self) -> Watched:
        """An answer that nobody watches."""
        return Watched(self._answer(_Noted(self._model.executor)), ())

    def watched(self) -> Watched:
        """An answer, watched."""
        return self._watched_gpu() if self.timing == "dispatches" else self._watched_cpu()

    def _answer(self, noted: _Noted) -> tuple[Turn, ...]:
        engine = Engine(noted, rope_switch=self._model.spec.rope_switch)
        sequence = engine.submit(
            self._prompt_ids, SamplingParams(), max_tokens=self._max_tokens, stop_token_ids=self._model.stop_token_ids
        )
        turns: list[Turn] = []
        start, before = time.perf_counter(), 0
        while not sequence.finished:
            for output in engine.step():
                runs = tuple(submit.run for submit in noted.submits[before:])
                reads = not turns or any(run.tokens > 1 for run in runs)
                phase: Phase = "prefill" if reads else "decode"
                turns.append(Turn(phase, start, time.perf_counter(), output.token_id, runs if noted.at_once else ()))
                start, before = time.perf_counter(), len(noted.submits)
        return tuple(turns)

    def _tokens(self, turns: Sequence[Turn]) -> Iterator[Span]:
        for turn in turns:
            text = self._model.tokenizer.decode([turn.token_id])
            yield Span(TOKENS, turn.phase, text, text, turn.start_s, turn.seconds)

    def _watched_cpu(self) -> Watched:
        """Each batch's steps, laid end to end so that the last one ends with the batch."""
        times: list[tuple[Any, dict[str, int]]] = []
        executor: Any = self._model.executor

        def note() -> float:
            times.append((executor.step_ns(), executor.before_ns()))
            return float(executor.choose_ns) * 1e-9

        turns = self._answer(_Noted(executor, note))
        spans, names, steps = [*self._tokens(turns)], parts(self._model.plan), self._model.plan.steps
        taken = iter(times)
        for turn in turns:
            host: list[Span] = []
            for run in turn.runs:
                step_ns, before_ns = next(taken)
                phase: Phase = turn.phase if run.tokens == 1 else "prefill"
                at = run.start_s
                for name, nanoseconds in before_ns.items():
                    host.append(Span(HOST, phase, name, name, at, nanoseconds * 1e-9, detail=f"{run.tokens} tokens"))
                    at = host[-1].end_s
                host.append(Span(HOST, phase, "wait", "wait", at, max(0.0, run.end_s - at)))
                at = run.end_s - float(step_ns.sum()) * 1e-9
                for step, name, nanoseconds, cost in zip(steps, names, step_ns, self._costs.of(run), strict=True):
                    if nanoseconds:
                        kind, seconds = type(step).__name__, float(nanoseconds) * 1e-9
                        detail = f"{kind} → {step.outputs[0]}"
                        spans.append(Span("cpu", phase, name, kind, at, seconds, *cost, detail))
                        at += seconds
            spans += filled(host, turn, "schedule", "schedule", "sample")
        return Watched(turns, tuple(spans))

    def _watched_gpu(self) -> Watched:
        """Each dispatch, by the device's clock; tokens that were computed beyond the answer are `dropped`."""
        from halfbyte.gpu.checks.trace import traced

        executor: Any = self._model.executor
        noted = _Noted(executor)
        with traced(executor) as tracer:
            turns = self._answer(noted)
        works = _Works(self._model, noted, self._costs)
        prompts = sum(turn.phase == "prefill" for turn in turns if any(s.run.tokens > 1 for s in noted.submits))
        spans = [*self._tokens(turns), *works.spans(tracer, len(turns) - prompts)]
        host = [
            Span(HOST, "decode", name, name, start, end - start)
            for name, times in (
                ("submit", [(s.start_s, s.end_s) for s in tracer.submissions]),
                ("wait", tracer.waits),
            )
            for start, end in times
        ]
        for turn in turns:
            mine = [replace(span, phase=turn.phase) for span in host if turn.start_s <= span.start_s < turn.end_s]
            spans += filled(sorted(mine, key=lambda span: span.start_s), turn, *["engine"] * 3)
        return Watched(turns, tuple(spans), tuple(works.notes))


@dataclass(frozen=True)
class _Submit:
    """A batch that an executor was asked for, and how often it makes a step."""

    run: Run
    batch: Batch
    steps: int


class _Noted:
    """An executor that notes what it is asked to run.

    Args:
        after: Called after each batch; the seconds at its end in which tokens were chosen.
    """

    def __init__(self, executor: Runner, after: Callable[[], float] | None = None) -> None:
        self.submits: list[_Submit] = []
        self._executor = executor
        self._after = after

    @property
    def plan(self) -> Plan:
        return self._executor.plan

    @property
    def ahead(self) -> int:
        return self._executor.ahead

    @property
    def most_steps(self) -> int:
        return self._executor.most_steps

    @property
    def at_once(self) -> bool:
        """Whether a batch is done when it has been submitted."""
        return self.ahead == 1

    def draws(self, sampling: SamplingParams) -> bool:
        return self._executor.draws(sampling)

    def run(self, batch: Batch) -> Float32:
        return self._executor.run(batch)

    def submit(self, batch: Batch, draws: Sequence[Draw], *, steps: int = 1) -> Pending:
        start = time.perf_counter()
        pending = self._executor.submit(batch, draws, steps=steps)
        end = time.perf_counter() - (self._after() if self._after else 0.0)
        run = Run(start, end, len(batch.token_ids), len(batch.logit_rows), int(batch.positions[-1]))
        self.submits.append(_Submit(run, batch, steps))
        return pending


class _Works:
    """The work of a GPU, from what was submitted to it."""

    def __init__(self, model: Model, noted: _Noted, costs: _Costs) -> None:
        self.notes: list[str] = []
        self._executor: Any = model.executor
        self._noted = noted
        self._costs = costs
        self._steps = self._executor.plan.steps
        self._parts = parts(self._executor.plan)
        self._lane = model.device

    def spans(self, tracer: Tracer, tokens: int) -> Iterator[Span]:
        """The dispatches of all submissions, step by step; `tokens` of the answer were decoded."""
        found = self._timed(tracer) if tracer.timestamps else self._differences(tracer)
        done = 0
        for submission, times in zip(tracer.submissions, found, strict=True):
            if not submission.commands:
                continue
            submit = self._submit_at(submission.start_s)
            for step, commands in enumerate(_steps(submission.commands)):
                run = replace(submit.run, last=submit.run.last + step)
                done += run.tokens == 1
                phase: Phase = "prefill" if run.tokens > 1 else "decode" if done <= tokens else "dropped"
                mine, times = times[: len(commands)], times[len(commands) :]
                yield from self._step(commands, mine, run, phase)

    def _step(
        self, commands: Sequence[Command], times: Sequence[tuple[float, float]], run: Run, phase: Phase
    ) -> Iterator[Span]:
        """The dispatches of one batch; those of a step's first kernel share what the step moves and computes."""
        costs = self._costs.of(run)
        sharing: dict[int, list[BoundDispatch]] = {}
        for command in commands:
            i = command.dispatch.step
            if i is not None:
                first = sharing.setdefault(i, [command.dispatch])
                if _kernel(command.dispatch) == _kernel(first[0]) and command.dispatch is not first[0]:
                    first.append(command.dispatch)
        for command, (start, seconds) in zip(commands, times, strict=True):
            dispatch, i, cost = command.dispatch, command.dispatch.step, (0.0, 0.0)
            if i is not None and dispatch in sharing[i]:
                cost = costs[i][0] / len(sharing[i]), costs[i][1] / len(sharing[i])
            detail = dispatch.label if i is None else f"{dispatch.label} → {self._steps[i].outputs[0]}"
            yield Span(self._lane, phase, self._part(dispatch), dispatch.label, start, seconds, *cost, detail)

    def _part(self, dispatch: BoundDispatch) -> str:
        return "sampling" if dispatch.step is None else self._parts[dispatch.step]

    def _timed(self, tracer: Tracer) -> list[list[tuple[float, float]]]:
        timed, alignment = tracer.timed()
        self.notes.append(
            f"GPU times are {tracer.how}; its clock lies within ±{alignment.error_s * 1e6:.0f} µs of the host's."
        )
        return [[(t.start_s, t.seconds) for t in submission] for submission in timed]

    def _differences(self, tracer: Tracer) -> list[list[tuple[float, float]]]:
        """Times where there are no timestamps: laid end to end, from when each submission could begin."""
        from halfbyte.gpu.checks.trace import differences

        self.notes.append(f"The GPU has no timestamps. Its times are {tracer.how}, and where they lie is estimated.")
        known: dict[tuple[int, ...], list[float]] = {}
        found, free_s = [], 0.0
        for submission in list(tracer.submissions):
            times = []
            at = max(free_s, submission.end_s)
            for commands in _steps(submission.commands):
                key = tuple(id(command.dispatch) for command in commands)
                if key not in known:
                    batch = self._submit_at(submission.start_s).batch
                    known[key] = differences(self._from(batch), commands, self._kind)
                for seconds in known[key]:
                    times.append((at, seconds))
                    at += seconds
            found.append(times)
            free_s = at
        return found

    def _kind(self, dispatch: BoundDispatch) -> tuple[str, str]:
        return self._part(dispatch), dispatch.label

    def _from(self, batch: Batch) -> Callable[[Sequence[Command]], None]:
        def run(commands: Sequence[Command]) -> None:
            self._executor.load(batch)
            self._executor.device.wait(self._executor.recorder.submit(commands))

        return run

    def _submit_at(self, when_s: float) -> _Submit:
        return next(s for s in self._noted.submits if s.run.start_s <= when_s <= s.run.end_s)


def _kernel(dispatch: BoundDispatch) -> str:
    return dispatch.label.partition(" ")[0]


def _steps(commands: Sequence[Command]) -> Iterator[Sequence[Command]]:
    """The commands of each step of a submission: every one begins with the same dispatch."""
    starts = [i for i, command in enumerate(commands) if command.dispatch is commands[0].dispatch]
    return (commands[start:end] for start, end in zip(starts, [*starts[1:], len(commands)], strict=True))


class _Costs:
    """Bytes and operations of each step, for batches of any size at any position."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._plans: dict[tuple[int, int], Plan] = {}

    def of(self, run: Run) -> list[tuple[int, int]]:
        """(bytes, operations) of each step of a run, attention's for the positions that its tokens see on average."""
        plan = replace(self._plan(run.tokens, max(1, run.rows)), context=self._mean_context(run))
        return [(plan.bytes_moved(step), plan.flops(step)) for step in plan.steps]

    def _mean_context(self, run: Run) -> int:
        return run.last + 1 - (run.tokens - 1) // 2

    def _plan(self, tokens: int, rows: int) -> Plan:
        if (tokens, rows) not in self._plans:
            self._plans[tokens, rows] = make_plan(
                self._model.spec, self._format, tokens=tokens, rows=rows, context=self._model.plan.context,
                block_size=self._model.plan.block_size, kv_dtype=self._kv_dtype,
            )  # fmt: skip
        return self._plans[tokens, rows]

    def _format(self, name: str) -> Format:
        return get_format(self._model.plan.tensors[name].dtype)

    @cached_property
    def _kv_dtype(self) -> str:
        return self._model.plan.tensors[self._model.plan.groups[0].names[0]].dtype
