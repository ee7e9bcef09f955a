"""The CPU core chooses the tokens that the NumPy sampler chooses, and reports the same probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from halfbyte.cpu import CpuExecutor, _native
from halfbyte.cpu.choose import _row, choose
from halfbyte.errors import DeviceError, GrammarError
from halfbyte.plan.drawing import Draw, Token
from halfbyte.sampling import Sampled, Sampler, SamplingParams
from halfbyte.sampling.noise import noise
from tests.constraints import Fixed, mask_of
from tests.device.test_cpu_ops import Case as Rows
from tests.device.test_cpu_ops import Source, batch, hostile

Float32 = NDArray[np.float32]

VOCABULARIES = [1, 7, 63, 64, 65, 1000, 2048, 2049, 40_000]
FEW_IN_A_THOUSAND = 0.004


@pytest.fixture(params=_native.isas())
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@dataclass(frozen=True)
class Case:
    """A row of logits, and what is asked of it."""

    params: SamplingParams
    logits: Float32
    prompt: list[int]
    answer: list[int]
    allowed: NDArray[np.uint32] | None = None

    @property
    def draw(self) -> Draw:
        allowed = None if self.allowed is None else Fixed(self.allowed)
        return Draw(0, Sampler(self.params), self.prompt, self.answer, allowed)

    def expected(self) -> int:
        return Sampler(self.params).sample(self.logits, self.prompt, self.answer, self.allowed).id

    def ruled_out(self) -> Case:
        """The same without a mask: what may not come has no chance."""
        if self.allowed is None:
            return self
        free = [bool(self.allowed[i // 32] >> i % 32 & 1) for i in range(self.logits.size)]
        return replace(self, logits=np.where(free, self.logits, np.float32(-np.inf)), allowed=None)


def program(threads: int = 2, isa: str = "") -> _native.Program:
    return _native.Program(threads, 8, isa, spin=False)


def chosen_by(core: _native.Program, cases: Sequence[Case]) -> list[int]:
    logits = np.stack([case.logits for case in cases])
    tokens = choose(core, logits, [case.draw for case in cases])
    return [token.id for token in tokens if isinstance(token, Sampled)]


def logits_of(rng: np.random.Generator, vocabulary: int) -> Float32:
    """Random logits: wide or narrow, some with equal values, some with tokens that are ruled out."""
    logits = rng.normal(rng.uniform(-30, 30), rng.choice([0.1, 1, 4, 12]), vocabulary).astype(np.float32)
    if rng.random() < 0.3:
        logits = np.round(logits * 4) / np.float32(4)
    if rng.random() < 0.3 and vocabulary > 1:
        logits[rng.choice(vocabulary, vocabulary // 2, replace=False)] = -np.inf
    return logits


def tokens_of(rng: np.random.Generator, vocabulary: int, most: int) -> list[int]:
    return [int(token) for token in rng.integers(0, vocabulary, int(rng.integers(1, most)))]


def penalties_of(rng: np.random.Generator, vocabulary: int) -> dict[str, object]:
    wanted = rng.random(4) < 0.5
    return {
        "repetition_penalty": float(rng.uniform(0.5, 2)) if wanted[0] else 1.0,
        "presence_penalty": float(rng.uniform(-2, 2)) if wanted[1] else 0.0,
        "frequency_penalty": float(rng.uniform(-2, 2)) if wanted[2] else 0.0,
        "logit_bias": dict.fromkeys(tokens_of(rng, vocabulary, 9), float(rng.uniform(-9, 9))) if wanted[3] else {},
    }


def filters_of(rng: np.random.Generator) -> dict[str, object]:
    wanted = rng.random(4) < 0.4
    return {
        "top_k": int(rng.choice([1, 2, 20, 40, 300, 3000, 10**6])) if wanted[0] else 0,
        "typical_p": float(rng.choice([0.0, 0.2, 0.9, 0.999])) if wanted[1] else 1.0,
        "top_p": float(rng.choice([0.0, 0.3, 0.9, 0.95, 0.999, 1 - 1e-9])) if wanted[2] else 1.0,
        "min_p": float(rng.choice([0.001, 0.05, 0.5, 1.0])) if wanted[3] else 0.0,
    }


def cases(count: int, seed: int, vocabulary: int, *, greedy: bool) -> Iterator[Case]:
    rng = np.random.default_rng([seed, vocabulary])
    for _ in range(count):
        drawn = {} if greedy else {"temperature": float(rng.uniform(0.05, 2.5)), "seed": int(rng.integers(2**63))}
        given = drawn | penalties_of(rng, vocabulary) | filters_of(rng)
        yield Case(
            SamplingParams(**given),
            logits_of(rng, vocabulary),
            tokens_of(rng, vocabulary, 30),
            tokens_of(rng, vocabulary, 30),
        )


def masked(case: Case, rng: np.random.Generator) -> Case:
    """A case of which few, half or most tokens may come, whole words of them alike; one has a finite logit at least."""
    count = case.logits.size
    free = rng.random(count) < rng.choice([0.01, 0.5, 0.99])
    for start in range(0, count, 32):
        if rng.random() < 0.5:
            free[start : start + 32] = rng.random() < 0.5
    free[rng.choice(np.flatnonzero(np.isfinite(case.logits)))] = True
    return replace(case, allowed=mask_of(np.flatnonzero(free).tolist(), count))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_greedy_choices_are_equal(vocabulary: int, isa: str) -> None:
    core = program(isa=isa)
    rng = np.random.default_rng([vocabulary, 1])
    for case in cases(100, 1, vocabulary, greedy=True):
        assert chosen_by(core, [case]) == [case.expected()]
        held = masked(case, rng)
        assert chosen_by(core, [held]) == [held.expected()]


def kept_after_rounding(case: Case) -> list[set[int]]:
    """What the NumPy sampler keeps when scores and shares differ by what is lost in an exponential."""
    rng, found = np.random.default_rng(0), []
    spread = 1e-6 * np.maximum(1, np.abs(case.logits[np.isfinite(case.logits)]).max())
    for loosened in [-1e-5, 0, 1e-5] * 5:
        params = replace(
            case.params,
            top_p=min(case.params.top_p * (1 + loosened), 1.0),
            typical_p=min(case.params.typical_p * (1 + loosened), 1.0),
            min_p=min(case.params.min_p * (1 - loosened), 1.0),
        )
        logits = (case.logits + spread * rng.uniform(-1, 1, case.logits.size)).astype(np.float32)
        found.append(set(Sampler(params).candidates(logits, case.prompt, case.answer).ids.tolist()))
    return found


def scores_of(case: Case) -> Float32:
    """All scores that are drawn from, before any filter."""
    open_to_all = replace(case.params, top_k=0, top_p=1.0, typical_p=1.0, min_p=0.0)
    return Sampler(open_to_all).candidates(case.logits, case.prompt, case.answer).scores


def differ_by_rounding(case: Case, chosen: int, expected: int) -> bool:
    """Whether the last digits of exponentials and logarithms decide between two tokens.

    They are not the same for every library: NumPy's own differ between processors. So two sums of score and noise may
    come in either order if they are that near to each other, and a token whose probability ends at the edge of a filter
    may be in or out.
    """
    both = np.array([chosen, expected])
    position = len(case.prompt) + len(case.answer)
    scores = scores_of(case)[both]
    first, second = (scores + noise(int(case.params.seed or 0), position, both)).tolist()
    if abs(first - second) <= 4e-6 * max(1.0, float(np.abs(scores).max())):
        return True
    kept = kept_after_rounding(case)
    return {chosen, expected} <= set.union(*kept) and not {chosen, expected} <= set.intersection(*kept)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("constrained", [False, True])
def test_drawn_tokens_are_equal(vocabulary: int, constrained: bool, isa: str) -> None:
    core, count, different = program(isa=isa), 250, 0
    rng = np.random.default_rng([vocabulary, 1])
    for case in cases(count, 2, vocabulary, greedy=False):
        asked = masked(case, rng) if constrained else case
        (chosen,) = chosen_by(core, [asked])
        if chosen != (expected := asked.expected()):
            assert differ_by_rounding(asked.ruled_out(), chosen, expected), (case.params, chosen, expected)
            different += 1
    assert different <= FEW_IN_A_THOUSAND * count


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_a_row_is_chosen_alike_alone_in_company_and_by_any_number_of_threads(threads: int) -> None:
    core, single = program(threads), program(1)
    rows = [*cases(10, 3, 5000, greedy=False), *cases(7, 4, 5000, greedy=True)]
    rows += [masked(case, np.random.default_rng(i)) for i, case in enumerate(rows[::2])]
    wanted = [replace(case, params=replace(case.params, logprobs=3)) for case in rows]
    alone = [choose(single, case.logits[None], [case.draw])[0] for case in wanted]
    together = choose(core, np.stack([case.logits for case in wanted]), [case.draw for case in wanted])
    assert together == alone
    assert [choose(core, case.logits[None], [case.draw])[0] for case in wanted] == alone


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_logprobs_are_those_of_the_numpy_sampler(vocabulary: int, isa: str) -> None:
    core = program(isa=isa)
    for case in cases(40, 5, vocabulary, greedy=True):
        draw = Draw(0, Sampler(replace(case.params, logprobs=20)), case.prompt, case.answer)
        (got,) = choose(core, case.logits[None], [draw])
        expected = draw.sampler.sample(case.logits, case.prompt, case.answer)
        assert got.logprob == pytest.approx(expected.logprob, abs=2e-5)
        assert [token for token, _ in got.top] == [token for token, _ in expected.top]
        assert [value for _, value in got.top] == pytest.approx([value for _, value in expected.top], abs=2e-5)


def test_logprobs_are_those_of_float64(isa: str) -> None:
    for vocabulary in VOCABULARIES:
        logits = logits_of(np.random.default_rng(vocabulary), vocabulary)
        (got,) = choose(program(isa=isa), logits[None], [Draw(0, Sampler(SamplingParams()), [0], [])])
        exact = logits.astype(np.float64)
        assert got.logprob == pytest.approx(-np.log(np.exp(exact - exact.max()).sum()), abs=1e-6)


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    draws = [Draw(0, Sampler(SamplingParams(temperature=1, seed=7)), [0] * i, []) for i in range(4000)]
    drawn = choose(program(), np.repeat(logits[None], 4000, axis=0), draws)
    counts = np.bincount([sampled.id for sampled in drawn], minlength=4)
    assert counts / 4000 == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def is_fault(token: Token, peak: float, place: int) -> bool:
    return isinstance(token, DeviceError) and f"no valid logits: {peak} for token {place}." in token.message


@pytest.mark.parametrize("place", [0, 17, 4999])
@pytest.mark.parametrize("fault", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_logit_that_is_no_number_is_reported_with_its_token(
    fault: float, place: int, temperature: float, isa: str
) -> None:
    logits = logits_of(np.random.default_rng(1), 5000)
    logits[place] = fault
    rows = np.stack([np.zeros(5000, np.float32), logits])
    draws = [Draw(0, Sampler(SamplingParams(temperature=temperature)), [0], [])] * 2
    other, failure = choose(program(isa=isa), rows, draws)
    assert isinstance(other, Sampled)
    assert is_fault(failure, fault, place)


def test_the_first_nan_is_reported_even_beside_infinity(isa: str) -> None:
    logits = np.zeros(300, np.float32)
    logits[[20, 100, 200]] = np.inf, np.nan, np.nan
    assert is_fault(*choose(program(isa=isa), logits[None], [Draw(0, Sampler(SamplingParams()), [0], [])]), np.nan, 100)


def test_logits_that_rule_every_token_out_are_reported(isa: str) -> None:
    logits = np.full((1, 100), -np.inf, np.float32)
    assert is_fault(*choose(program(isa=isa), logits, [Draw(0, Sampler(SamplingParams()), [0], [])]), -np.inf, 0)


def test_allowed_tokens_without_a_finite_logit_are_reported(isa: str) -> None:
    logits = np.zeros((1, 100), np.float32)
    logits[0, 40:] = -np.inf
    for params in (SamplingParams(), SamplingParams(temperature=1, seed=3, top_k=4)):
        draw = Draw(0, Sampler(params), [0], [], Fixed(mask_of(range(70, 90), 100)))
        assert is_fault(*choose(program(isa=isa), logits, [draw]), -np.inf, 70)
        assert is_fault(draw.on_host(logits[0]), -np.inf, 70)


def test_where_nothing_may_come_that_row_has_an_error_and_no_other() -> None:
    logits = logits_of(np.random.default_rng(3), 70)[None].repeat(3, axis=0)
    masks = [None, Fixed(mask_of([], 70)), Fixed(mask_of([69], 70))]
    draws = [Draw(i, Sampler(SamplingParams()), [0], [], mask) for i, mask in enumerate(masks)]
    first, none, last = choose(program(), logits, draws)
    assert isinstance(first, Sampled)
    assert isinstance(none, GrammarError)
    assert isinstance(last, Sampled)
    assert (first.id, last.id) == (int(logits[0].argmax()), 69)


def test_log_probabilities_do_not_depend_on_what_may_come(isa: str) -> None:
    for case in cases(20, 5, 1000, greedy=True):
        asked = replace(case, params=replace(case.params, logprobs=3))
        rng = np.random.default_rng(1)
        (free,), (held,) = (choose(program(isa=isa), case.logits[None], [c.draw]) for c in (asked, masked(asked, rng)))
        assert isinstance(free, Sampled)
        assert isinstance(held, Sampled)
        assert free.top == held.top
        difference = float(case.logits[held.id]) - float(case.logits[free.id])
        assert held.logprob - free.logprob == pytest.approx(difference, abs=1e-5)


def test_a_mask_of_another_vocabulary_is_refused() -> None:
    draw = Draw(0, Sampler(SamplingParams()), [0], [])
    row = (*_row(draw, None)[:4], np.ones(3, np.uint32))
    with pytest.raises(ValueError, match="number of words of a mask"):
        program().choose(np.zeros((1, 50), np.float32), [row])


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    for params in (SamplingParams(logit_bias={50: 1}), SamplingParams(repetition_penalty=2)):
        with pytest.raises(ValueError, match="token 50 is not in the vocabulary of 50"):
            choose(program(), np.zeros((1, 50), np.float32), [Draw(0, Sampler(params), [50], [])])


def test_logits_are_left_as_they_are() -> None:
    logits = logits_of(np.random.default_rng(3), 1000)[None]
    before = logits.copy()
    given = SamplingParams(temperature=1, repetition_penalty=2, logit_bias={3: 1}, top_p=0.9)
    choose(program(), logits, [Draw(0, Sampler(given), [1, 2], [3])])
    np.testing.assert_array_equal(logits, before)


def test_an_executor_chooses_for_every_row_of_a_batch_and_one_failure_ends_no_other() -> None:
    values = hostile(4, 300)
    values[2, 5] = np.nan
    case = Rows(4)
    executor = CpuExecutor(case.plan(case.activation(values)), Source(case), threads=2)
    given = [
        SamplingParams(),
        SamplingParams(temperature=1, seed=3),
        SamplingParams(),
        SamplingParams(temperature=2, seed=4),
    ]
    draws = [Draw(slot, Sampler(params), [1], []) for slot, params in enumerate(given)]
    (tokens,) = executor.submit(batch(4), draws).tokens()
    assert is_fault(tokens.pop(2), np.nan, 5)
    expected = [draws[row].on_host(values[row]) for row in (0, 1, 3)]
    assert [token.id for token in tokens if isinstance(token, Sampled)] == [
        token.id for token in expected if isinstance(token, Sampled)
    ]


class Watched:
    """A program that notes what it is asked to choose."""

    def __init__(self) -> None:
        self.core = program()
        self.rows: list[int] = []

    def choose(self, logits: Float32, rows: list) -> list[_native.Choice]:
        self.rows.append(len(logits))
        return self.core.choose(logits, rows)


BEYOND_THE_CORE = [
    {"dynatemp_range": 0.5},
    {"top_n_sigma": 1.0},
    {"xtc_probability": 1.0},
    {"mirostat": 2},
    {"dry_multiplier": 1.0},
    {"repetition_penalty": 1.5, "repeat_last_n": 2},
    {"top_k": 5, "typical_p": 0.5, "samplers": ("typical_p", "top_k", "temperature")},
]


@pytest.mark.parametrize("beyond", BEYOND_THE_CORE)
def test_settings_that_the_core_does_not_know_are_left_to_the_numpy_sampler(beyond: dict[str, object]) -> None:
    watched, usual = Watched(), {"temperature": 0.7, "seed": 4, "typical_p": 0.9, "presence_penalty": 0.5}
    given = [SamplingParams(**({"temperature": 0.7, "seed": 4} | beyond)), SamplingParams(**usual), SamplingParams()]
    mixed = [
        Case(params, logits_of(np.random.default_rng(row), 50), [1, 2, 1, 2, 1], [2])
        for row, params in enumerate([given[0], given[1], given[0], given[2]])
    ]
    assert chosen_by(watched, mixed) == [case.expected() for case in mixed]  # type: ignore[arg-type]
    assert watched.rows == [2]
    assert chosen_by(watched, mixed[:1]) == [mixed[0].expected()]  # type: ignore[arg-type]
    assert watched.rows == [2]
