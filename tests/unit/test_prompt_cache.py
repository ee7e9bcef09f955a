"""A prompt as the KV cache holds it, in a file: it saves computing and changes no token, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte.cli.app import app
from halfbyte.errors import HalfbyteError, InvalidModelError, ModelNotFoundError, UsageError
from halfbyte.model import Model
from halfbyte.runtime.blocks import BlockPools
from tests.unit.engine_fakes import GREEDY, PROMPT, answer, engine_of, finish_all, generated, plan_of

IDS = list(range(40, 150))


def small(**options: Any) -> Model:
    return halfbyte.load(**{"device": "cpu", "threads": 1, "context": 256, **options})


@pytest.fixture(scope="module")
def model() -> Model:
    return small()


@pytest.fixture(scope="module")
def file(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "prompt"
    assert model.save_cache(path, IDS) == IDS[:96]
    return path


@pytest.mark.parametrize("window", [5, 40])
@pytest.mark.parametrize("switch", [None, 10])
def test_blocks_put_into_another_engine_give_the_same_answers(window: int, switch: int | None) -> None:
    plan = plan_of(window=window)
    first, memory = engine_of(plan, switch)
    generated(first, PROMPT, max_tokens=8)
    prompt = first.cached_prompt(PROMPT, memory)
    assert prompt.token_ids == tuple(PROMPT[:12])
    second, other = engine_of(plan, switch)
    for i in range(3):
        generated(second, [i, *PROMPT], max_tokens=8)
    second.restore(prompt, other)
    sequence = second.submit([*PROMPT, 3], GREEDY, max_tokens=8)
    finish_all(second)
    assert sequence.num_cached_tokens == 12
    assert sequence.generated_ids == answer([*PROMPT, 3], plan, max_tokens=8, switch=switch)


def test_a_prompt_that_finds_no_room_is_refused_and_takes_none() -> None:
    plan = plan_of(sequences=1, window=40)
    engine, memory = engine_of(plan)
    generated(engine, PROMPT, max_tokens=1)
    prompt = engine.cached_prompt(PROMPT, memory)
    engine.submit([7] * 36, GREEDY, max_tokens=2)
    engine.step()
    free = engine._scheduler.pools.free
    with pytest.raises(UsageError, match="12 tokens; the KV cache has room for 40"):
        engine.restore(prompt, memory)
    assert engine._scheduler.pools.free == free
    assert isinstance(engine._scheduler.pools, BlockPools)


def test_a_file_gives_the_same_text_without_computing_the_prompt(model: Model, file: Path) -> None:
    expected = model.generate(IDS, max_tokens=8)
    fresh = small()
    assert fresh.load_cache(file) == IDS[:96]
    for prompt, ids in ((IDS, expected.token_ids), ([*IDS[:97], 7], small().generate([*IDS[:97], 7]).token_ids[:8])):
        got = fresh.generate(prompt, max_tokens=8)
        assert got.num_cached_tokens >= 96
        assert got.token_ids == ids


def test_a_seed_uses_a_file_where_the_cache_is_asked_for(file: Path) -> None:
    fresh = small()
    fresh.load_cache(file)
    seeded: dict[str, Any] = {"max_tokens": 4, "temperature": 1.0, "seed": 5}
    assert fresh.generate(IDS, **seeded).num_cached_tokens == 0
    assert fresh.generate(IDS, cache_prompt=True, **seeded).num_cached_tokens == 96


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_dtype": "f32"}, "was made with kv_dtype=f16; this model has f32."),
        ({"activations": "f32"}, "was made with activations=int8; this model has f32."),
        ({"device": "reference", "threads": None}, "was made with device=cpu; this model has reference."),
    ],
)
def test_a_file_of_another_format_is_refused(file: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        small(**options).load_cache(file)
    assert message in raised.value.message


def test_a_file_of_another_model_is_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same shapes, one other byte among the weights that are looked at."""
    folder = tmp_path / "model"
    folder.mkdir()
    for source in halfbyte.model.POCKET.iterdir():
        data = bytearray(source.read_bytes())
        if source.suffix == ".safetensors":
            data[len(data) // 2 + 8] ^= 1
        (folder / source.name).write_bytes(data)
    with pytest.raises(UsageError, match="was made with another model"):
        halfbyte.load(folder, device="cpu", threads=1, context=256).load_cache(file)


def test_the_context_may_be_another_as_long_as_the_prompt_fits(file: Path) -> None:
    assert small(context=128).load_cache(file) == IDS[:96]
    with pytest.raises(UsageError, match="96 tokens; the context holds 64"):
        small(context=64).load_cache(file)


def test_a_missing_file_and_one_that_is_something_else_are_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no file"):
        model.load_cache(tmp_path / "none")
    weights = next(halfbyte.model.POCKET.glob("*.safetensors"))
    with pytest.raises(UsageError, match="is not a prompt cache"):
        model.load_cache(weights)
    (tmp_path / "text").write_text("hello, this is no cache")
    with pytest.raises(InvalidModelError, match="is damaged"):
        model.load_cache(tmp_path / "text")


def rewritten(file: Path, target: Path, change: Any) -> Path:
    """A copy of a file whose header was changed."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    target.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return target


def reshaped(header: dict[str, Any]) -> None:
    name = next(name for name in header if name.endswith("k_cache"))
    blocks, nbytes = header[name]["shape"]
    header[name]["shape"] = [blocks * 2, nbytes // 2]


def renamed(header: dict[str, Any]) -> None:
    header["other"] = header.pop(next(name for name in header if name.endswith("k_cache")))


def shape_of_tokens(header: dict[str, Any]) -> None:
    header["token_ids"]["shape"] = [2, 48]


@pytest.mark.parametrize("change", [reshaped, renamed, shape_of_tokens])
def test_a_damaged_file_is_refused_and_harms_nothing(model: Model, file: Path, tmp_path: Path, change: Any) -> None:
    path = rewritten(file, tmp_path / "bad", change)
    expected = model.generate(IDS, max_tokens=4).token_ids
    with pytest.raises(InvalidModelError, match="is damaged"):
        model.load_cache(path)
    assert model.generate(IDS, max_tokens=4).token_ids == expected
    path.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InvalidModelError, match="is damaged"):
        model.load_cache(path)


def test_token_ids_beyond_the_vocabulary_are_refused(model: Model, file: Path, tmp_path: Path) -> None:
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start : start + 4] = np.int32(1 << 30).tobytes()
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(InvalidModelError, match="token ids are impossible"):
        model.load_cache(tmp_path / "bad")


def test_a_file_that_cannot_be_written_is_a_sentence(model: Model, tmp_path: Path) -> None:
    with pytest.raises(HalfbyteError):
        model.save_cache(tmp_path, IDS)


def run(*arguments: str) -> Any:
    from typer.testing import CliRunner

    fixed = ("run", "--device", "cpu", "--threads", "1", "--context", "256", "--max-tokens", "6")
    return CliRunner().invoke(app, [*fixed, *arguments], prog_name="halfbyte")


LONG = "What does tar do? " * 12


@pytest.mark.parametrize("settings", [(), ("--seed", "3", "--temperature", "0.9")])
def test_run_writes_a_file_once_and_then_reads_it(tmp_path: Path, settings: tuple[str, ...]) -> None:
    file = tmp_path / "cache"
    first = run("--prompt-cache", str(file), *settings, LONG)
    assert first.exit_code == 0, first.output
    written = file.stat().st_mtime_ns
    again = run("--prompt-cache", str(file), *settings, LONG)
    assert again.output == first.output
    assert file.stat().st_mtime_ns == written
    longer = run("--prompt-cache", str(file), "--raw", LONG)
    assert longer.exit_code == 2
    assert "holds another prompt" in longer.output


def test_run_refuses_a_file_for_many_prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text('{"prompt": "ls"}\n')
    refused = run("--prompt-cache", str(tmp_path / "cache"), "--prompts", str(tmp_path / "prompts"))
    assert refused.exit_code == 2
    assert "--prompt-cache holds one prompt" in refused.output
